package ingest_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/ingest"
	"github.com/firstlight/firstlight/imageserver/object"
)

// layout makes an OCI image layout of layers, each a tar.
func layout(t testing.TB, layers ...[]byte) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755))
	blob := func(mediaType string, data []byte) map[string]any {
		d := object.Of(data)
		must(t, os.WriteFile(filepath.Join(dir, "blobs", "sha256", d.Hex()), data, 0o644))
		return map[string]any{"mediaType": mediaType, "digest": d.String(), "size": len(data)}
	}
	text := func(v any) []byte {
		data, err := json.Marshal(v)
		must(t, err)
		return data
	}
	var all []any
	for _, l := range layers {
		all = append(all, blob("application/vnd.oci.image.layer.v1.tar", l))
	}
	config := blob("application/vnd.oci.image.config.v1+json", text(map[string]any{"architecture": "amd64", "os": "linux"}))
	manifest := blob("application/vnd.oci.image.manifest.v1+json", text(map[string]any{"schemaVersion": 2, "config": config, "layers": all}))
	manifest["annotations"] = map[string]string{"org.opencontainers.image.ref.name": "latest"}
	must(t, os.WriteFile(filepath.Join(dir, "index.json"), text(map[string]any{"schemaVersion": 2, "manifests": []any{manifest}}), 0o644),
		os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
	return dir
}

func fromOCI(t testing.TB, path, ref string, options ingest.Options) (*image.Manifest, *sink, error) {
	t.Helper()
	s := newSink()
	options.TempDir = t.TempDir()
	m, err := ingest.OCI(context.Background(), path, ref, s, options)
	return m, s, err
}

func paths(m *image.Manifest) []string {
	var all []string
	for _, e := range m.Entries {
		all = append(all, e.Path)
	}
	return all
}

func hardlink(path, to string) entry {
	return special(tar.TypeLink, path, to)
}

// Layers are applied as the specification says, and only what is left at the end
// is taken.
func TestLayers(t *testing.T) {
	base := makeTar(t, directory("etc"), regular("etc/old", "old"), regular("etc/kept", "kept"), regular("a", "one inode"), hardlink("b", "a"),
		directory("opaque"), regular("opaque/x", "x"), directory("opaque/deep"), regular("opaque/deep/y", "y"), directory("tree"), regular("tree/z", "z"),
		directory("becomes-file"), regular("becomes-file/q", "q"), regular("becomes-dir", "f"))
	upper := makeTar(t, regular("etc/.wh.old", ""), regular("etc/new", "new"), regular("a", "another inode"), hardlink("c", "b"),
		regular("opaque/mine", "mine"), regular("opaque/.wh..wh..opq", ""), regular(".wh.tree", ""), regular("becomes-file", "file"), directory("becomes-dir"),
		regular(".wh..wh.plnk", ""))
	m, s, err := fromOCI(t, layout(t, base, upper), "", ingest.Options{})
	must(t, err)
	s.mustHaveAll(t, m)
	want := []string{".", "a", "b", "becomes-dir", "becomes-file", "c", "etc", "etc/kept", "etc/new", "opaque", "opaque/mine"}
	if diff := cmp.Diff(want, paths(m)); diff != "" {
		t.Error(diff)
	}
	for path, content := range map[string]string{"a": "another inode", "b": "one inode", "etc/new": "new", "becomes-file": "file"} {
		if e, _ := m.Lookup(path); e.Digest != object.Of([]byte(content)) {
			t.Errorf("%s: %+v", path, e)
		}
	}
	if e, _ := m.Lookup("c"); e.Type != image.Hardlink || e.Target != "b" {
		t.Errorf("c: %+v", e)
	}
}

