package main

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"os"
	"os/exec"
	"sync/atomic"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/installer/stage"
)

// changedImage is the server root with one file in changedShare changed.
const (
	changedImage = "bench/server/2"
	changedShare = 20
)

// reusePart counts what goes over the wire to a machine that has the image, or
// one like it, on its disk.
func reusePart(ctx context.Context, g *ground) ([]row, error) {
	tree, err := g.tree(ctx)
	if err != nil {
		return nil, err
	}
	changed := g.path("changed.tar")
	if err := changeFiles(g.tar(), changed); err != nil {
		return nil, err
	}
	server, err := g.imageserver(ctx, g.path("store"), true)
	if err != nil {
		return nil, err
	}
	defer server.stop()
	if err := g.firstlight(ctx, server, "image", "add", changedImage, changed); err != nil {
		return nil, err
	}
	same, err := g.reused(ctx, server, serverImage, tree)
	if err != nil {
		return nil, err
	}
	other, err := g.reused(ctx, server, changedImage, tree)
	if err != nil {
		return nil, err
	}
	return []row{
		{what: "bytes on the wire, same image again", ours: fmt.Sprintf("%.2f MB", float64(same.Wire)/megabyte),
			beside: fmt.Sprintf("image, compressed: %.0f MB", float64(same.Compressed)/megabyte), value: float64(same.Wire) / float64(same.Compressed), unit: "×", bound: 0.005},
		{what: "bytes of objects on the wire, 5 % of the files changed", ours: fmt.Sprintf("%.2f MB", float64(other.Wire-other.Manifest)/megabyte),
			beside: fmt.Sprintf("missing objects, compressed: %.2f MB", float64(other.Missing)/megabyte), value: float64(other.Wire-other.Manifest) / float64(other.Missing), unit: "×", bound: 1.02},
		{what: "the same with the manifest", ours: fmt.Sprintf("%.2f MB", float64(other.Wire)/megabyte),
			beside: "missing objects, compressed", value: float64(other.Wire) / float64(other.Missing), unit: "×"},
	}, nil
}

// reused is what one staging over an old tree took. All are bytes.
type reused struct {
	Compressed uint64 // of all objects of the image, as they are stored
	Missing    uint64 // of those that the tree does not have
	Manifest   uint64 // both ways, up to where the manifest is there
	Wire       uint64 // both ways, in all
}

func (g *ground) reused(ctx context.Context, server *imageserver, name, tree string) (r reused, err error) {
	between, err := newCounter(server.address)
	if err != nil {
		return r, err
	}
	defer between.close()
	cmd := exec.CommandContext(ctx, self, taskArgument, "reuse", between.address(), name, tree, g.path("pack"))
	cmd.Stderr = os.Stderr
	said, err := cmd.StdoutPipe()
	if err != nil {
		return r, err
	}
	if err := cmd.Start(); err != nil {
		return r, err
	}
	// The first line comes when the manifest is there, the second at the end.
	lines := json.NewDecoder(said)
	err = lines.Decode(&r)
	manifest := between.bytes.Load()
	if err == nil {
		err = lines.Decode(&r)
	}
	err = errors.Join(err, cmd.Wait())
	r.Manifest, r.Wire = manifest, between.bytes.Load()
	return r, err
}

// stageOver gathers an image's objects as a machine does that has tree on a
// disk.
func stageOver(ctx context.Context, address, name, tree, file string, stdout io.Writer) error {
	c, err := dialled(ctx, address, "")
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
	var r reused
	for _, bytes := range found.Stored {
		r.Compressed += bytes
	}
	answers := json.NewEncoder(stdout)
	if err := answers.Encode(r); err != nil {
		return err
	}
	memory, err := os.Create(file)
	if err != nil {
		return err
	}
	defer os.Remove(file)
	defer memory.Close()
	asked := &askedFor{client: c, stored: found.Stored}
	_, err = stage.Run(ctx, []stage.Fetcher{asked}, memory, m.Objects(), stage.Options{
		Trees: []stage.Tree{{Name: tree, Source: stage.FromOldOS, FS: os.DirFS(tree)}},
	})
	if err != nil {
		return err
	}
	r.Missing = asked.bytes.Load()
	return answers.Encode(r)
}

// askedFor adds up the stored sizes of what is asked for.
type askedFor struct {
	client *client.Client
	stored map[object.Digest]uint64
	bytes  atomic.Uint64
}

func (a *askedFor) Fetch(ctx context.Context, digests []object.Digest, piece func(object.Piece) error) error {
	for _, d := range digests {
		a.bytes.Add(a.stored[d])
	}
	return a.client.Fetch(ctx, digests, piece)
}

// counter passes connections on to an address and counts bytes, both ways.
type counter struct {
	listener net.Listener
	bytes    atomic.Uint64
}

func newCounter(to string) (*counter, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &counter{listener: listener}
	go func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return // closed
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				_ = from.Close() // it sees the end
				continue
			}
			for _, way := range [][2]net.Conn{{server, from}, {from, server}} {
				go func() {
					// Whichever end goes first, the other sees it.
					_, _ = io.Copy(io.MultiWriter(way[0], c), struct{ io.Reader }{way[1]})
					_ = way[0].Close()
				}()
			}
		}
	}()
	return c, nil
}

// Write counts.
func (c *counter) Write(p []byte) (int, error) {
	c.bytes.Add(uint64(len(p)))
	return len(p), nil
}

func (c *counter) address() string { return c.listener.Addr().String() }
func (c *counter) close()          { _ = c.listener.Close() } // nothing is lost

// changeFiles copies a tar and changes one regular file in changedShare, chosen
// by its name, in its middle. Programs stay programs: the bytes are all in the
// second half.
func changeFiles(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() // only read from
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	r, w := tar.NewReader(in), tar.NewWriter(out)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return w.Close()
		}
		if err != nil {
			return err
		}
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		hash := fnv.New32()
		_, _ = io.WriteString(hash, h.Name) // a hash takes everything
		if hash.Sum32()%changedShare != 0 {
			if _, err := io.Copy(w, r); err != nil {
				return err
			}
			continue
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		for i := len(data) / 2; i < len(data); i += 4096 {
			data[i] ^= 1
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
}
