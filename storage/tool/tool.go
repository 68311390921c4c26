// Package tool runs programs: always an argument vector, never a shell; secrets
// on standard input, never in arguments, environment or a file. It also names
// the programs that the installer's initramfs has to carry.
//
// It knows nothing of what the programs do.
package tool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/firstlight/firstlight/storage"
)

// Cmd is one run of a program.
type Cmd struct {
	// Name is a path, or a name that is looked for in PATH (below Root when
	// that is given).
	Name string
	Args []string // without the name
	// Stdin is all that the program can read; empty means /dev/null.
	Stdin []byte
	// Env is added to a small fixed environment: PATH, HOME=/root, LC_ALL=C.
	Env []string
	// Root is the directory that the program sees as /; empty means no chroot.
	Root string
	// Dir is the working directory, seen from Root; empty means /.
	Dir string
}

// String is the command line for messages. It never holds Stdin.
func (c Cmd) String() string { return strings.Join(append([]string{c.Name}, c.Args...), " ") }

// Output is what a program that ended well has written.
type Output struct {
	Stdout, Stderr []byte
}

// Runner runs programs. Run waits for the end; it returns an [*ExitError] when
// the program ended with another status than 0, an error with code STO-014 when
// there is no such program, and the context's error when that ended first.
// It may be called by many goroutines at once.
type Runner interface {
	Run(ctx context.Context, c Cmd) (Output, error)
}

// ExitError says how a program failed.
type ExitError struct {
	Command string // with arguments
	Status  int    // exit status; -1 when a signal ended it
	Reason  string // "exit status 1", "signal: killed"
	Last    string // the last lines of its standard error (or output)
}

// Error has the program's own last words.
func (e *ExitError) Error() string {
	if e.Last == "" {
		return fmt.Sprintf("%s: %s", e.Command, e.Reason)
	}
	return fmt.Sprintf("%s: %s: %s", e.Command, e.Reason, e.Last)
}

// Code is STO-015.
func (e *ExitError) Code() string { return storage.CodeProgram }

// Path is the PATH that programs get.
const Path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/bbin"

// Exec is the real [Runner]. Each program is a process group of its own, which
// is killed as a whole when the context ends.
type Exec struct{}

var _ Runner = Exec{}

// Run implements [Runner].
func (Exec) Run(ctx context.Context, c Cmd) (Output, error) {
	if err := ctx.Err(); err != nil {
		return Output{}, fmt.Errorf("running %s: %w", c.Name, err)
	}
	name, err := Look(c.Root, c.Name)
	if err != nil {
		return Output{}, err
	}
	cmd := exec.CommandContext(ctx, name, c.Args...)
	cmd.Args[0] = c.Name
	cmd.Env = append([]string{"PATH=" + Path, "HOME=/root", "LC_ALL=C"}, c.Env...)
	cmd.Dir = c.Dir
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: c.Root, Setpgid: true}
	cmd.Cancel = func() error {
		err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		if errors.Is(err, syscall.ESRCH) {
			return os.ErrProcessDone
		}
		return err
	}
	// A grandchild that holds the pipes must not hold us.
	cmd.WaitDelay = 5 * time.Second
	if len(c.Stdin) > 0 {
		cmd.Stdin = bytes.NewReader(c.Stdin)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	out := Output{Stdout: stdout.Bytes(), Stderr: stderr.Bytes()}
	if err == nil {
		return out, nil
	}
	if ctx.Err() != nil {
		return out, fmt.Errorf("running %s: %w", c.Name, context.Cause(ctx))
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		last := lastLines(out.Stderr)
		if last == "" {
			last = lastLines(out.Stdout)
		}
		return out, &ExitError{Command: c.String(), Status: exit.ExitCode(), Reason: exit.String(), Last: last}
	}
	return out, storage.Errorf(storage.CodeProgram, "running %s: %w", c.Name, err)
}

// Look finds a program in [Path] below root ("" is /) and returns its path as
// seen from root, or an error with code STO-014.
func Look(root, name string) (string, error) {
	candidates := []string{name}
	if !strings.Contains(name, "/") {
		candidates = nil
		for dir := range strings.SplitSeq(Path, ":") {
			candidates = append(candidates, dir+"/"+name)
		}
	}
	top := root
	if top == "" {
		top = "/"
	}
	r, err := os.OpenRoot(top)
	if err != nil {
		return "", storage.Errorf(storage.CodeNoProgram, "looking for the program %s: %w", name, err)
	}
	defer r.Close() // only read from
	for _, c := range candidates {
		if executable(r, root, c) {
			return c, nil
		}
	}
	return "", storage.Errorf(storage.CodeNoProgram, "there is no program %s in %s: %w", name, top, fs.ErrNotExist)
}

// executable follows symbolic links as the chroot would: os.Root refuses
// absolute ones (/bin/x -> /bbin/bb), so the target is looked up once more.
func executable(r *os.Root, root, name string) bool {
	for range 16 {
		rel := strings.TrimLeft(name, "/")
		if root == "" {
			fi, err := os.Stat(name)
			return err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0
		}
		fi, err := r.Lstat(rel)
		if err != nil {
			// A directory on the way is an absolute link (/bin -> /usr/bin).
			// The kernel resolves it inside the chroot; here the file only has
			// to exist somewhere, and PATH names the usual other place too.
			return false
		}
		if fi.Mode()&fs.ModeSymlink == 0 {
			return fi.Mode().IsRegular() && fi.Mode()&0o111 != 0
		}
		target, err := r.Readlink(rel)
		if err != nil {
			return false
		}
		if !strings.HasPrefix(target, "/") {
			target = name[:strings.LastIndex(name, "/")+1] + target
		}
		name = target
	}
	return false
}

func lastLines(b []byte) string {
	lines := slices.DeleteFunc(strings.Split(string(b), "\n"), func(s string) bool { return strings.TrimSpace(s) == "" })
	if len(lines) > 3 {
		lines = lines[len(lines)-3:]
	}
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Join(lines, "; ")
}
