package kexec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// unload is KEXEC_FILE_UNLOAD of kexec_file_load(2).
const unload = 1

// Unload forgets what is loaded.
func Unload() error {
	if err := unix.KexecFileLoad(-1, -1, "", unload); err != nil {
		return &Error{CodeLoad, fmt.Errorf("unloading the new kernel: %w", err)}
	}
	return nil
}

// Content opens the bytes of a file of the new system.
type Content func(ctx context.Context) (io.ReadCloser, error)

// Try loads a kernel and its initrd as Load does, and forgets them again: whether
// the running kernel accepts them is known afterwards. They lie in memory while
// it works. A kernel that is not accepted is an *Error; another error says that
// the bytes could not be had.
func Try(ctx context.Context, kernel, initrd Content, commandLine string) (err error) {
	var files [2]*os.File
	for i, part := range []struct {
		name    string
		content Content
	}{{"kernel", kernel}, {"initrd", initrd}} {
		f, err := inMemory(ctx, part.name, part.content)
		if err != nil {
			return err
		}
		defer f.Close() // memory, which goes with it
		files[i] = f
	}
	if err := Load(files[0], files[1], commandLine); err != nil {
		return err
	}
	return Unload()
}

// inMemory copies content into a file without a name (memfd_create(2)).
func inMemory(ctx context.Context, name string, content Content) (_ *os.File, err error) {
	in, err := content(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memory for the %s: %w", name, err)
	}
	writing := os.NewFile(uintptr(fd), name)
	defer writing.Close() // another descriptor of the same file is returned
	if _, err := io.Copy(writing, in); err != nil {
		return nil, fmt.Errorf("reading the %s: %w", name, err)
	}
	// The kernel takes no file that is open for writing.
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, fmt.Errorf("memory for the %s: %w", name, err)
	}
	return f, nil
}
