package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/firstlight/firstlight/imageserver/image"
)

// sqfs2tar is of Debian's squashfs-tools-ng. It needs no root, no room for the
// tree, and what it writes is judged like any other tar.
const sqfs2tar = "sqfs2tar"

// Squashfs reads a squashfs with the program sqfs2tar. Where that is missing or
// fails, the error wraps ErrProgram.
func Squashfs(ctx context.Context, path string, sink Sink, options Options) (*image.Manifest, error) {
	program, err := exec.LookPath(sqfs2tar)
	if err != nil {
		return nil, fmt.Errorf("%s: a squashfs is read with %s, which is missing; install it (Debian: apt-get install squashfs-tools-ng): %w", path, sqfs2tar, ErrProgram)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// A path may begin with a dash.
	cmd := exec.CommandContext(ctx, program, "--", path)
	var stderr bytes.Buffer
	cmd.Stderr = &limited{&stderr, 64 << 10}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", sqfs2tar, err)
	}
	manifest, err := Tar(ctx, stdout, sink, options)
	if err != nil {
		// It has nobody to write to any more; and where the tar is cut off,
		// why is what it says.
		cutOff := errors.Is(err, ErrSource)
		if !cutOff {
			cancel()
		}
		if waitErr := cmd.Wait(); cutOff && waitErr != nil {
			return nil, failedProgram(path, sqfs2tar, waitErr, stderr.String())
		}
		return nil, err
	}
	if err := cmd.Wait(); err != nil {
		return nil, failedProgram(path, sqfs2tar, err, stderr.String())
	}
	return manifest, nil
}

// failedProgram is a program's end with its last words.
func failedProgram(path, program string, err error, said string) error {
	lines := strings.Split(strings.TrimSpace(said), "\n")
	return fmt.Errorf("%s: %s: %w: %s: %w", path, program, err, strings.Join(lines[max(0, len(lines)-3):], "; "), ErrProgram)
}

// limited takes the first bytes and drops the rest.
type limited struct {
	to   *bytes.Buffer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	l.to.Write(p[:n])
	return len(p), nil
}
