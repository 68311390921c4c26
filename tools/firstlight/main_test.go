package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/firstlight/firstlight/imageserver/catalog/store"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/dir"
	"github.com/firstlight/firstlight/imageserver/server"
	"github.com/firstlight/firstlight/proto/auth"
	"github.com/firstlight/firstlight/tools/pki"
)

// lab is a site directory and its image server.
type lab struct {
	site, address, data string
	objects             object.Store
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{site: t.TempDir(), data: t.TempDir()}
	if out := l.must(t, "keys", "init"); !strings.Contains(out, "imageserver") {
		t.Fatalf("keys init printed %q", out)
	}
	objects, err := dir.Open(l.data)
	if err != nil {
		t.Fatal(err)
	}
	l.objects = objects
	images, err := store.Open(l.data, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	metrics := server.NewMetrics("test", images.Len)
	service := server.New(server.Options{Objects: objects, Begin: func() server.Batch { return objects.Begin() }, Images: images,
		Metrics: metrics, Log: log, Workers: 2, Ready: func(context.Context) error { return nil }})
	secrets := pki.Directory(l.site)
	config, err := auth.ServerTLS(filepath.Join(secrets, pki.ImageserverFile), filepath.Join(secrets, pki.ImageserverKeyFile), filepath.Join(secrets, pki.CAFile), false, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	mux := &auth.Mux{TLS: config, RPC: auth.NewServer(server.Policy(), false, server.Tuning()...), Log: log}
	service.Register(mux.RPC)
	if mux.Pages, err = service.Pages(); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.address = listener.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- mux.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, images.Close(), objects.Close()); err != nil {
			t.Error(err)
		}
	})
	return l
}

// run is a call of the program: its output and its exit code.
func (l *lab) run(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	env := map[string]string{"FIRSTLIGHT_SITE": l.site, "FIRSTLIGHT_IMAGESERVER": l.address}
	err := run(t.Context(), args, func(name string) string { return env[name] }, streams{in: strings.NewReader(""), out: &out, err: &errs})
	report(&errs, err)
	return out.String(), errs.String(), exitCode(err)
}

// must is a call that has to succeed.
func (l *lab) must(t *testing.T, args ...string) string {
	t.Helper()
	stdout, stderr, code := l.run(t, args...)
	if code != 0 {
		t.Fatalf("firstlight %s: exit %d\n%s", strings.Join(args, " "), code, stderr)
	}
	return stdout
}

