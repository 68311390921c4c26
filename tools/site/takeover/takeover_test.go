package takeover

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// host is a real sshd (dropbear), in namespaces of its own: root's home, what the
// kernel says of kexec, and what it is told are the test's, and its processes are
// alone.
type host struct {
	login  Login
	dir    string
	public ssh.PublicKey // its host key
	off    func()        // as kexec would: all that runs there is gone at once
}

// serve starts sshd. The kernel shows these files in /sys/kernel and
// /proc/sys/kernel.
func serve(t *testing.T, sys, proc map[string]string) *host {
	t.Helper()
	h := &host{dir: t.TempDir()}
	write := func(name, text string, mode os.FileMode) string {
		file := filepath.Join(h.dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(text), mode)); err != nil {
			t.Fatal(err)
		}
		return file
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	identity := write("id", string(pem.EncodeToMemory(block)), 0o600)
	authorized, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	write("home/.ssh/authorized_keys", string(ssh.MarshalAuthorizedKey(authorized)), 0o600)
	for name, text := range sys {
		write("sys/"+name, text, 0o644)
	}
	write("proc/random/boot_id", "11111111-2222\n", 0o644)
	for name, text := range proc {
		write("proc/"+name, text, 0o644)
	}
	write("environ", "", 0o644)
	write("sysrq", "", 0o644)

	key := filepath.Join(h.dir, "hostkey")
	out, err := exec.Command("dropbearkey", "-t", "ed25519", "-f", key).CombinedOutput()
	if err != nil {
		t.Fatalf("dropbearkey (package dropbear-bin, hack/setup): %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "ssh-ed25519 ") {
			if h.public, _, _, _, err = ssh.ParseAuthorizedKey([]byte(line)); err != nil {
				t.Fatal(err)
			}
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	script := `set -e
mount --make-rprivate /
[ ! -e /proc/sysrq-trigger ] || mount --bind "$1/sysrq" /proc/sysrq-trigger
mount --bind "$1/environ" /proc/1/environ
mount --bind "$1/home" "$(getent passwd root | cut -d: -f6)"
mount --bind "$1/sys" /sys/kernel
mount --bind "$1/proc" /proc/sys/kernel
mount -t tmpfs tmpfs /run
exec dropbear -F -E -s -P "$1/pid" -r "$1/hostkey" -p "$2"
`
	var log bytes.Buffer
	ctx, cancel := context.WithCancel(context.Background())
	daemon := exec.CommandContext(ctx, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, "sh", h.dir, address)
	daemon.Stdout, daemon.Stderr = &log, &log
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	ended := sync.OnceFunc(func() {
		cancel()
		_ = daemon.Wait() // it was ended
	})
	h.off = ended
	t.Cleanup(func() {
		ended()
		if t.Failed() {
			t.Logf("sshd says:\n%s", log.String())
		}
	})
	for range 100 {
		if conn, err := net.Dial("tcp", address); err == nil {
			_ = conn.Close() // it is there
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	known := write("known_hosts", knownhosts.Line([]string{knownhosts.Normalize(address)}, h.public)+"\n", 0o600)
	h.login = Login{User: "root", Host: address, Known: []string{known, "/nonexistent"}, Keys: []string{filepath.Join(h.dir, "none"), identity}}
	return h
}

// can is what a kernel shows that can do kexec.
func can() map[string]string {
	return map[string]string{"kexec_loaded": "0\n", "security/lockdown": "[none] integrity confidentiality\n"}
}

// initramfs has a kexec that notes how it was called, in place of ours.
func initramfs(t *testing.T, program string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := cpio.Newc.Writer(&b)
	if err := cpio.WriteRecords(w, []cpio.Record{cpio.Directory("bbin", 0o755), cpio.StaticFile(programs, program, 0o755)}); err != nil {
		t.Fatal(err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	return append(b.Bytes(), bytes.Repeat([]byte("more archives "), 1000)...)
}

// Everything up to the jump, on a real sshd: what the host is, the files whole in
// its memory, the kernel loaded by the program that we bring, and nothing left
// when it is not gone through with.
func TestPrepare(t *testing.T) {
	h := serve(t, can(), nil)
	r, err := Dial(t.Context(), h.login)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	f, err := r.Look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if f.Arch == "" || f.Kernel == "" || f.User != 0 || !f.Kexec || f.Disabled || f.Lockdown != "none" || f.Available == 0 || f.Boot != "11111111-2222" || !strings.Contains(f.System, "Debian") {
		t.Errorf("%+v", f)
	}
	f.Container = "" // the test may run in one
	if err := f.Refuse(f.Arch, 64<<20); err != nil {
		t.Error(err)
	}
	calls := filepath.Join(h.dir, "calls")
	f.Program = "" // whatever this host has
	n := Next{Kernel: bytes.Repeat([]byte("kernel "), 100_000), CommandLine: `console=ttyS0 quoted='it is' $HOME`}
	n.Initramfs = initramfs(t, "#!/bin/sh\nfor a; do echo \"<$a>\"; done >>"+calls+"\nsha256sum \"$2\" \"$4\" >>"+calls+"\n")
	var told []string
	p, err := r.Prepare(t.Context(), f, n, func(text string) { told = append(told, text) })
	if err != nil {
		t.Fatal(err)
	}
	said, err := os.ReadFile(calls)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<-l>\n<" + p.directory + "/vmlinuz>\n<-i>\n<" + p.directory + "/initramfs>\n<-c>\n<" + n.CommandLine + ">\n"} {
		if !strings.Contains(string(said), want) {
			t.Errorf("kexec was called as\n%s\nwant\n%s", said, want)
		}
	}
	if len(told) != 4 || !strings.HasPrefix(told[0], "copying vmlinuz (683.6 KiB)") {
		t.Errorf("told %q", told)
	}
	left := func() string {
		t.Helper()
		out, err := r.run(t.Context(), "ls -A /run; stat -c %a /run/* 2>/dev/null || true", nil)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	if got := left(); !strings.HasSuffix(got, "\n700") {
		t.Errorf("in /run: %s", got)
	}
	if err := p.Forget(); err != nil {
		t.Error(err)
	}
	if got := left(); got != "" {
		t.Errorf("left behind: %s", got)
	}

	// A kernel that is not accepted is told in the program's own words, and nothing
	// stays behind.
	n.Initramfs = initramfs(t, "#!/bin/sh\necho 'kexec_file_load failed: Exec format error' >&2\nexit 255\n")
	_, err = r.Prepare(t.Context(), f, n, func(string) {})
	var coded *Error
	if !errors.As(err, &coded) || coded.Code() != CodeFailed || !strings.Contains(err.Error(), "Exec format error") {
		t.Errorf("%v", err)
	}
	if got := left(); got != "" {
		t.Errorf("left behind: %s", got)
	}
	// The host's own program is called as kexec-tools wants it.
	own := filepath.Join(h.dir, "kexec")
	if err := os.WriteFile(own, []byte("#!/bin/sh\nfor a; do echo \"<$a>\"; done >>"+calls+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	f.Program = own
	if p, err = r.Prepare(t.Context(), f, n, func(string) {}); err != nil {
		t.Fatal(err)
	}
	if err := p.Forget(); err != nil {
		t.Error(err)
	}
	if said, err = os.ReadFile(calls); err != nil || !strings.Contains(string(said), "<-s>\n<-l>\n<"+p.directory+"/vmlinuz>\n<--initrd="+p.directory+"/initramfs>\n<--command-line="+n.CommandLine+">\n<-s>\n<-u>\n") {
		t.Errorf("kexec was called as\n%s (%v)", said, err)
	}
}

// The jump: the disks are synced and made read-only before it, and it is done when
// the host is gone.
func TestGo(t *testing.T) {
	h := serve(t, can(), nil)
	r, err := Dial(t.Context(), h.login)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	f, err := r.Look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.Program = ""
	jumped := filepath.Join(h.dir, "jumped")
	n := Next{Kernel: []byte("kernel"), CommandLine: "quiet"}
	n.Initramfs = initramfs(t, "#!/bin/sh\nif [ \"$1\" = -e ]; then echo e >"+jumped+"; sleep 1000; fi\n")
	p, err := r.Prepare(t.Context(), f, n, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for range 300 {
			if _, err := os.Stat(jumped); err == nil {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		h.off()
	}()
	if err := p.Go(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(jumped); err != nil {
		t.Errorf("kexec was not called: %v", err)
	}
	// Kernels without it have their disks synced only.
	if _, err := os.Stat("/proc/sysrq-trigger"); err == nil {
		if said, err := os.ReadFile(filepath.Join(h.dir, "sysrq")); err != nil || strings.TrimSpace(string(said)) != "u" {
			t.Errorf("the last that the kernel was told is %q: %v", said, err)
		}
	}
}

// A host that is not known, or another one, gets nothing; nor is anybody let in
// without a key.
func TestDialRefuses(t *testing.T) {
	h := serve(t, can(), nil)
	other, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(other)
	if err != nil {
		t.Fatal(err)
	}
	wrong := filepath.Join(h.dir, "wrong_hosts")
	if err := os.WriteFile(wrong, []byte(knownhosts.Line([]string{knownhosts.Normalize(h.login.Host)}, key)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	stranger := filepath.Join(h.dir, "stranger")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", stranger).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	locked := filepath.Join(h.dir, "locked")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", locked).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	line := knownhosts.Line([]string{knownhosts.Normalize(h.login.Host)}, h.public)
	for name, c := range map[string]struct {
		change func(*Login)
		code   string
		says   string
	}{
		"unknown":    {func(l *Login) { l.Known = nil }, CodeHostKey, "echo '" + line + "' >> ~/.ssh/known_hosts"},
		"another":    {func(l *Login) { l.Known = []string{wrong} }, CodeHostKey, "shows another host key"},
		"no key":     {func(l *Login) { l.Keys = nil }, CodeLogin, "no key to log in with"},
		"wrong key":  {func(l *Login) { l.Keys = []string{stranger} }, CodeLogin, "does not let root in"},
		"passphrase": {func(l *Login) { l.Keys = []string{locked} }, CodeLogin, "ssh-add " + locked},
		"no agent":   {func(l *Login) { l.Keys, l.Agent = nil, "/nonexistent" }, CodeLogin, "no key to log in with"},
		"nobody":     {func(l *Login) { l.Host = "127.0.0.1:1" }, CodeUnreachable, "connection refused"},
	} {
		l := h.login
		c.change(&l)
		r, err := Dial(t.Context(), l)
		if err == nil {
			r.Close()
		}
		var coded *Error
		if !errors.As(err, &coded) || coded.Code() != c.code || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %s %q", name, err, c.code, c.says)
		}
	}
	// What a silent host is waited for has an end.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	l := h.login
	l.Host = silent.Addr().String()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	var coded *Error
	if _, err := Dial(ctx, l); !errors.As(err, &coded) || coded.Code() != CodeUnreachable {
		t.Errorf("%v", err)
	}
}

// A kernel that forbids it says so over ssh.
func TestLookRefuses(t *testing.T) {
	h := serve(t, map[string]string{"kexec_loaded": "0\n", "security/lockdown": "none [integrity] confidentiality\n"}, map[string]string{"kexec_load_disabled": "1\n"})
	r, err := Dial(t.Context(), h.login)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	f, err := r.Look(t.Context())
	if err != nil || !f.Disabled || f.Lockdown != "integrity" {
		t.Errorf("%+v, %v", f, err)
	}
}

func TestRefuse(t *testing.T) {
	good := Facts{Arch: "amd64", Kernel: "6.1.0", Kexec: true, Lockdown: "none", Available: 4 << 30, Room: 1 << 30}
	if err := good.Refuse("amd64", 60<<20); err != nil {
		t.Error(err)
	}
	for says, change := range map[string]func(*Facts){
		"only root":                   func(f *Facts) { f.User = 1000 },
		"it is a container (lxc)":     func(f *Facts) { f.Container = "lxc" },
		"it is arm64":                 func(f *Facts) { f.Arch = "arm64" },
		"without kexec":               func(f *Facts) { f.Kexec = false },
		"kexec_load_disabled is 1":    func(f *Facts) { f.Disabled = true },
		"locked down (integrity)":     func(f *Facts) { f.Lockdown = "integrity" },
		"256.0 MiB of memory":         func(f *Facts) { f.Available = 256 << 20 },
		"/run has room for 32.0 MiB,": func(f *Facts) { f.Room = 32 << 20 },
	} {
		f := good
		change(&f)
		err := f.Refuse("amd64", 60<<20)
		var coded *Error
		if !errors.As(err, &coded) || coded.Code() != CodeUnable || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	// What says nothing is not root.
	if err := parseFacts("").Refuse("amd64", 1); err == nil || !strings.Contains(fmt.Sprint(err), "only root") {
		t.Errorf("%v", err)
	}
}

func TestParseLogin(t *testing.T) {
	for text, want := range map[string]string{"root@web1": "web1:22", "root@192.0.2.7:2222": "192.0.2.7:2222", "root@[2001:db8::1]": "[2001:db8::1]:22"} {
		if l, err := ParseLogin(text); err != nil || l.address() != want {
			t.Errorf("%s: %s, %v", text, l.address(), err)
		}
	}
	for _, text := range []string{"web1", "@web1", "root@", "root@a@b", "root@a b"} {
		if _, err := ParseLogin(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}
