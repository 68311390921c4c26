package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/firstlight/firstlight/hack/lab"
)

// task runs one of tasks in a process of its own.
func (g *ground) task(ctx context.Context, args ...string) (cost, error) {
	return timed(ctx, self, append([]string{taskArgument}, args...)...)
}

// self is this program, taskArgument what makes it perform a task.
const (
	self         = "/proc/self/exe"
	taskArgument = "task"
)

// installPart compares installing with what everybody writes who has no
// installer.
func installPart(ctx context.Context, g *ground) ([]row, error) {
	var rows []row
	packed := g.path("www")
	if err := os.MkdirAll(packed, 0o755); err != nil {
		return nil, err
	}
	if err := command(ctx, "zstd", "-q", "-f", "-3", "-T0", g.tar(), "-o", filepath.Join(packed, "server.tar.zst")); err != nil {
		return nil, err
	}
	plain, err1 := freeAddress()
	secure, err2 := freeAddress()
	if err1 != nil || err2 != nil {
		return nil, fmt.Errorf("%w, %w", err1, err2)
	}
	www, err := g.nginx(ctx, plain, secure, packed)
	if err != nil {
		return nil, err
	}
	defer www.stop()
	for _, way := range []struct {
		name     string
		insecure bool
		url      string
		bounds   [2]float64
	}{
		{"no TLS", true, "http://" + plain, [2]float64{0.90, 1.25}},
		{"TLS", false, "--cacert " + g.site.Secret("CA.pem") + " https://" + secure, [2]float64{}},
	} {
		server, err := g.imageserver(ctx, g.path("store"), way.insecure)
		if err != nil {
			return nil, err
		}
		more, err := g.installRows(ctx, server, way.name, way.url, way.bounds)
		server.stop()
		if err != nil {
			return nil, err
		}
		rows = append(rows, more...)
	}
	return rows, nil
}

func (g *ground) installRows(ctx context.Context, server *imageserver, name, url string, bounds [2]float64) ([]row, error) {
	ca := g.authority(server)
	stream := func() (cost, error) {
		return g.withVolume(ctx, func(root string) (cost, error) {
			return g.task(ctx, "stream", server.address, ca, serverImage, root)
		})
	}
	staged := func() (cost, error) {
		return g.withVolume(ctx, func(root string) (cost, error) {
			return g.task(ctx, "staged", server.address, ca, serverImage, g.path("pack"), root)
		})
	}
	pipe := func() (cost, error) {
		return g.withVolume(ctx, func(root string) (cost, error) {
			return timed(ctx, "sh", "-c", fmt.Sprintf("set -e; curl -sSf %s/server.tar.zst | zstd -dc | tar -x -C %s; sync -f %s", url, root, root))
		})
	}
	g.say("installing, %s: streaming beside curl | zstd | tar", name)
	one, err := beside(g.runs, stream, pipe)
	if err != nil {
		return nil, err
	}
	g.say("installing, %s: staged beside streaming", name)
	two, err := beside(g.runs, staged, stream)
	if err != nil {
		return nil, err
	}
	return []row{
		one.row("streaming installation, "+name, "curl, zstd -dc, tar x", wallOf, bounds[0]),
		two.row("staged installation, "+name, "streaming", wallOf, bounds[1]),
	}, nil
}

// authority is the CA that a server's certificate is checked with, "" where it
// has none.
func (g *ground) authority(server *imageserver) string {
	if server.insecure {
		return ""
	}
	return g.site.Secret("CA.pem")
}

func freeAddress() (string, error) {
	port, err := lab.FreePort()
	return net.JoinHostPort("127.0.0.1", fmt.Sprint(port)), err
}

// tree is the server root, unpacked in memory.
func (g *ground) tree(ctx context.Context) (string, error) {
	directory := g.path("tree")
	if _, err := os.Stat(directory); err == nil {
		return directory, nil
	}
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return "", err
	}
	return directory, command(ctx, "tar", "-x", "-f", g.tar(), "-C", directory)
}

// writePart compares writing what is staged with dd and tar, which find the same
// bytes unpacked.
func writePart(ctx context.Context, g *ground) ([]row, error) {
	server, err := g.imageserver(ctx, g.path("store"), true)
	if err != nil {
		return nil, err
	}
	defer server.stop()
	source := g.path("plain.tar")
	if err := command(ctx, "cp", g.tar(), source); err != nil {
		return nil, err
	}
	write := func(form string) func() (cost, error) {
		return func() (cost, error) {
			return g.withVolume(ctx, func(root string) (cost, error) {
				var took written
				err := g.answer(ctx, &took, "write", server.address, serverImage, form, g.path("pack"), root)
				return cost{took.Wall, took.CPU}, err
			})
		}
	}
	dd := func() (cost, error) {
		return g.withVolume(ctx, func(root string) (cost, error) {
			return timed(ctx, "dd", "if="+source, "of="+filepath.Join(root, "file"), "bs=1M", "conv=fsync")
		})
	}
	tar := func() (cost, error) {
		return g.withVolume(ctx, func(root string) (cost, error) {
			return timed(ctx, "sh", "-c", fmt.Sprintf("tar -x -f %s -C %s && sync -f %s", source, root, root))
		})
	}
	var rows []row
	for _, form := range []struct {
		name, text string
		bounds     [2]float64
	}{
		{plainForm, "write-out, files unpacked as for the others", [2]float64{1.15, 0.60}},
		{"packed", "write-out of what is staged, unpacking it", [2]float64{}},
	} {
		g.say("%s, beside dd and tar", form.text)
		one, err := beside(g.runs, write(form.name), dd)
		if err != nil {
			return nil, err
		}
		two, err := beside(g.runs, write(form.name), tar)
		if err != nil {
			return nil, err
		}
		rows = append(rows, one.row(form.text, "dd", wallOf, form.bounds[0]), two.row(form.text, "tar x", wallOf, form.bounds[1]))
	}
	return rows, nil
}

// answer runs a task in a process of its own and reads its answer.
func (g *ground) answer(ctx context.Context, into any, args ...string) error {
	cmd := exec.CommandContext(ctx, self, append([]string{taskArgument}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	return json.Unmarshal(out, into)
}

// programs that the parts run and hack/setup does not install.
func missing(programs ...string) error {
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("%w (hack/bench/setup installs it)", err)
		}
	}
	return nil
}