// What real programs write is read, and means the same by each way.
func TestRealContainers(t *testing.T) {
	work := t.TempDir()
	oci := filepath.Join(work, "oci")
	run(t, "umoci", "init", "--layout", oci)
	run(t, "umoci", "new", "--image", oci+":one")
	bundle := filepath.Join(work, "bundle")
	run(t, "umoci", "unpack", "--image", oci+":one", bundle)
	for path, text := range map[string]string{"etc/os-release": "ID=alpine\nPRETTY_NAME=Alpine\n", "lib/apk/db/installed": "P:musl\nV:1.2\nA:x86_64\n\n", "etc/gone": "x"} {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(bundle, "rootfs", path)), 0o755), os.WriteFile(filepath.Join(bundle, "rootfs", path), []byte(text), 0o644))
	}
	run(t, "umoci", "repack", "--image", oci+":one", bundle)
	second := filepath.Join(work, "second")
	run(t, "umoci", "unpack", "--image", oci+":one", second)
	must(t, os.Remove(filepath.Join(second, "rootfs", "etc/gone")), os.WriteFile(filepath.Join(second, "rootfs", "etc/hostname"), []byte("h\n"), 0o644))
	run(t, "umoci", "repack", "--image", oci+":two", second)

	m, s, err := fromOCI(t, oci, "two", ingest.Options{})
	must(t, err)
	s.mustHaveAll(t, m)
	if _, found := m.Lookup("etc/gone"); found {
		t.Error("a whiteout was not applied")
	}
	if m.Attributes[image.AttrPackageCount] != "1" || m.Attributes[image.AttrOSID] != "alpine" {
		t.Error(m.Attributes)
	}
	if _, _, err := fromOCI(t, oci, "", ingest.Options{}); !errors.Is(err, ingest.ErrContainer) || !strings.Contains(err.Error(), `"two"`) {
		t.Errorf("two images: %v", err)
	}
	if _, _, err := fromOCI(t, oci, "three", ingest.Options{}); !errors.Is(err, ingest.ErrContainer) {
		t.Errorf("no such image: %v", err)
	}
	digest, err := m.Digest()
	must(t, err)
	archive := filepath.Join(work, "archive.tar")
	run(t, "skopeo", "copy", "--insecure-policy", "-q", "oci:"+oci+":two", "oci-archive:"+archive+":two")
	docker := filepath.Join(work, "docker.tar")
	run(t, "skopeo", "copy", "--insecure-policy", "-q", "oci:"+oci+":two", "docker-archive:"+docker+":host/name:two")
	run(t, "gzip", "-k", docker)
	for name, read := range map[string]func(options ingest.Options) (*image.Manifest, error){
		"oci-archive": func(o ingest.Options) (*image.Manifest, error) {
			return ingest.OCI(context.Background(), archive, "two", newSink(), o)
		},
		"docker-archive": func(o ingest.Options) (*image.Manifest, error) {
			return ingest.DockerArchive(context.Background(), docker, "", newSink(), o)
		},
		"docker-archive.gz": func(o ingest.Options) (*image.Manifest, error) {
			return ingest.DockerArchive(context.Background(), docker+".gz", "host/name:two", newSink(), o)
		},
	} {
		again, err := read(ingest.Options{TempDir: t.TempDir()})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, err := again.Digest(); err != nil || got != digest {
			t.Errorf("%s: another image: %v, %v", name, cmp.Diff(m, again), err)
		}
	}
	if _, _, err := fromOCI(t, oci, "two", ingest.Options{Arch: "riscv64"}); !errors.Is(err, ingest.ErrArch) {
		t.Errorf("another architecture: %v", err)
	}
}

