package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/hack/lab"
)

// serverImage is the name of the server root in the store.
const serverImage = "bench/server/1"

// ground is what the side by side parts share: a directory in memory with the
// server root as an image, as a tar and as a compressed tar, and the servers
// that give them out.
type ground struct {
	checkout string
	memory   string // a directory in a tmpfs
	runs     int    // of each way, for a median
	say      func(format string, args ...any)
	site     *lab.Site // its keys
}

// prepare makes the ground; close takes it away.
func prepare(ctx context.Context, checkout string, runs int, say func(string, ...any)) (g *ground, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the benchmarks mount file-systems: run them as root")
	}
	if err := privateMounts(); err != nil {
		return nil, err
	}
	products, err := lab.FindProducts(checkout)
	if err != nil {
		return nil, err
	}
	g = &ground{checkout: checkout, runs: runs, say: say}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	if g.memory, err = os.MkdirTemp("", "firstlight-bench-"); err != nil {
		return nil, err
	}
	if err := unix.Mount("bench", g.memory, "tmpfs", 0, "size=80%,mode=755"); err != nil {
		return nil, fmt.Errorf("mounting a tmpfs: %w", err)
	}
	g.site = &lab.Site{Products: products, Dir: g.path("site"), Said: say}
	if err := os.MkdirAll(g.site.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := g.site.MakeKeys(ctx); err != nil {
		return nil, err
	}
	return g, g.addServerRoot(ctx)
}

func (g *ground) path(name string) string { return filepath.Join(g.memory, name) }

// tar is the server root as mmdebstrap made it.
func (g *ground) tar() string { return filepath.Join(g.checkout, "build", "bench", "server.tar") }

// addServerRoot puts the server root into a store. The store is kept between
// runs, in build/bench, and copied into memory.
func (g *ground) addServerRoot(ctx context.Context) error {
	kept := filepath.Join(g.checkout, "build", "bench", "store")
	mark := kept + ".of"
	made, err := os.Stat(g.tar())
	if err != nil {
		return fmt.Errorf("%w (hack/bench/rootfs makes it)", err)
	}
	stamp := made.ModTime().String()
	if was, err := os.ReadFile(mark); err != nil || string(was) != stamp {
		g.say("adding %s", g.tar())
		if err := errors.Join(os.RemoveAll(mark), os.RemoveAll(kept), os.MkdirAll(kept, 0o755)); err != nil {
			return err
		}
		server, err := g.imageserver(ctx, kept, true)
		if err != nil {
			return err
		}
		err = g.firstlight(ctx, server, "image", "add", serverImage, g.tar())
		server.stop()
		if err != nil {
			return err
		}
		if err := os.WriteFile(mark, []byte(stamp), 0o644); err != nil {
			return err
		}
	}
	return command(ctx, "cp", "-a", kept, g.path("store"))
}

// firstlight runs the operator's command against a server.
func (g *ground) firstlight(ctx context.Context, server *imageserver, args ...string) error {
	args = append(args, "--imageserver", server.address, "--quiet")
	if server.insecure {
		args = append(args, "--insecure")
	} else {
		args = append(args, "--site", g.site.Dir)
	}
	return command(ctx, g.site.Products.Firstlight, args...)
}

// imageserver is a running one.
type imageserver struct {
	*daemon
	address  string
	insecure bool
}

// imageserver starts one on data, on the loopback, as it is started in
// production but for --insecure.
func (g *ground) imageserver(ctx context.Context, data string, insecure bool) (*imageserver, error) {
	port, err := lab.FreePort()
	if err != nil {
		return nil, err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	return g.imageserverAt(ctx, address, data, insecure, nil, func() error { return reaches(address) })
}

// imageserverAt starts one at an address; prefix is put before its command. It
// does not scrub: that costs the same whether anybody installs or not.
func (g *ground) imageserverAt(ctx context.Context, address, data string, insecure bool, prefix []string, reach func() error) (*imageserver, error) {
	args := append(prefix, g.site.Products.ImageServer, "--listen", address, "--data", data, "--scrub-rate", "0")
	if insecure {
		args = append(args, "--insecure")
	} else {
		args = append(args, "--tls-cert", g.site.Secret("imageserver.pem"), "--tls-key", g.site.Secret("imageserver-key.pem"), "--client-ca", g.site.Secret("CA.pem"))
	}
	d, err := start(ctx, g.path("imageserver.log"), exec.Command(args[0], args[1:]...), reach)
	if err != nil {
		return nil, err
	}
	return &imageserver{d, address, insecure}, nil
}

// nginx serves directory at address, over TLS too at tlsAddress, as Debian
// configures it but for its logs.
func (g *ground) nginx(ctx context.Context, address, tlsAddress, directory string) (*daemon, error) {
	config := g.path("nginx.conf")
	text := strings.NewReplacer("MEMORY", g.memory, "ADDRESS", address, "TLSADDR", tlsAddress, "DIRECTORY", directory,
		"CERT", g.site.Secret("imageserver.pem"), "KEY", g.site.Secret("imageserver-key.pem")).Replace(`
user root; worker_processes 1; daemon off; pid MEMORY/nginx.pid; error_log MEMORY/nginx.log;
events { worker_connections 768; }
http {
	sendfile on; tcp_nopush on; types_hash_max_size 2048; default_type application/octet-stream;
	access_log off; keepalive_requests 1000000; ssl_protocols TLSv1.3;
	server { listen ADDRESS; root DIRECTORY; }
	server { listen TLSADDR ssl; root DIRECTORY; ssl_certificate CERT; ssl_certificate_key KEY; }
}
`)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	return start(ctx, g.path("nginx.said"), exec.Command("nginx", "-c", config), func() error { return reaches(address) })
}

func (g *ground) close() {
	// What cannot be unmounted goes with the mount namespace.
	_ = unix.Unmount(g.memory, unix.MNT_DETACH)
	_ = os.Remove(g.memory)
}

// namespaceSet says that the process has its own mount namespace.
const namespaceSet = "FIRSTLIGHT_BENCH_MOUNTS"

// privateMounts makes sure that no mount of ours is seen outside.
func privateMounts() error {
	if os.Getenv(namespaceSet) == "" {
		return errors.New("not in a mount namespace of its own")
	}
	return unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "")
}
