// Package lab is a whole site on one machine, for the demo and the end-to-end
// tests: keys, an image server with an image, what a boot server serves, and
// virtual machines to install. It drives the real programs by their command
// lines; both its users go the same way, so that what is shown is what is
// tested.
package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/hack/child"
)

// hostInGuest is where a machine sees the host's loopback.
const hostInGuest = "10.0.2.2"

// stream is the name below which the image is added; its version is the time
// at which the root file-system was made.
const stream = "debian/12"

// Site is a directory with keys and an image store.
type Site struct {
	Products Products
	// Dir holds secrets/ (tools/pki), store/ (the image server's data) and
	// boot/ (what machines boot with). It may be used again later.
	Dir string
	// Image is the full name of the image.
	Image string
	// Said is called with one line for each thing that is done.
	Said func(format string, args ...any)
}

// OpenSite prepares a site in dir: what is there from an earlier time and
// still fits is used again.
func OpenSite(ctx context.Context, products Products, dir string, said func(format string, args ...any)) (*Site, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("opening a site: %w", err)
	}
	s := &Site{Products: products, Dir: dir, Said: said}
	if err := os.MkdirAll(filepath.Join(dir, "boot"), 0o755); err != nil {
		return nil, fmt.Errorf("opening a site: %w", err)
	}
	if err := s.MakeKeys(ctx); err != nil {
		return nil, err
	}
	root, err := os.Stat(products.Root)
	if err != nil {
		return nil, fmt.Errorf("opening a site: %w", err)
	}
	s.Image = stream + "/" + root.ModTime().UTC().Format("2006-01-02T150405")
	if err := s.addImage(ctx); err != nil {
		return nil, err
	}
	return s, s.makeInitramfs(ctx)
}

// MakeKeys makes the site's CA and certificates, the server's valid also for
// the host as machines see it. What is there already stays.
func (s *Site) MakeKeys(ctx context.Context) error {
	return s.firstlight(ctx, "keys", "init", "--site", s.Dir, "--address", "127.0.0.1,localhost,"+hostInGuest)
}

// Secret is a file of the site's secrets directory.
func (s *Site) Secret(name string) string { return filepath.Join(s.Dir, "secrets", name) }

func (s *Site) store() string { return filepath.Join(s.Dir, "store") }

func (s *Site) addImage(ctx context.Context) error {
	// What the store is known to hold stands beside it, written when the
	// image was added completely: its name, and what looked at its files then.
	// A newer program may know more of an image than an older one wrote down.
	mark := filepath.Join(s.Dir, "image")
	program, err := os.ReadFile(s.Products.Firstlight)
	if err != nil {
		return fmt.Errorf("adding the image: %w", err)
	}
	holds := fmt.Sprintf("%s by %x\n", s.Image, sha256.Sum256(program))
	if known, err := os.ReadFile(mark); err == nil && string(known) == holds {
		s.Said("image %s is there from an earlier run", s.Image)
		return nil
	}
	if err := os.RemoveAll(s.store()); err != nil { // a name never changes its meaning
		return fmt.Errorf("adding the image: %w", err)
	}
	server, err := s.Serve(ctx, s.store())
	if err != nil {
		return err
	}
	defer server.Stop()
	start := time.Now()
	if err := s.Add(ctx, server, s.Image, s.Products.Root); err != nil {
		return err
	}
	s.Said("image %s added in %.1f s", s.Image, time.Since(start).Seconds())
	return os.WriteFile(mark, []byte(holds), 0o644)
}

// Add adds an image to a server that is running: source is what `firstlight
// image add` takes.
func (s *Site) Add(ctx context.Context, server *Server, name, source string) error {
	return s.firstlight(ctx, "image", "add", name, source, "--imageserver", server.Address(), "--site", s.Dir, "--quiet")
}

// Kernel and Initramfs are what machines of this site boot with: Debian's
// kernel, and the initramfs with its modules and the site's CA.
func (s *Site) Kernel() string { return s.Products.Kernel }

// Initramfs is described at Kernel.
func (s *Site) Initramfs() string { return filepath.Join(s.Dir, "boot", "initramfs") }