// tree makes a directory with a few files, one of them large.
func tree(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for name, data := range map[string]string{
		"etc/os-release": "ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian 12\"\n",
		"etc/hostname":   "host1\n",
		"usr/big":        strings.Repeat("0123456789abcdef", 200_000),
	} {
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// TestImage goes once through the life of an image.
func TestImage(t *testing.T) {
	l := newLab(t)
	root := tree(t)
	var first added
	decode(t, l.must(t, "image", "add", "debian/12/1", root, "--json", "--quiet"), &first)
	if first.NewObjects != 3 || first.SharedObjects != 0 || first.Existed || first.NewBytes < 3_200_000 || first.PackedBytes > 100_000 {
		t.Errorf("added: %+v", first)
	}
	if err := os.WriteFile(filepath.Join(root, "etc", "hostname"), []byte("host2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var second added
	decode(t, l.must(t, "image", "add", "debian/12/2", root, "--json", "--quiet"), &second)
	if second.NewObjects != 1 || second.SharedObjects != 2 {
		t.Errorf("only what is new must be sent: %+v", second)
	}
	if out := l.must(t, "image", "list", "debian"); !strings.Contains(out, "debian/12/1") || !strings.Contains(out, "Debian 12") {
		t.Errorf("list:\n%s", out)
	}
	if out := l.must(t, "image", "show", "debian"); !strings.Contains(out, "debian/12/2") || !strings.Contains(out, "by admin") {
		t.Errorf("show:\n%s", out)
	}
	if out := l.must(t, "image", "get", "debian/12/1", "etc/hostname"); out != "host1\n" {
		t.Errorf("get: %q", out)
	}
	if out := l.must(t, "image", "get", "debian", "/etc/hostname"); out != "host2\n" {
		t.Errorf("get: %q", out)
	}
	out := filepath.Join(t.TempDir(), "big")
	l.must(t, "image", "get", "debian", "usr/big", "--out", out)
	if got, err := os.ReadFile(out); err != nil || len(got) != 3_200_000 {
		t.Error(len(got), err)
	}
	if _, stderr, code := l.run(t, "image", "delete", "debian/12/1"); code != exitRefused || !strings.Contains(stderr, "would delete image debian/12/1") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	l.must(t, "image", "delete", "debian/12/1", "--yes")
	var left []json.RawMessage
	decode(t, l.must(t, "image", "list", "--output", "json"), &left)
	if len(left) != 1 {
		t.Errorf("%d images are left", len(left))
	}
}

func decode(t *testing.T, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
}

// TestExitCodes holds what scripts rely on.
func TestExitCodes(t *testing.T) {
	l := newLab(t)
	root := tree(t)
	l.must(t, "image", "add", "debian/12/1", root, "--quiet")
	l.must(t, "keys", "issue", "eve", "--role", "viewer")
	eve := filepath.Join(pki.Directory(l.site), "eve")
	elsewhere := t.TempDir()
	if _, err := pki.Init(pki.Directory(elsewhere), time.Now, pki.Options{}); err != nil {
		t.Fatal(err)
	}
	tar := filepath.Join(t.TempDir(), "cut.tar")
	if err := os.WriteFile(tar, bytes.Repeat([]byte("no tar "), 1000), 0o644); err != nil {
		t.Fatal(err)
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		args string
		exit int
		text string
	}{
		"help":                   {"", 0, ""},
		"version":                {"version", 0, ""},
		"completion":             {"completion bash", 0, ""},
		"unknown command":        {"imgae list", 2, "did you mean image"},
		"unknown subcommand":     {"image lst", 2, "no command"},
		"unknown flag":           {"image list --colour", 2, "unknown flag"},
		"missing argument":       {"image add x", 2, "usage: "},
		"bad output":             {"image list --output xml", 2, "table or json"},
		"no such source":         {"image add a/1 /nonexistent", 2, "no such file"},
		"bad name":               {"image show ../x", 2, "IMG-037"},
		"not there":              {"image show debian/12/2", 4, "nearest names are debian/12/1"},
		"not in the image":       {"image get debian/12/1 etc/shadow", 4, "no file"},
		"nobody listens":         {"image list --imageserver " + closed.Addr().String(), 7, "IMG-030"},
		"another site":           {"image list --site " + elsewhere, 8, "TRU-001"},
		"no keys":                {"image list --site " + t.TempDir(), 8, "firstlight keys init"},
		"role does not suffice":  {"image add a/1 " + root + " --quiet --cert " + eve + ".pem --key " + eve + "-key.pem", 8, "TRU-007"},
		"a viewer may read":      {"image list --cert " + eve + ".pem --key " + eve + "-key.pem", 0, ""},
		"plaintext":              {"image list --insecure", 8, "TRU-006"},
		"insecure and CA":        {"image list --insecure --ca x", 2, "--insecure"},
		"certificate, no key":    {"image list --cert x", 2, "belong together"},
		"no tar":                 {"image add a/1 " + tar + " --quiet", 10, "IMG-013"},
		"name is taken":          {"image add debian/12 " + root + " --quiet", 1, "is a stream"},
		"delete a stream":        {"image delete debian --yes", 2, "is a stream"},
		"key exists":             {"keys issue eve --role viewer", 6, "never overwritten"},
		"no role":                {"keys issue bob", 2, "--role"},
		"unknown role":           {"keys issue bob --role root", 2, "viewer, operator, admin"},
		"bad name to add":        {"image add a//1 " + root, 2, "slash"},
		"no base for the medium": {"media initramfs --out /nonexistent/x --base /nonexistent --kernel /nonexistent", 2, "make initramfs"},
		"a key in the ISO image": {"media iso --out /nonexistent/x --installer-cert a --installer-key b", 6, "--with-identity"},
		"a file and a stick":     {"media usb --out /nonexistent/x --write /dev/null", 2, "give one"},
		"a stick that is none":   {"media usb --write /dev/null --no-ca --base main_test.go", 6, "no whole disk"},
		"two configurations":     {"media iso --out /nonexistent/x --files a --machine b --base main_test.go", 2, "give one"},
		"a machine elsewhere":    {"media iso --out /nonexistent/x --machine ../b --base main_test.go", 2, "no name of a machine"},
		"a key in the medium":    {"media initramfs --out /nonexistent/x --installer-cert a --installer-key b", 6, "--with-identity"},
	} {
		t.Run(name, func(t *testing.T) {
			_, stderr, code := l.run(t, strings.Fields(test.args)...)
			if code != test.exit || !strings.Contains(stderr, test.text) {
				t.Errorf("exit %d, want %d with %q:\n%s", code, test.exit, test.text, stderr)
			}
		})
	}
	t.Run("interrupted", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		err := run(ctx, []string{"image", "list", "--site", l.site, "--imageserver", l.address}, func(string) string { return "" },
			streams{in: strings.NewReader(""), out: io.Discard, err: io.Discard})
		if exitCode(err) != exitInterrupted {
			t.Error(err)
		}
	})
}

// TestServerDiesDuringAdd: the command ends with an error and does not hang.
func TestServerDiesDuringAdd(t *testing.T) {
	l := newLab(t)
	relay, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			from, err := relay.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", l.address)
			if err != nil {
				return
			}
			go io.Copy(from, to)
			go func() {
				io.CopyN(to, from, 100<<10) // then the line is cut
				from.Close()
				to.Close()
				relay.Close()
			}()
		}
	}()
	root := tree(t)
	noise := make([]byte, 4<<20)
	for i := range noise {
		noise[i] = byte(i * i >> 7 * (i % 251))
	}
	for i := range 8 {
		noise[0] = byte(i)
		for j := range len(noise) / 64 {
			noise[j*64] = byte(i * j)
		}
		if err := os.WriteFile(filepath.Join(root, "usr", "noise"+string(rune('0'+i))), noise, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	start := time.Now()
	_, stderr, code := l.run(t, "image", "add", "a/1", root, "--imageserver", relay.Addr().String())
	if code != exitUnreachable || time.Since(start) > 20*time.Second {
		t.Errorf("exit %d after %s:\n%s", code, time.Since(start), stderr)
	}
	if _, _, code := l.run(t, "image", "show", "a/1"); code != exitNotFound {
		t.Errorf("the image is there: exit %d", code)
	}
	l.must(t, "image", "add", "a/1", root, "--quiet")
}

// TestUploadResumes: an upload that was cut off in its middle goes on where it was;
// what was durable is not sent again.
func TestUploadResumes(t *testing.T) {
	l := newLab(t)
	root := tree(t)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 30 {
		noise := make([]byte, 5<<20)
		for j := 0; j < len(noise); j += 8 {
			binary.LittleEndian.PutUint64(noise[j:], random.Uint64())
		}
		if err := os.WriteFile(filepath.Join(root, "usr", fmt.Sprintf("noise%d", i)), noise, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const cut = 110 << 20 // of 150 MiB, behind the first batch of 64 MiB
	relay := cutAfter(t, l.address, cut)
	if _, stderr, code := l.run(t, "image", "add", "a/1", root, "--quiet", "--imageserver", relay); code != exitUnreachable {
		t.Fatalf("exit %d:\n%s", code, stderr)
	}
	var result struct{ SharedBytes, NewBytes uint64 }
	if err := json.Unmarshal([]byte(l.must(t, "image", "add", "a/1", root, "--quiet", "--json")), &result); err != nil {
		t.Fatal(err)
	}
	if result.SharedBytes < 60<<20 || result.NewBytes > 90<<20 {
		t.Errorf("%d bytes were there, %d were sent again", result.SharedBytes, result.NewBytes)
	}
}

// cutAfter relays to an address, and cuts everything once so many bytes have gone
// there.
func cutAfter(t *testing.T, address string, bytes int64) string {
	t.Helper()
	relay, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = relay.Close() }) // it may be closed already
	var gone atomic.Int64
	go func() {
		for {
			from, err := relay.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", address)
			if err != nil {
				return
			}
			go io.Copy(from, to)
			go func() {
				defer to.Close()
				defer from.Close()
				buffer := make([]byte, 64<<10)
				for {
					n, err := from.Read(buffer)
					if err != nil || gone.Add(int64(n)) > bytes {
						relay.Close()
						return
					}
					if _, err := to.Write(buffer[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	return relay.Addr().String()
}
