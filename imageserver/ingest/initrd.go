package ingest

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// mostInitrd bounds an initrd's size, packed and unpacked, in bytes.
const mostInitrd = 1 << 30

// looksLikeInitrd reports whether a path is that of an initrd, for some kernel.
func looksLikeInitrd(p string) bool {
	name := path.Base(p)
	return path.Dir(p) == "boot" && (strings.HasPrefix(name, "initrd") || strings.HasPrefix(name, "initramfs"))
}

// initrdUnlock lists how an initrd, as it is, opens a LUKS volume that the kernel's
// command line names (rd.luks.name=): passphrase, tpm2. An initrd that is not made
// with systemd's programs knows no such words.
func initrdUnlock(data []byte, builtin bool) []string {
	var opener, driver, tss, device bool
	driver = builtin
	err := initrdNames(data, func(name string) {
		base := path.Base(name)
		switch {
		case base == "systemd-cryptsetup":
			opener = true
		case strings.HasPrefix(base, "dm-crypt.ko"):
			driver = true
		case strings.HasPrefix(base, "libtss2-esys.so"):
			tss = true
		case strings.HasPrefix(base, "libtss2-tcti-device.so"):
			device = true
		}
	})
	switch {
	case err != nil || !opener || !driver: // what cannot be read is made again
		return nil
	case tss && device:
		return []string{"passphrase", "tpm2"}
	}
	return []string{"passphrase"}
}

// initrdNames calls yield with the name of every file of an initrd: archives one
// behind the other, each packed or not
// (Documentation/driver-api/early-userspace/buffer-format.rst).
func initrdNames(data []byte, yield func(name string)) error {
	for {
		data = bytes.TrimLeft(data, "\x00")
		if len(data) == 0 {
			return nil
		}
		if bytes.HasPrefix(data, []byte("0707")) {
			rest, err := cpioNames(data, yield)
			if err != nil {
				return err
			}
			data = rest
			continue
		}
		// What is packed reaches to the end.
		unpacked, err := unpackInitrd(data)
		if err != nil {
			return err
		}
		data = unpacked
	}
}

func unpackInitrd(data []byte) ([]byte, error) {
	in := bytes.NewReader(data)
	var r io.Reader
	var err error
	switch {
	case bytes.HasPrefix(data, []byte{0x1f, 0x8b}):
		r, err = gzip.NewReader(in)
	case bytes.HasPrefix(data, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d, e := zstd.NewReader(in, zstd.WithDecoderConcurrency(1))
		if e == nil {
			defer d.Close()
		}
		r, err = d, e
	case bytes.HasPrefix(data, []byte("\xfd7zXZ\x00")):
		r, err = xz.NewReader(in)
	default:
		return nil, errors.New("an initrd is packed in a way that is not known")
	}
	if err != nil {
		return nil, fmt.Errorf("unpacking an initrd: %w", err)
	}
	unpacked, err := io.ReadAll(io.LimitReader(r, mostInitrd+1))
	if err != nil {
		return nil, fmt.Errorf("unpacking an initrd: %w", err)
	}
	if len(unpacked) > mostInitrd {
		return nil, errors.New("an initrd is too large")
	}
	return unpacked, nil
}

// cpioNames reads one archive in the "newc" format and returns what follows it.
func cpioNames(data []byte, yield func(name string)) (rest []byte, err error) {
	const headSize = 110
	align := func(n int) int { return (n + 3) &^ 3 }
	broken := errors.New("an initrd's archive is cut off, or of another format")
	for {
		if len(data) < headSize || !bytes.HasPrefix(data, []byte("07070")) {
			return nil, broken
		}
		number := func(field int) int {
			n, err := strconv.ParseUint(string(data[6+8*field:14+8*field]), 16, 31)
			if err != nil {
				return mostInitrd
			}
			return int(n)
		}
		size, nameSize := number(6), number(11)
		if nameSize < 1 || headSize+nameSize > len(data) {
			return nil, broken
		}
		name := string(data[headSize : headSize+nameSize-1])
		end := align(headSize+nameSize) + align(size)
		if name == "TRAILER!!!" {
			return data[min(end, len(data)):], nil
		}
		if size > len(data) || end > len(data) {
			return nil, broken
		}
		yield(name)
		data = data[end:]
	}
}
