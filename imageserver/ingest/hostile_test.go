package ingest_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/imageserver/ingest"
)

// header is a tar header of an empty regular file, as bytes; size is put into its
// field as it is.
func header(name string, size []byte) []byte {
	block := make([]byte, 512)
	copy(block, name)
	copy(block[100:], "0000644\x000000000\x000000000\x00")
	copy(block[124:136], size)
	copy(block[136:], "00000000000\x00        0")
	copy(block[257:], "ustar\x0000")
	seal(block)
	return block
}

// seal writes a header's check sum.
func seal(block []byte) {
	copy(block[148:156], "        ")
	sum := 0
	for _, c := range block {
		sum += int(c)
	}
	copy(block[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

// Sizes that no file has, in each way in which a tar can say them.
func TestHugeSizes(t *testing.T) {
	base256 := func(high byte) []byte {
		return []byte{0x80, 0, 0, 0, high, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	}
	pax := func(size string) []byte {
		record := fmt.Sprintf("%d size=%s\n", len(size)+9, size)
		block := header("PaxHeaders/huge", fmt.Appendf(nil, "%011o\x00", len(record)))
		block[156] = 'x'
		seal(block)
		padded := make([]byte, 512)
		copy(padded, record)
		return append(append(block, padded...), header("huge", []byte("00000000000\x00"))...)
	}
	for name, b := range map[string][]byte{
		"2^63-1 in base 256":     header("huge", base256(0x7f)),
		"2^64-1 in base 256":     header("huge", base256(0xff)),
		"negative in base 256":   header("huge", bytes.Repeat([]byte{0xff}, 12)),
		"2^63-1 in a PAX record": pax("9223372036854775807"),
		"2^63 in a PAX record":   pax("9223372036854775808"),
		"2^64 in a PAX record":   pax("18446744073709551616"),
		"negative in PAX":        pax("-9223372036854775808"),
		"the most of octal":      header("huge", []byte("77777777777\x00")),
	} {
		good := header("before", []byte("00000000000\x00"))
		begun := time.Now()
		m, err := fromTar(t, append(append(good, b...), make([]byte, 1024)...), ingest.Options{})
		if err == nil || m != nil || !errors.Is(err, ingest.ErrEntry) && !errors.Is(err, ingest.ErrSource) || time.Since(begun) > 5*time.Second {
			t.Errorf("%s: %v after %s", name, err, time.Since(begun))
		} else if !strings.Contains(err.Error(), "huge") && !strings.Contains(err.Error(), `after entry "before"`) {
			t.Errorf("%s: the entry is not named: %v", name, err)
		}
	}
}

// A compressed file of some kilobytes that unpacks to what nobody can keep.
func TestBombs(t *testing.T) {
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	must(t, err)
	w := tar.NewWriter(z)
	must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "x", Mode: 0o644}), w.Close())
	zeros := make([]byte, 1<<20)
	for range 80 { // behind the end, where no entry is any more
		_, err := z.Write(zeros)
		must(t, err)
	}
	must(t, z.Close())
	if _, err := fromTar(t, packed.Bytes(), ingest.Options{}); !errors.Is(err, ingest.ErrSource) || !strings.Contains(err.Error(), "follow") {
		t.Error(err)
	}
}

// What is read of a system is read of whatever its files hold.
func FuzzSystemFiles(f *testing.F) {
	f.Add([]byte("ID=debian\nPRETTY_NAME=\"Debian \\\"12\\\"\"\n"), []byte("Package: a\nStatus: install ok installed\nVersion: 1:2\nArchitecture: amd64\n\n"), []byte("P:musl\nV:1.2\nA:x86_64\n\n"), []byte("root:x:0:0::/root:/bin/sh\n"), "user::rw-,user:root:r--,group::r--,mask::r--,other::r--")
	f.Add([]byte("ID='"), []byte("Package:\n \n\n\n"), []byte("P:\nP:\n"), []byte(":::\n"), "u:0:rwx")
	f.Add([]byte("\x00=\n=="), []byte("Status: deinstall\nPackage: x"), []byte("\nV:"), []byte("a:b"), "default:user::")
	f.Fuzz(func(t *testing.T, release, dpkg, apk, passwd []byte, acl string) {
		file := regular("file", "x")
		if acl != "" && !strings.Contains(acl, "\x00") {
			file = with(file, func(h *tar.Header) { h.PAXRecords = map[string]string{"SCHILY.acl.access": acl} })
		}
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, e := range []entry{
			regular("etc/os-release", string(release)), regular("var/lib/dpkg/status", string(dpkg)),
			regular("lib/apk/db/installed", string(apk)), regular("etc/passwd", string(passwd)),
			regular("etc/default/grub", string(release)), regular("etc/kernel/cmdline", acl),
			regular("var/lib/pacman/local/x/desc", string(apk)), regular("lib/modules/6/modules.builtin", string(apk)), file,
		} {
			e.Mode, e.Size = 0o644, int64(len(e.content))
			if w.WriteHeader(&e.Header) != nil {
				return // archive/tar cannot say that
			}
			if _, err := io.WriteString(w, e.content); err != nil {
				t.Fatal(err)
			}
		}
		must(t, w.Close())
		s := newSink()
		m, err := ingest.Tar(context.Background(), &b, s, ingest.Options{TempDir: t.TempDir()})
		if err != nil {
			if !errors.Is(err, ingest.ErrEntry) {
				t.Error(err)
			}
			return
		}
		must(t, m.Validate())
		s.mustHaveAll(t, m)
	})
}

// A tar of any bytes.
func FuzzTar(f *testing.F) {
	f.Add(makeTar(f, regular("a", "x"), special(tar.TypeSymlink, "b", "a"), special(tar.TypeLink, "c", "a"), special(tar.TypeChar, "d", "")))
	f.Add(makeTar(f, with(regular("a", "x"), func(h *tar.Header) {
		h.PAXRecords = map[string]string{"SCHILY.xattr.user.x": "y", "LIBARCHIVE.xattr.user.z": "eA", "RHT.security.selinux": "s"}
	})))
	f.Add(header("huge", bytes.Repeat([]byte{0xff}, 12)))
	f.Add([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0})
	f.Add([]byte("\xfd7zXZ\x00\x00"))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 0, 1, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newSink()
		m, err := ingest.Tar(context.Background(), bytes.NewReader(b), s, ingest.Options{TempDir: t.TempDir()})
		if err == nil {
			must(t, m.Validate())
			s.mustHaveAll(t, m)
		} else if !errors.Is(err, ingest.ErrEntry) && !errors.Is(err, ingest.ErrSource) {
			t.Error(err)
		}
	})
}

// Which kind of source a file is, and whether a qcow2 leans on others, is told from
// any bytes. Nothing is mounted: such a file has no file-system.
func FuzzSource(f *testing.F) {
	f.Add([]byte("QFI\xfb\x00\x00\x00\x03"))
	f.Add([]byte("hsqs"))
	f.Add(make([]byte, 1024))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "x")
		must(t, os.WriteFile(path, b, 0o644))
		parsed, err := ingest.ParseSource(path)
		if err != nil || parsed.Path != path {
			t.Error(parsed, err)
		}
	})
}
