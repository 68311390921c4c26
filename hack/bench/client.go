package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/pack"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
	"github.com/firstlight/firstlight/installer/stage"
	"github.com/firstlight/firstlight/installer/unpack"
	"github.com/firstlight/firstlight/proto/auth"
)

// task is what this program does when it is started as a process of its own, so
// that what it takes can be told from what the servers take.
type task struct {
	arguments int
	run       func(ctx context.Context, args []string, stdout io.Writer) error
}

// tasks are those of the installer, and those that they are compared with.
func tasks() map[string]task {
	return map[string]task{
		"stream": {4, func(ctx context.Context, a []string, _ io.Writer) error { return streamTo(ctx, a[0], a[1], a[2], a[3]) }},
		"staged": {5, func(ctx context.Context, a []string, _ io.Writer) error {
			return stagedTo(ctx, a[0], a[1], a[2], a[3], a[4])
		}},
		"write": {5, func(ctx context.Context, a []string, out io.Writer) error {
			return writeOut(ctx, a[0], a[1], a[2], a[3], a[4], out)
		}},
		"drain": {3, func(ctx context.Context, a []string, out io.Writer) error { return drain(ctx, a[0], a[1], a[2], out) }},
		"reuse": {4, func(ctx context.Context, a []string, out io.Writer) error {
			return stageOver(ctx, a[0], a[1], a[2], a[3], out)
		}},
		"reach": {1, func(_ context.Context, a []string, _ io.Writer) error { return reaches(a[0]) }},
		"scan":  {2, func(ctx context.Context, a []string, _ io.Writer) error { return scan(ctx, a[0], a[1]) }},
		"loop":  {2, func(_ context.Context, a []string, _ io.Writer) error { return bareLoop(a[0], a[1]) }},
		"gets":  {2, func(ctx context.Context, a []string, _ io.Writer) error { return gets(ctx, a[0], a[1]) }},
	}
}

// perform does a task by its name and arguments.
func perform(ctx context.Context, args []string, stdout io.Writer) error {
	t, ok := tasks()[args[0]]
	if !ok || len(args)-1 != t.arguments {
		return fmt.Errorf("no task %q", args)
	}
	return t.run(ctx, args[1:], stdout)
}

// dialled is a connection to the server at address, over TLS where ca is a file.
func dialled(ctx context.Context, address, ca string) (*client.Client, error) {
	var config *tls.Config
	if ca != "" {
		var err error
		if config, err = auth.ClientTLS(ca, "", "", time.Now()); err != nil {
			return nil, err
		}
	}
	return client.Dial(ctx, client.Options{Address: address, TLS: config})
}

// begun is a connection and the manifest of an image.
func begun(ctx context.Context, address, ca, name string) (*client.Client, *image.Manifest, error) {
	c, err := dialled(ctx, address, ca)
	if err != nil {
		return nil, nil, err
	}
	found, err := c.Manifest(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	m, err := image.Decode(found.Raw)
	return c, m, err
}

// streamTo installs as Install.LowMemory does.
func streamTo(ctx context.Context, address, ca, name, directory string) error {
	c, m, err := begun(ctx, address, ca, name)
	if err != nil {
		return err
	}
	defer c.Close() // only read from
	root, err := os.OpenRoot(directory)
	if err != nil {
		return err
	}
	defer root.Close() // only a directory
	bring := func(ctx context.Context, objects []image.Object, to *unpack.Writer) error {
		return stage.Stream(ctx, []stage.Fetcher{c}, to, objects, stage.Options{})
	}
	return unpack.Stream(ctx, bring, root, m, unpack.Options{})
}

// stagedTo installs as usual: everything into memory, then written.
func stagedTo(ctx context.Context, address, ca, name, file, directory string) error {
	c, m, err := begun(ctx, address, ca, name)
	if err != nil {
		return err
	}
	defer c.Close() // only read from
	memory, err := os.Create(file)
	if err != nil {
		return err
	}
	defer os.Remove(file)
	defer memory.Close()
	objects, err := stage.Run(ctx, []stage.Fetcher{c}, memory, m.Objects(), stage.Options{})
	if err != nil {
		return err
	}
	return unpackTo(ctx, objects, m, directory)
}

func unpackTo(ctx context.Context, objects object.Getter, m *image.Manifest, directory string) error {
	root, err := os.OpenRoot(directory)
	if err != nil {
		return err
	}
	defer root.Close() // only a directory
	return unpack.Run(ctx, objects, root, m, unpack.Options{})
}

// writeOut stages an image, packed as it comes or plain, and then writes it. It
// reports what the writing alone took.
func writeOut(ctx context.Context, address, name, form, file, directory string, stdout io.Writer) error {
	c, m, err := begun(ctx, address, "", name)
	if err != nil {
		return err
	}
	defer c.Close() // only read from
	memory, err := os.Create(file)
	if err != nil {
		return err
	}
	defer os.Remove(file)
	defer memory.Close()
	w, err := pack.NewWriter(memory, pack.Options{})
	if err != nil {
		return err
	}
	var sink stage.Sink = w
	if form == plainForm {
		sink = unpacking{w}
	}
	if err := stage.Stream(ctx, []stage.Fetcher{c}, sink, m.Objects(), stage.Options{}); err != nil {
		return err
	}
	begin, before := time.Now(), ownTime()
	if err := unpackTo(ctx, w.Reader(), m, directory); err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(written{time.Since(begin), ownTime() - before})
}

// written is what writing took.
type written struct{ Wall, CPU time.Duration }

// ownTime is the processor time of this process.
func ownTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u) // it fails for unknown arguments only
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// plainForm keeps objects as their files are, as dd and tar have them.
const plainForm = "plain"

// unpacking keeps objects unpacked.
type unpacking struct{ *pack.Writer }

func (u unpacking) Append(info object.Info, encoded []byte) error {
	unpacked, err := zstd.Decode(nil, info, encoded)
	if err != nil {
		return err
	}
	return u.AppendVerified(plain(info), unpacked)
}

func (u unpacking) AppendStored(info object.Info, r io.Reader) error {
	unpacked, err := zstd.Open(info, r)
	if err != nil {
		return err
	}
	defer unpacked.Close() // only read from
	return u.Writer.AppendStored(plain(info), unpacked)
}

func plain(info object.Info) object.Info {
	return object.Info{Digest: info.Digest, Size: info.Size, StoredSize: info.Size}
}

// drained is what one client saw.
type drained struct {
	Seconds float64
	Bytes   uint64 // encoded
}

// drain fetches an image and throws it away.
func drain(ctx context.Context, address, ca, name string, stdout io.Writer) error {
	var seen drained
	begin := time.Now()
	c, m, err := begun(ctx, address, ca, name)
	if err != nil {
		return err
	}
	defer c.Close() // only read from
	var digests []object.Digest
	for _, o := range m.Objects() {
		digests = append(digests, o.Digest)
	}
	err = c.Fetch(ctx, digests, func(p object.Piece) error {
		seen.Bytes += uint64(len(p.Data))
		return nil
	})
	if err != nil {
		return err
	}
	seen.Seconds = time.Since(begin).Seconds()
	return json.NewEncoder(stdout).Encode(seen)
}