// A layout that lies is refused before anything of it is kept.
func TestHostileContainers(t *testing.T) {
	good := makeTar(t, directory("etc"), regular("etc/x", "x"))
	for name, test := range map[string]struct {
		break_ func(dir string)
		layers [][]byte
		want   error
		text   string
	}{
		"out of the tree":       {nil, [][]byte{makeTar(t, regular("../x", "x"))}, ingest.ErrEntry, "../x"},
		"absolute":              {nil, [][]byte{makeTar(t, regular("/etc/x", "x"))}, ingest.ErrEntry, "slash"},
		"whiteout out of it":    {nil, [][]byte{good, makeTar(t, regular("../.wh.x", ""))}, ingest.ErrEntry, ".."},
		"whiteout of dots":      {nil, [][]byte{good, makeTar(t, regular("etc/.wh...", ""))}, ingest.ErrEntry, "no name"},
		"whiteout of nothing":   {nil, [][]byte{good, makeTar(t, regular("etc/.wh.", ""))}, ingest.ErrEntry, "no name"},
		"link to a later layer": {nil, [][]byte{makeTar(t, hardlink("y", "etc/x")), good}, ingest.ErrEntry, "etc/x"},
		"link to a directory":   {nil, [][]byte{good, makeTar(t, hardlink("y", "etc"))}, ingest.ErrEntry, "directory"},
		"below a file":          {nil, [][]byte{good, makeTar(t, regular("etc/x/y", "y"))}, ingest.ErrEntry, "no directory"},
		"below a link":          {nil, [][]byte{makeTar(t, symlink("lib", "/etc")), makeTar(t, regular("lib/x", "y"))}, ingest.ErrEntry, "no directory"},
		"twice":                 {nil, [][]byte{makeTar(t, regular("x", "1"), regular("x", "2"))}, ingest.ErrEntry, "twice"},
		"cut off":               {nil, [][]byte{good[:1024]}, ingest.ErrSource, "unexpected EOF"},
		"no tar":                {nil, [][]byte{bytes.Repeat([]byte("x"), 2048)}, ingest.ErrSource, "layer"},
		"no layers":             {nil, nil, ingest.ErrContainer, "no layers"},
		"no index":              {func(d string) { must(t, os.Remove(filepath.Join(d, "index.json"))) }, [][]byte{good}, ingest.ErrContainer, "index.json is missing"},
		"no blob":               {func(d string) { must(t, os.Remove(filepath.Join(d, "blobs/sha256", object.Of(good).Hex()))) }, [][]byte{good}, ingest.ErrContainer, "missing"},
		"another version": {func(d string) {
			must(t, os.WriteFile(filepath.Join(d, "oci-layout"), []byte(`{"imageLayoutVersion":"2.0"}`), 0o644))
		}, [][]byte{good}, ingest.ErrContainer, "version"},
		"digest with a path": {func(d string) {
			must(t, os.WriteFile(filepath.Join(d, "index.json"), []byte(`{"manifests":[{"digest":"sha256:../../../etc/passwd"}]}`), 0o644))
		}, [][]byte{good}, ingest.ErrContainer, "SHA-256"},
		"an index within itself": {func(d string) { selfIndex(t, d) }, [][]byte{good}, ingest.ErrContainer, "indexes"},
		"one flipped bit": {func(d string) {
			path := filepath.Join(d, "blobs/sha256", object.Of(good).Hex())
			data, err := os.ReadFile(path)
			must(t, err)
			data[1024] ^= 1 // content of a file
			must(t, os.WriteFile(path, data, 0o644))
		}, [][]byte{good}, ingest.ErrSource, "hash"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := layout(t, test.layers...)
			if test.break_ != nil {
				test.break_(dir)
			}
			_, s, err := fromOCI(t, dir, "", ingest.Options{})
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Fatalf("%v, want %v with %q", err, test.want, test.text)
			}
			if len(s.given) > 0 && !strings.Contains(name, "below") {
				t.Errorf("%d objects were kept", len(s.given))
			}
		})
	}
}

