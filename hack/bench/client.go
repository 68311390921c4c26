package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/pack"
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
		"stage": {4, func(ctx context.Context, a []string, _ io.Writer) error {
			return stageOnly(ctx, a[0], a[1], a[2], a[3])
		}},
		"write": {2, func(ctx context.Context, a []string, _ io.Writer) error { return writeOut(ctx, a[0], a[1]) }},
		"drain": {4, func(ctx context.Context, a []string, out io.Writer) error {
			return drain(ctx, a[0], a[1], a[2], a[3], out)
		}},
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

// stageOnly leaves a finished pack and the manifest in directory.
func stageOnly(ctx context.Context, address, ca, name, directory string) error {
	c, err := dialled(ctx, address, ca)
	if err != nil {
		return err
	}
	defer c.Close() // only read from
	found, err := c.Manifest(ctx, name)
	if err != nil {
		return err
	}
	m, err := image.Decode(found.Raw)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(directory, "manifest"), found.Raw, 0o600); err != nil {
		return err
	}
	file, err := os.Create(filepath.Join(directory, "pack"))
	if err != nil {
		return err
	}
	defer file.Close()
	w, err := pack.NewWriter(file, pack.Options{})
	if err != nil {
		return err
	}
	if err := stage.Stream(ctx, []stage.Fetcher{c}, w, m.Objects(), stage.Options{}); err != nil {
		return err
	}
	_, err = w.Finish()
	return err
}

// writeOut writes what stageOnly left.
func writeOut(ctx context.Context, from, directory string) error {
	raw, err := os.ReadFile(filepath.Join(from, "manifest"))
	if err != nil {
		return err
	}
	m, err := image.Decode(raw)
	if err != nil {
		return err
	}
	file, err := os.Open(filepath.Join(from, "pack"))
	if err != nil {
		return err
	}
	defer file.Close() // only read from
	stat, err := file.Stat()
	if err != nil {
		return err
	}
	objects, err := pack.OpenReader(file, stat.Size())
	if err != nil {
		return err
	}
	return unpackTo(ctx, objects, m, directory)
}

// drained is what one client of drain saw.
type drained struct {
	Seconds float64
	Bytes   uint64 // encoded
}

// drain lets so many clients fetch an image at once, and throw it away.
func drain(ctx context.Context, address, ca, name, clients string, stdout io.Writer) error {
	n, err := strconv.Atoi(clients)
	if err != nil {
		return err
	}
	_, m, err := begun(ctx, address, ca, name)
	if err != nil {
		return err
	}
	var digests []object.Digest
	for _, o := range m.Objects() {
		digests = append(digests, o.Digest)
	}
	all := make([]drained, n)
	group, ctx := errgroup.WithContext(ctx)
	for i := range all {
		group.Go(func() error {
			start := time.Now()
			c, _, err := begun(ctx, address, ca, name)
			if err != nil {
				return err
			}
			defer c.Close() // only read from
			err = c.Fetch(ctx, digests, func(p object.Piece) error {
				all[i].Bytes += uint64(len(p.Data))
				return nil
			})
			all[i].Seconds = time.Since(start).Seconds()
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(all)
}
