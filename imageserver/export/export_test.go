package export_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/imageserver/export"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/ingest"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/objecttest"
)

// source is a store in memory that sends pieces.
type source struct{ *objecttest.Memory }

func (s source) Fetch(ctx context.Context, digests []object.Digest, f func(object.Piece) error) error {
	for i := range digests {
		digest := digests[len(digests)-1-i] // any order
		stored, err := s.OpenStored(ctx, digest)
		if err != nil {
			return err
		}
		data, err := io.ReadAll(stored)
		if err = errors.Join(err, stored.Close()); err != nil {
			return err
		}
		half := len(data) / 2
		for _, piece := range []object.Piece{{Info: stored.Info, Data: data[:half]}, {Info: stored.Info, Offset: uint64(half), Data: data[half:]}} {
			if half == 0 && len(piece.Data) == 0 {
				continue
			}
			if err := f(piece); err != nil {
				return err
			}
		}
	}
	return nil
}

// everything is an image with all that a manifest can say of a tar.
func everything(t *testing.T) (*image.Manifest, source) {
	t.Helper()
	store := objecttest.NewMemory()
	put := func(content []byte) (object.Digest, uint64) {
		digest := object.Of(content)
		sink := ingest.Packing(store.Put)
		err := sink.Add(context.Background(), digest, uint64(len(content)), func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
		if err != nil {
			t.Fatal(err)
		}
		return digest, uint64(len(content))
	}
	small, smallSize := put([]byte("small"))
	large, largeSize := put(objecttest.Noise(1, 3<<20))
	sparse, sparseSize := put(append(make([]byte, 5<<20), "end"...))
	capability := []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	acl := []byte{2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 6, 0, 34, 0, 0, 0, 4, 0, 5, 0, 255, 255, 255, 255, 16, 0, 7, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255}
	m := &image.Manifest{Attributes: map[string]string{}, Entries: []image.Entry{
		{Path: ".", Type: image.Dir, Mode: 0o755, Seconds: 1_700_000_000, Nanoseconds: 1},
		{Path: "a", Type: image.File, Mode: 0o4755, Size: smallSize, Digest: small, Seconds: -5, Nanoseconds: 999_999_999,
			Xattrs: []image.Xattr{{Name: "security.capability", Value: capability}, {Name: "security.selinux", Value: []byte("system_u:object_r:bin_t:s0\x00")}, {Name: "system.posix_acl_access", Value: acl}, {Name: "user.a=b%c", Value: []byte("x\x00\ny=")}}},
		{Path: "b", Type: image.Hardlink, Target: "a"},
		{Path: "big", Type: image.File, Mode: 0o600, UID: 3_000_000_000, GID: 4_294_967_290, Size: largeSize, Digest: large},
		{Path: "block", Type: image.BlockDevice, Mode: 0o660, Major: 4095, Minor: 1 << 19},
		{Path: "char", Type: image.CharDevice, Mode: 0o666, Major: 1, Minor: 3},
		{Path: "d", Type: image.Dir, Mode: 0o2770, Xattrs: []image.Xattr{{Name: "system.posix_acl_default", Value: acl}, {Name: "trusted.x", Value: []byte{}}}},
		{Path: "d/" + strings.Repeat("n", 255), Type: image.File, Mode: 0o644, Size: smallSize, Digest: small},
		{Path: "empty", Type: image.File, Mode: 0o640},
		{Path: "fifo", Type: image.FIFO, Mode: 0o600},
		{Path: "link", Type: image.Symlink, Mode: 0o777, Target: "/" + strings.Repeat("x/", 900), Seconds: 17},
		{Path: "link2", Type: image.Hardlink, Target: "link"},
		{Path: "odd \xff\n\"name", Type: image.File, Mode: 0o644, Size: smallSize, Digest: small, Seconds: 9_000_000_000},
		{Path: "sparse", Type: image.File, Mode: 0o644, Size: sparseSize, Digest: sparse},
	}}
	if err := m.Validate(); err != nil {
		t.Fatal(err)
	}
	return m, source{store}
}

// What is exported is the same image when it is added again, and the same bytes
// when it is exported again.
func TestRoundTrip(t *testing.T) {
	m, from := everything(t)
	var first, second, packed bytes.Buffer
	var counted uint64
	if err := errors.Join(export.Tar(t.Context(), &first, from, m, func(n uint64) { counted += n }), export.Tar(t.Context(), &second, from, m, nil)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) || counted < 8<<20 {
		t.Error("two exports differ", counted)
	}
	again, err := ingest.Tar(t.Context(), bytes.NewReader(first.Bytes()), ingest.Packing(objecttest.NewMemory().Put), ingest.Options{TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m, again); diff != "" {
		t.Error(diff)
	}
	scratch, err := os.Create(filepath.Join(t.TempDir(), "scratch"))
	if err != nil {
		t.Fatal(err)
	}
	defer scratch.Close()
	if err := export.OCI(t.Context(), &packed, scratch, from, m, "debian/12/1", nil); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "oci.tar")
	if err := os.WriteFile(file, packed.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	again, err = ingest.OCI(t.Context(), file, "debian/12/1", ingest.Packing(objecttest.NewMemory().Put), ingest.Options{TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m, again); diff != "" {
		t.Error(diff)
	}
	if out, err := exec.Command("skopeo", "inspect", "--raw", "oci-archive:"+file).CombinedOutput(); err != nil {
		t.Errorf("skopeo: %v\n%s", err, out)
	}
}

// GNU tar makes the tree again, with all of it.
func TestGNUTar(t *testing.T) {
	m, from := everything(t)
	var b bytes.Buffer
	if err := export.Tar(t.Context(), &b, from, m, nil); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	cmd := exec.Command("tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--acls", "--selinux", "-xpf", "-", "-C", root, "--exclude=./d/n*", "--warning=no-timestamp", "--warning=no-unknown-keyword")
	cmd.Stdin = &b
	out, err := cmd.CombinedOutput()
	if err != nil && !strings.Contains(string(out), "security.selinux") && !strings.Contains(string(out), "user.a") {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	got, err := ingest.Directory(t.Context(), root, ingest.Packing(objecttest.NewMemory().Put), ingest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"a", "big", "block", "char", "empty", "fifo", "link", "sparse", "odd \xff\n\"name"} {
		want, _ := m.Lookup(path)
		have, found := got.Lookup(path)
		want.Xattrs, have.Xattrs = want.Xattrs[:min(1, len(want.Xattrs))], have.Xattrs[:min(1, len(have.Xattrs))]
		if !found || cmp.Diff(want, have) != "" {
			t.Errorf("%q: %s", path, cmp.Diff(want, have))
		}
	}
}

// A damaged object is never exported.
func TestDamaged(t *testing.T) {
	m, from := everything(t)
	var mutex sync.Mutex
	for _, o := range m.Objects() {
		mutex.Lock()
		bad := flipping{from, o.Digest}
		mutex.Unlock()
		if err := export.Tar(t.Context(), io.Discard, bad, m, nil); !errors.Is(err, object.ErrDamaged) {
			t.Errorf("%s: %v", o.Digest, err)
		}
	}
	missing := *m
	missing.Entries = append([]image.Entry{}, m.Entries...)
	missing.Entries[1].Digest = object.Of([]byte("absent"))
	if err := export.Tar(t.Context(), io.Discard, from, &missing, nil); !errors.Is(err, object.ErrNotFound) {
		t.Error(err)
	}
	socket := &image.Manifest{Entries: []image.Entry{{Path: ".", Type: image.Dir}, {Path: "s", Type: image.Socket}}}
	var coded *export.Error
	if err := export.Tar(t.Context(), io.Discard, from, socket, nil); !errors.As(err, &coded) || coded.Code() != "IMG-020" {
		t.Error(err)
	}
	whiteout := &image.Manifest{Entries: []image.Entry{{Path: ".", Type: image.Dir}, {Path: ".wh.s", Type: image.FIFO}}}
	if err := export.OCI(t.Context(), io.Discard, nil, from, whiteout, "x", nil); !errors.As(err, &coded) {
		t.Error(err)
	}
}

// flipping turns a bit of one object.
type flipping struct {
	source
	victim object.Digest
}

func (f flipping) Fetch(ctx context.Context, digests []object.Digest, to func(object.Piece) error) error {
	return f.source.Fetch(ctx, digests, func(p object.Piece) error {
		if p.Digest == f.victim {
			p.Data = bytes.Clone(p.Data)
			p.Data[len(p.Data)-1] ^= 1
		}
		return to(p)
	})
}

func (f flipping) Open(ctx context.Context, digest object.Digest) (io.ReadCloser, error) {
	r, err := f.source.Open(ctx, digest)
	if err != nil || digest != f.victim {
		return r, err
	}
	data, err := io.ReadAll(r)
	data[len(data)/2] ^= 1
	return io.NopCloser(object.VerifyReader(bytes.NewReader(data), digest, uint64(len(data)))), err
}