// selfIndex makes nested indexes deeper than is followed.
func selfIndex(t *testing.T, dir string) {
	t.Helper()
	inner := `{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:` + strings.Repeat("0", 64) + `"}`
	for range 8 {
		data := []byte(fmt.Sprintf(`{"manifests":[%s]}`, inner))
		d := object.Of(data)
		must(t, os.WriteFile(filepath.Join(dir, "blobs/sha256", d.Hex()), data, 0o644))
		inner = fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"%s"}`, d)
	}
	must(t, os.WriteFile(filepath.Join(dir, "index.json"), []byte(fmt.Sprintf(`{"manifests":[%s]}`, inner)), 0o644))
}

// Of several platforms the wanted one is taken.
func TestPlatforms(t *testing.T) {
	dir := layout(t, makeTar(t, regular("x", "x")))
	var index struct{ Manifests []json.RawMessage }
	data, err := os.ReadFile(filepath.Join(dir, "index.json"))
	must(t, err, json.Unmarshal(data, &index))
	var d struct{ Digest string }
	must(t, json.Unmarshal(index.Manifests[0], &d))
	inner := []byte(fmt.Sprintf(`{"manifests":[{"digest":"sha256:%s","platform":{"architecture":"arm64","os":"linux"}},{"digest":"%s","platform":{"architecture":"amd64","os":"linux"}},{"digest":"sha256:%[1]s","platform":{"architecture":"unknown","os":"unknown"}}]}`, strings.Repeat("0", 64), d.Digest))
	must(t, os.WriteFile(filepath.Join(dir, "blobs/sha256", object.Of(inner).Hex()), inner, 0o644),
		os.WriteFile(filepath.Join(dir, "index.json"), []byte(fmt.Sprintf(`{"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"%s"}]}`, object.Of(inner))), 0o644))
	if _, _, err := fromOCI(t, dir, "", ingest.Options{Arch: "amd64"}); err != nil {
		t.Error(err)
	}
	if _, _, err := fromOCI(t, dir, "", ingest.Options{}); !errors.Is(err, ingest.ErrContainer) || !strings.Contains(err.Error(), "--arch") {
		t.Error(err)
	}
	if _, _, err := fromOCI(t, dir, "", ingest.Options{Arch: "s390x"}); !errors.Is(err, ingest.ErrArch) {
		t.Error(err)
	}
}

func TestHostileDockerArchive(t *testing.T) {
	layer := string(makeTar(t, regular("x", "x")))
	for name, test := range map[string]struct {
		entries []entry
		text    string
	}{
		"no manifest":       {[]entry{regular("x", "x")}, "manifest.json is missing"},
		"empty":             {[]entry{regular("manifest.json", "[]")}, "no image"},
		"a path out of it":  {[]entry{regular("manifest.json", `[{"Config":"c.json","Layers":["../../../etc/passwd"]}]`), regular("c.json", "{}")}, "missing"},
		"links in a circle": {[]entry{regular("manifest.json", `[{"Config":"c.json","Layers":["a"]}]`), regular("c.json", "{}"), symlink("a", "b"), symlink("b", "a")}, "too many links"},
		"two images":        {[]entry{regular("manifest.json", `[{"Config":"c.json","RepoTags":["a:1"],"Layers":["l"]},{"Config":"c.json","RepoTags":["b:1"],"Layers":["l"]}]`), regular("c.json", "{}"), regular("l", layer)}, `"b:1"`},
		"for Windows":       {[]entry{regular("manifest.json", `[{"Config":"c.json","Layers":["l"]}]`), regular("c.json", `{"os":"windows"}`), regular("l", layer)}, "windows"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "x.tar")
			must(t, os.WriteFile(file, makeTar(t, test.entries...), 0o644))
			_, err := ingest.DockerArchive(context.Background(), file, "", newSink(), ingest.Options{TempDir: t.TempDir()})
			if !errors.Is(err, ingest.ErrContainer) || !strings.Contains(err.Error(), test.text) {
				t.Error(err)
			}
		})
	}
}

