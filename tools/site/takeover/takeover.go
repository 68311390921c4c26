package takeover

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"

	"github.com/firstlight/firstlight/storage"
)

// Next is what is started on the host.
type Next struct {
	Kernel, Initramfs []byte
	CommandLine       string
}

// Prepared is a host on which the next kernel is loaded.
type Prepared struct {
	remote    *Remote
	directory string
	program   string
}

// Prepare copies what is next into the host's memory and loads it. Nothing else
// changes there; when it fails what was copied is taken away again. tell is told
// each step.
func (r *Remote) Prepare(ctx context.Context, f Facts, n Next, tell func(string)) (_ *Prepared, err error) {
	var own []byte
	if f.Program == "" {
		if own, err = kexecProgram(n.Initramfs); err != nil {
			return nil, err
		}
	}
	if err := checkCommandLine(n.CommandLine); err != nil {
		return nil, err
	}
	out, err := r.run(ctx, "umask 077; mktemp -d /run/firstlight.XXXXXXXX", nil)
	if err != nil {
		return nil, fmt.Errorf("making a directory in the memory of %s: %w", r.login.Host, err)
	}
	p := &Prepared{remote: r, directory: strings.TrimSpace(out), program: f.Program}
	if !strings.HasPrefix(p.directory, "/run/firstlight.") || strings.ContainsAny(p.directory, " '\n") {
		return nil, fail(CodeFailed, nil, "making a directory in the memory of %s: it says %q", r.login.Host, p.directory)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Forget())
		}
	}()
	files := []struct {
		name string
		data []byte
		mode string
	}{{"vmlinuz", n.Kernel, "600"}, {"initramfs", n.Initramfs, "600"}, {"kexec", own, "700"}}
	for _, file := range files {
		if file.data == nil {
			continue
		}
		tell(fmt.Sprintf("copying %s (%s)", file.name, storage.Bytes(uint64(len(file.data)))))
		if err := p.copy(ctx, file.name, file.data, file.mode); err != nil {
			return nil, err
		}
	}
	load := fmt.Sprintf("%s -s -l %s --initrd=%s --command-line=%s", quote(p.program), p.path("vmlinuz"), p.path("initramfs"), quote(n.CommandLine))
	if own != nil {
		p.program = path.Join(p.directory, "kexec")
		load = fmt.Sprintf("%s -l %s -i %s -c %s", p.program, p.path("vmlinuz"), p.path("initramfs"), quote(n.CommandLine))
	}
	tell("loading the installer's kernel")
	if _, err := r.run(ctx, load, nil); err != nil {
		return nil, fmt.Errorf("loading the installer's kernel on %s: %w", r.login.Host, err)
	}
	return p, nil
}

func (p *Prepared) path(name string) string { return path.Join(p.directory, name) }

// copy writes a file on the host, and looks whether it has arrived whole.
func (p *Prepared) copy(ctx context.Context, name string, data []byte, mode string) error {
	file := p.path(name)
	out, err := p.remote.run(ctx, fmt.Sprintf("cat >%s && chmod %s %s && sha256sum <%s", file, mode, file, file), bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("copying %s: %w", name, err)
	}
	sum := sha256.Sum256(data)
	if !strings.HasPrefix(out, hex.EncodeToString(sum[:])) {
		return fail(CodeFailed, nil, "copying %s: what has arrived is something else (%s)", name, strings.TrimSpace(out))
	}
	return nil
}

// forgetLimit bounds the tidying up after a failure.
const forgetLimit = 20 * time.Second

// Forget unloads the kernel and takes the files away. It is for a take-over that
// is not gone through with.
func (p *Prepared) Forget() error {
	// Whatever ended the take-over must not keep the host from being as it was.
	ctx, cancel := context.WithTimeout(context.Background(), forgetLimit)
	defer cancel()
	unload := ""
	if p.program != "" && !strings.HasPrefix(p.program, p.directory) {
		// u-root's has no word for it; what it has loaded is replaced or never used.
		unload = quote(p.program) + " -s -u 2>/dev/null; "
	}
	if _, err := p.remote.run(ctx, unload+"rm -rf "+p.directory, nil); err != nil {
		return fmt.Errorf("taking away what was copied: %w", err)
	}
	return nil
}

