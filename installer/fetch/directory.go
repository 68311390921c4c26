package fetch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/firstlight/firstlight/storage/tool"
)

type directory string

// Directory is a source of files in a directory: /tftpdata of the boot medium,
// or where a volume is mounted.
func Directory(path string) Source { return directory(path) }

func (d directory) String() string { return string(d) }

func (d directory) Get(_ context.Context, name string) ([]byte, error) {
	f, err := os.Open(filepath.Join(string(d), name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s: %w", filepath.Join(string(d), name), ErrAbsent)
	case err != nil:
		return nil, fail(codeDirectory, "reading the configuration: %w", err)
	}
	defer f.Close() // only read from
	data, err := readAll(f, f.Name())
	var coded *Error
	if err != nil && !errors.As(err, &coded) {
		return nil, fail(codeDirectory, "reading the configuration: %w", err)
	}
	return data, err
}

// Programme runs the operator's configuration loader with the arguments <dir>
// <interface>. It writes the files to dir, which is made for it, readable by
// root only; the source is then that directory. The error has code CFG-106 when
// the programme fails.
func Programme(ctx context.Context, runner tool.Runner, path, dir, iface string) (Source, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fail(codeDirectory, "making the loader's directory: %w", err)
	}
	if _, err := runner.Run(ctx, tool.Cmd{Name: path, Args: []string{dir, iface}}); err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("running the configuration loader: %w", err)
		}
		return nil, fail(codeProgramme, "the configuration loader failed: %w", err)
	}
	return Directory(dir), nil
}