func (s *Site) makeInitramfs(ctx context.Context) error {
	newer, err := newerThanAll(s.Initramfs(), s.Products.Initramfs, s.Products.Firstlight, s.Products.Kernel, s.Secret("CA.pem"))
	if err != nil || newer {
		return err
	}
	// Written beside and renamed: an interrupted run leaves no half of it.
	next := s.Initramfs() + ".new"
	if err := s.MakeMedium(ctx, next); err != nil {
		return err
	}
	if err := os.Rename(next, s.Initramfs()); err != nil {
		return fmt.Errorf("making the boot medium: %w", err)
	}
	var total int64
	for _, f := range []string{s.Kernel(), s.Initramfs()} {
		i, err := os.Stat(f)
		if err != nil {
			return fmt.Errorf("making the boot medium: %w", err)
		}
		total += i.Size()
	}
	s.Said("boot medium: kernel and initramfs are %.1f MB together", float64(total)/1e6)
	return nil
}

// MakeMedium makes a boot medium's initramfs, with further flags of `firstlight
// media initramfs`.
func (s *Site) MakeMedium(ctx context.Context, out string, flags ...string) error {
	return s.firstlight(ctx, append([]string{"media", "initramfs", "--out", out, "--modules", "common",
		"--kernel", s.Products.KernelDir, "--base", s.Products.Initramfs, "--ca", s.Secret("CA.pem")}, flags...)...)
}

// MakeBootable makes a medium of a kind that a firmware starts, uki, iso or usb,
// with further flags of `firstlight media`.
func (s *Site) MakeBootable(ctx context.Context, kind, out string, flags ...string) error {
	return s.firstlight(ctx, append([]string{"media", kind, "--out", out, "--modules", "vm",
		"--kernel", s.Products.KernelDir, "--base", s.Products.Initramfs, "--ca", s.Secret("CA.pem")}, flags...)...)
}

// Sign signs the configuration in a machine's directory, for a server that is
// running.
func (s *Site) Sign(ctx context.Context, server *Server, machine string) error {
	return s.firstlight(ctx, "keys", "sign", machine, "--site", s.Dir, "--imageserver", server.Address())
}

// newerThanAll is true if file is there and not older than any of sources.
func newerThanAll(file string, sources ...string) (bool, error) {
	made, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, source := range sources {
		i, err := os.Stat(source)
		if err != nil {
			return false, err
		}
		if i.ModTime().After(made.ModTime()) {
			return false, nil
		}
	}
	return true, nil
}

// firstlight runs the operator's command line.
func (s *Site) firstlight(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, s.Products.Firstlight, args...)
	// The person's own settings have no place in a lab.
	cmd.Env = withoutOwn(os.Environ())
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("firstlight %s: %w\n%s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

func withoutOwn(env []string) []string {
	var clean []string
	for _, e := range env {
		if !strings.HasPrefix(e, "FIRSTLIGHT_") && !strings.HasPrefix(e, "IMAGESERVER_") {
			clean = append(clean, e)
		}
	}
	return clean
}

// Server is a running image server.
type Server struct {
	Port int
	proc *child.Child
	log  *os.File
}

// Serve starts the image server on data, on a free port of the loopback, and
// returns when it answers.
func (s *Site) Serve(ctx context.Context, data string, flags ...string) (*Server, error) {
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	log, err := os.Create(data + ".log")
	if err != nil {
		return nil, fmt.Errorf("starting the image server: %w", err)
	}
	cmd := exec.Command(s.Products.ImageServer, append([]string{"--listen", fmt.Sprintf("127.0.0.1:%d", port), "--data", data,
		"--tls-cert", s.Secret("imageserver.pem"), "--tls-key", s.Secret("imageserver-key.pem"), "--client-ca", s.Secret("CA.pem")}, flags...)...)
	cmd.Env = withoutOwn(os.Environ())
	cmd.Stdout, cmd.Stderr = log, log
	proc, err := child.Start(cmd, false)
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	server := &Server{port, proc, log}
	for deadline := time.Now().Add(20 * time.Second); ; {
		conn, err := net.DialTimeout("tcp", server.Address(), time.Second)
		if err == nil {
			return server, conn.Close()
		}
		select {
		case <-proc.Done():
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
			if time.Now().Before(deadline) {
				continue
			}
		}
		server.Stop()
		said, _ := os.ReadFile(log.Name()) // its absence says as much
		return nil, fmt.Errorf("the image server does not answer: %w\n%s", err, bytes.TrimSpace(said))
	}
}

// Address is host:port, as seen on the host.
func (s *Server) Address() string { return fmt.Sprintf("127.0.0.1:%d", s.Port) }

// Stop ends the server as its service manager would.
func (s *Server) Stop() {
	s.proc.Stop(5 * time.Second)
	_ = s.log.Close() // the server wrote to it, we did not
}

// Kill ends the server as a power cut would.
func (s *Server) Kill() {
	s.proc.Stop(0)
	_ = s.log.Close() // as in Stop
}

// FreePort is a TCP port of the loopback that nobody listens on now.
func FreePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("looking for a free port: %w", err)
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

// CopyStore makes a copy of the site's store, for tests that damage one: to
// is a path that does not exist yet, on the same file-system. Objects are
// hard links, as they never change; change one with DamageLargest only.
func (s *Site) CopyStore(to string) error {
	err := filepath.WalkDir(s.store(), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(s.store(), path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case e.IsDir():
			return os.MkdirAll(target, 0o755)
		case !e.Type().IsRegular():
			return nil
		case strings.HasPrefix(rel, "objects"+string(filepath.Separator)):
			return os.Link(path, target)
		}
		return copyFile(target, path)
	})
	if err != nil {
		return fmt.Errorf("copying the store: %w", err)
	}
	return nil
}