// goLimit is how long a host may take until its connection breaks.
const goLimit = 30 * time.Second

// Go starts the loaded kernel, and returns once the host is gone. Its file-systems
// are synced and made read-only first, so that they are whole should the
// installer change nothing; services are not stopped. When kexec fails, the host
// restarts through its firmware: with read-only disks it is of no use any more.
func (p *Prepared) Go(ctx context.Context) error {
	// Apart from the session, which ends first.
	command := fmt.Sprintf("sync; (trap '' HUP; sleep 1; sync; echo s >/proc/sysrq-trigger; sleep 1; echo u >/proc/sysrq-trigger; sleep 2; %s -e; reboot -f) </dev/null >/dev/null 2>&1 &", quote(p.program))
	if _, err := p.remote.run(ctx, command, nil); err != nil {
		return fmt.Errorf("starting the installer on %s: %w", p.remote.login.Host, err)
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		// A host that jumps into another kernel says nothing more: questions with
		// no answer show it.
		for {
			answered := make(chan error, 1)
			go func() {
				_, _, err := p.remote.client.SendRequest("keepalive@firstlight", true, nil)
				answered <- err
			}()
			select {
			case err := <-answered:
				if err != nil {
					return
				}
				time.Sleep(500 * time.Millisecond)
			case <-time.After(5 * time.Second):
				return
			}
		}
	}()
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(goLimit):
		return fail(CodeFailed, nil, "%s is still there %s after it was told to start the installer", p.remote.login.Host, goLimit)
	}
}

// maxCommandLine is what kernels take, less the final NUL.
const maxCommandLine = 2047

func checkCommandLine(text string) error {
	if len(text) > maxCommandLine || strings.ContainsAny(text, "\n\x00") {
		return fail(CodeFailed, nil, "the command line for the installer's kernel has %d bytes or more than one line", len(text))
	}
	return nil
}

// quote is text as one word of a shell.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// Kexec says whether an initramfs has the program for hosts without kexec(8), and
// how large it is, in bytes.
func Kexec(initramfs []byte) (uint64, error) {
	program, err := kexecProgram(initramfs)
	return uint64(len(program)), err
}

// programs is the file with all programs of the initramfs: by the name kexec it
// is that one.
const programs = "bbin/bb"

// kexecProgram takes the installer's own programs, which are static, out of its
// initramfs.
func kexecProgram(initramfs []byte) ([]byte, error) {
	reader := io.Reader(bytes.NewReader(initramfs))
	if bytes.HasPrefix(initramfs, []byte("\x28\xb5\x2f\xfd")) {
		d, err := zstd.NewReader(reader, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, fmt.Errorf("reading the initramfs: %w", err)
		}
		defer d.Close()
		reader = d
	}
	// What follows the first archive is not needed, and may be of any kind.
	first, err := io.ReadAll(io.LimitReader(reader, 512<<20))
	if err != nil && len(first) == 0 {
		return nil, fail(CodeFailed, err, "reading the initramfs")
	}
	records := cpio.Newc.Reader(bytes.NewReader(first))
	for {
		record, err := records.ReadRecord()
		if err != nil {
			return nil, fail(CodeFailed, nil, "the initramfs has no %s, which hosts without kexec(8) need: it is not Firstlight's", programs)
		}
		if record.Name == programs {
			data := make([]byte, record.FileSize)
			if _, err := record.ReadAt(data, 0); err != nil && err != io.EOF {
				return nil, fail(CodeFailed, err, "reading %s in the initramfs", programs)
			}
			return data, nil
		}
	}
}