// A container without a kernel gets that of another image, wherever /lib is.
func TestKernelImage(t *testing.T) {
	from, err := fromTar(t, makeTar(t, symlink("lib", "usr/lib"), regular("boot/vmlinuz-6.1", "k"), regular("boot/initrd.img-6.1", "i"),
		regular("usr/lib/modules/6.1/modules.dep", "m"), regular("usr/lib/a", "m2"), hardlink("usr/lib/modules/6.1/linked", "usr/lib/a"), symlink("vmlinuz", "boot/vmlinuz-6.1")), ingest.Options{})
	must(t, err)
	for name, test := range map[string]struct {
		tar     []byte
		modules string
	}{
		"merged":     {makeTar(t, symlink("lib", "usr/lib"), directory("usr/lib"), directory("boot")), "usr/lib/modules/6.1/linked"},
		"not merged": {makeTar(t, directory("lib"), directory("usr/lib")), "usr/lib/modules/6.1/linked"},
		"neither":    {makeTar(t, regular("x", "x")), "usr/lib/modules/6.1/linked"},
	} {
		t.Run(name, func(t *testing.T) {
			m, _, err := fromOCI(t, layout(t, test.tar), "", ingest.Options{Kernel: from})
			must(t, err)
			if m.Attributes[image.AttrKernel] != "boot/vmlinuz-6.1" || m.Attributes[image.AttrInitrd] != "boot/initrd.img-6.1" || m.Attributes[image.AttrKernelVersion] != "6.1" {
				t.Error(m.Attributes)
			}
			if e, found := m.Lookup(test.modules); !found || e.Type != image.File || e.Digest != object.Of([]byte("m2")) {
				t.Errorf("%+v", paths(m))
			}
		})
	}
	if _, _, err := fromOCI(t, layout(t, makeTar(t, regular("boot/vmlinuz-5", "k"))), "", ingest.Options{Kernel: from}); !errors.Is(err, ingest.ErrKernel) {
		t.Errorf("a kernel is there: %v", err)
	}
	none, err := fromTar(t, makeTar(t, regular("x", "x")), ingest.Options{})
	must(t, err)
	if _, _, err := fromOCI(t, layout(t, makeTar(t, regular("x", "k"))), "", ingest.Options{Kernel: none}); !errors.Is(err, ingest.ErrKernel) {
		t.Errorf("no kernel is there: %v", err)
	}
}

func FuzzContainer(f *testing.F) {
	good := makeTar(f, directory("etc"), regular("etc/x", "x"))
	f.Add(good, makeTar(f, regular("etc/.wh.x", ""), regular("y", "y")))
	f.Add(good, makeTar(f, regular("etc/.wh..wh..opq", "")))
	f.Add(good[:700], []byte{0x1f, 0x8b, 8, 0})
	f.Add(makeTar(f, hardlink("a", "b")), []byte("\xfd7zXZ\x00\x00"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		m, s, err := fromOCI(t, layout(t, a, b), "", ingest.Options{})
		if err != nil {
			return
		}
		if err := m.Validate(); err != nil {
			t.Error(err)
		}
		s.mustHaveAll(t, m)
	})
}

func FuzzLayoutDocuments(f *testing.F) {
	f.Add([]byte(`{"manifests":[{"digest":"sha256:00"}]}`), []byte(`[{"Config":"c","Layers":["l"]}]`))
	f.Add([]byte(`{"manifests":[{"mediaType":"index","digest":"sha256:`+strings.Repeat("0", 64)+`"}]}`), []byte(`[null]`))
	f.Add([]byte(`null`), []byte(`[{"Layers":[""]}]`))
	f.Fuzz(func(t *testing.T, index, docker []byte) {
		dir := layout(t, makeTar(t, regular("x", "x")))
		must(t, os.WriteFile(filepath.Join(dir, "index.json"), index, 0o644))
		if _, _, err := fromOCI(t, dir, "", ingest.Options{}); err == nil && !bytes.Contains(index, []byte("sha256:")) {
			t.Error("an image came out of nothing")
		}
		file := filepath.Join(t.TempDir(), "x.tar")
		must(t, os.WriteFile(file, makeTar(t, regular("manifest.json", string(docker)), regular("c", "{}"), regular("l", string(makeTar(t, regular("x", "x"))))), 0o644))
		// Whatever comes, it must end.
		_, _ = ingest.DockerArchive(context.Background(), file, "", newSink(), ingest.Options{TempDir: t.TempDir()})
	})
}