// DamageLargest flips one bit in the middle of the largest object of a store
// that CopyStore made, and returns the object's file.
func DamageLargest(store string) (string, error) {
	var largest string
	var size int64
	err := filepath.WalkDir(filepath.Join(store, "objects"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		i, err := e.Info()
		if err == nil && i.Size() > size {
			largest, size = path, i.Size()
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("damaging an object: %w", err)
	}
	if largest == "" {
		return "", fmt.Errorf("damaging an object: there is none in %s", store)
	}
	data, err := os.ReadFile(largest)
	if err != nil {
		return "", fmt.Errorf("damaging an object: %w", err)
	}
	data[len(data)/2] ^= 0x10
	// The file may be shared with the undamaged store: a new one takes its place.
	if err := os.Remove(largest); err != nil {
		return "", fmt.Errorf("damaging an object: %w", err)
	}
	return largest, os.WriteFile(largest, data, 0o644)
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// CopySparse copies a disk in a sparse file, holes and all, in place of what
// was there.
func CopySparse(to, from string) error {
	out, err := exec.Command("cp", "--sparse=always", "--reflink=auto", "--", from, to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("copying a disk: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// HashDisk is the SHA-256 of a disk in a sparse file: of everything that was
// ever written to it, with its place (lseek(2), SEEK_DATA). A disk that zeros
// were written to, where it had nothing before, has changed.
func HashDisk(path string) ([sha256.Size]byte, error) {
	var sum [sha256.Size]byte
	f, err := os.Open(path)
	if err != nil {
		return sum, fmt.Errorf("hashing a disk: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	for at := int64(0); ; {
		from, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // only a hole is left
		}
		if err != nil {
			return sum, fmt.Errorf("hashing %s: %w", path, err)
		}
		if at, err = unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE); err != nil {
			return sum, fmt.Errorf("hashing %s: %w", path, err)
		}
		fmt.Fprintf(h, "%d-%d\n", from, at)
		if _, err := io.Copy(h, io.NewSectionReader(f, from, at-from)); err != nil {
			return sum, fmt.Errorf("hashing %s: %w", path, err)
		}
	}
	h.Sum(sum[:0])
	return sum, nil
}

// Relay stands between a machine and an image server and counts what comes
// back.
type Relay struct {
	Port     int
	listener net.Listener
}

// NewRelay forwards connections to a port of the loopback. Once that many
// bytes have come back through all connections, reached is called, once, from
// a goroutine of its own. Close ends it.
func NewRelay(to int, bytes int64, reached func()) (*Relay, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("relaying to port %d: %w", to, err)
	}
	var count atomic.Int64
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return // closed
			}
			go func() {
				defer client.Close()
				server, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", to))
				if err != nil {
					return // the client sees a connection that ends at once
				}
				defer server.Close()
				go func() {
					// Either end may go at any time; the other then sees it.
					_, _ = io.Copy(server, client)
					_ = server.Close()
				}()
				buf := make([]byte, 32<<10)
				for {
					n, err := server.Read(buf)
					if n > 0 {
						if _, err := client.Write(buf[:n]); err != nil {
							return
						}
						if now := count.Add(int64(n)); now >= bytes && now-int64(n) < bytes {
							go reached()
						}
					}
					if err != nil {
						return
					}
				}
			}()
		}
	}()
	return &Relay{l.Addr().(*net.TCPAddr).Port, l}, nil
}

// Close stops listening; connections that are open end with their ends.
func (r *Relay) Close() error { return r.listener.Close() }
