package media

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/firstlight/firstlight/uinit/modules"
)

const release = "6.1.0-test"

// kernelDir makes a kernel with the modules of the sets and one more, in four
// packings. depmod -b makes the index of real kernels; this one is written.
func kernelDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	var dep, alias strings.Builder
	i := 0
	for name := range strings.FieldsSeq(everywhere + virtual + " wanted-by-xts unwanted") {
		suffix := []string{"", ".gz", ".xz", ".zst"}[i%4]
		file := "kernel/x/" + name + ".ko" + suffix
		needs := ""
		if name == "xts" {
			needs = " kernel/x/wanted-by-xts.ko"
		}
		if name == "wanted-by-xts" {
			suffix = ""
			file = "kernel/x/wanted-by-xts.ko"
		}
		write(t, filepath.Join(dir, "lib/modules", release, file), squeeze(t, suffix, []byte("module "+name)))
		fmt.Fprintf(&dep, "%s:%s\n", file, needs)
		fmt.Fprintf(&alias, "alias x:%d* %s\n", i, modules.Name(file))
		i++
	}
	write(t, filepath.Join(dir, "lib/modules", release, "modules.dep"), []byte(dep.String()))
	write(t, filepath.Join(dir, "lib/modules", release, "modules.alias"), []byte("# Aliases\n"+alias.String()))
	write(t, filepath.Join(dir, "lib/modules", release, "modules.softdep"), []byte("softdep unwanted pre: xts\nsoftdep ext4 pre: crc32c\n"))
	write(t, filepath.Join(dir, "lib/modules", release, "modules.builtin"), []byte("kernel/x/unix.ko\n"))
	write(t, filepath.Join(dir, "vmlinuz"), []byte("a kernel"))
	return dir
}

// squeeze packs data as the suffix says.
func squeeze(t *testing.T, suffix string, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var err error
	switch suffix {
	case ".gz":
		w := gzip.NewWriter(&out)
		_, err = w.Write(data)
		err = errors.Join(err, w.Close())
	case ".xz":
		var w *xz.Writer
		if w, err = xz.NewWriter(&out); err == nil {
			_, err = w.Write(data)
			err = errors.Join(err, w.Close())
		}
	case ".zst":
		var w *zstd.Encoder
		if w, err = zstd.NewWriter(&out); err == nil {
			_, err = w.Write(data)
			err = errors.Join(err, w.Close())
		}
	default:
		return data
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func write(t *testing.T, name string, data []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// baseFile makes a base as hack/initramfs does: a compressed archive, of a
// length that needs padding.
func baseFile(t *testing.T) string {
	t.Helper()
	raw, err := archive{"init": {[]byte("the base"), 0o755}}.encode(time.Unix(0, 0), nil)
	if err != nil {
		t.Fatal(err)
	}
	packed, err := compress(raw)
	if err != nil {
		t.Fatal(err)
	}
	return write(t, filepath.Join(t.TempDir(), "base.cpio.zst"), bytes.TrimRight(packed, "\x00"))
}

// authority makes a certificate that signs itself, and its key.
func authority(t *testing.T) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certificate = write(t, filepath.Join(dir, "cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	key = write(t, filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
	return certificate, key
}

// unpack splits an initramfs as the kernel does (init/initramfs.c): frame by
// frame, zeros between them, into one directory; with zstd(1) and cpio(1).
func unpack(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	magic := []byte("\x28\xb5\x2f\xfd")
	for len(data) > 0 {
		if data[0] == 0 {
			data = data[1:]
			continue
		}
		if !bytes.HasPrefix(data, magic) {
			t.Fatalf("no zstd frame where the kernel looks for one: %q", data[:min(8, len(data))])
		}
		end := len(data)
		for at := 4; at < len(data); at += 4 { // the kernel wants every archive at a multiple of four
			if bytes.HasPrefix(data[at:], magic) && whole(t, data[:at]) != nil {
				end = at
				break
			}
		}
		out := whole(t, data[:end])
		if out == nil {
			t.Fatal("an archive is cut off")
		}
		extract := exec.Command("cpio", "-idmu", "--quiet", "--no-absolute-filenames")
		extract.Dir, extract.Stdin = dir, bytes.NewReader(out)
		if text, err := extract.CombinedOutput(); err != nil {
			t.Fatalf("cpio: %v\n%s", err, text)
		}
		data = data[end:]
	}
	return dir
}

// whole unpacks one frame with up to three bytes of padding, with zstd(1); nil
// if that is not what data is.
func whole(t *testing.T, data []byte) []byte {
	t.Helper()
	for range 4 {
		cmd := exec.Command("zstd", "-dc")
		cmd.Stdin = bytes.NewReader(data)
		if out, err := cmd.Output(); err == nil {
			return out
		}
		if data[len(data)-1] != 0 {
			return nil
		}
		data = data[:len(data)-1]
	}
	return nil
}

func exists(t *testing.T, parts ...string) bool {
	t.Helper()
	_, err := os.Lstat(filepath.Join(parts...))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func TestInitramfs(t *testing.T) {
	certificate, key := authority(t)
	files := t.TempDir()
	write(t, filepath.Join(files, "config.json"), []byte("{}"))
	write(t, filepath.Join(files, "52-54-00-00-00-01/imagename"), []byte("debian/12\n"))
	out := filepath.Join(t.TempDir(), "deep", "initramfs")
	options := Options{
		Base: baseFile(t), KernelDir: kernelDir(t), Modules: SetVM, Files: files, CA: certificate, Out: out,
	}
	report, err := Initramfs(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(out)
	if err != nil || info.Size() != report.Bytes || info.Mode().Perm() != 0o644 {
		t.Errorf("%v %v, reported %d bytes", err, info, report.Bytes)
	}
	if report.Release != release || filepath.Base(report.Kernel) != "vmlinuz" || len(report.Parts) != 3 {
		t.Errorf("report %+v", report)
	}
	root := unpack(t, out)
	for name, want := range map[string]string{
		"init": "the base", "tftpdata/config.json": "{}", "tftpdata/52-54-00-00-00-01/imagename": "debian/12\n",
		"lib/modules/" + release + "/kernel/x/xts.ko.zst":           "module xts",
		"lib/modules/" + release + "/kernel/x/wanted-by-xts.ko.zst": "module wanted-by-xts",
	} {
		got, err := os.ReadFile(filepath.Join(root, name))
		if filepath.Ext(name) == ".zst" {
			got = whole(t, got)
		}
		if err != nil || string(got) != want {
			t.Errorf("%s = %q, %v", name, got, err)
		}
	}
	if exists(t, root, "lib/modules", release, "kernel/x/unwanted.ko.zst") || exists(t, root, "etc/ssl/installer") {
		t.Error("there is more in it than was asked for")
	}
	ca, err := os.ReadFile(filepath.Join(root, "etc/ssl/CA.pem"))
	want, err2 := os.ReadFile(certificate)
	if err != nil || err2 != nil || !bytes.Equal(ca, want) {
		t.Errorf("CA.pem: %v %v", err, err2)
	}
	if info, err := os.Stat(filepath.Join(root, "tftpdata")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("tftpdata: %v %v", info, err)
	}

	// uinit reads the index that is in it, and finds each module's file.
	dir := filepath.Join(root, "lib/modules", release)
	index, err := modules.Read(os.DirFS(dir))
	if err != nil {
		t.Fatal(err)
	}
	if len(index.Names()) != report.Modules {
		t.Errorf("%d modules in the index, %d reported", len(index.Names()), report.Modules)
	}
	for _, name := range index.Names() {
		file, _ := index.File(name)
		if !exists(t, dir, file) {
			t.Errorf("%s is in the index, but not there", file)
		}
	}
	softdep, err := os.ReadFile(filepath.Join(dir, "modules.softdep"))
	if err != nil || string(softdep) != "softdep ext4 pre: crc32c\n" {
		t.Errorf("modules.softdep = %q, %v", softdep, err)
	}
	alias, err := os.ReadFile(filepath.Join(dir, "modules.alias"))
	if err != nil || strings.Contains(string(alias), "unwanted") {
		t.Errorf("modules.alias has what was left out: %v", err)
	}

	// The same again is the same, byte for byte.
	before, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Initramfs(t.Context(), options); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(out)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("two runs differ (%v)", err)
	}

	// With an identity, the file is for its owner's eyes.
	options.Cert, options.Key, options.WithIdentity = certificate, key, true
	if _, err := Initramfs(t.Context(), options); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(out); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("a medium with a key: %v %v", info, err)
	}
	root = unpack(t, out)
	if info, err := os.Stat(filepath.Join(root, "etc/ssl/installer/key.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key.pem: %v %v", info, err)
	}
}

// Whatever is wrong has a code, and leaves what was there.
func TestInitramfsRefuses(t *testing.T) {
	certificate, key := authority(t)
	base, kernel := baseFile(t), kernelDir(t)
	withKey := t.TempDir()
	keyText, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(withKey, "config.json"), keyText)
	both := t.TempDir()
	for _, r := range []string{"6.1", "6.2"} {
		write(t, filepath.Join(both, "lib/modules", r, "modules.dep"), nil)
	}
	noImage := t.TempDir()
	write(t, filepath.Join(noImage, "modules/6.1/modules.dep"), nil)
	notIndexed := t.TempDir()
	for _, name := range []string{"vmlinuz", "lib/modules/6.1/modules.dep", "lib/modules/6.1/modules.alias"} {
		write(t, filepath.Join(notIndexed, name), nil)
	}
	text := write(t, filepath.Join(t.TempDir(), "text"), []byte("not what you think"))

	for _, test := range []struct {
		name, code string
		change     func(*Options)
	}{
		{"no base", codeUsage, func(o *Options) { o.Base = "" }},
		{"missing base", codeUsage, func(o *Options) { o.Base = filepath.Join(kernel, "missing") }},
		{"a base that is none", codeUsage, func(o *Options) { o.Base = text }},
		{"unknown set", codeUsage, func(o *Options) { o.Modules = "some" }},
		{"no kernel", codeUsage, func(o *Options) { o.KernelDir = "" }},
		{"an empty kernel directory", codeKernel, func(o *Options) { o.KernelDir = t.TempDir() }},
		{"two kernels", codeKernel, func(o *Options) { o.KernelDir = both }},
		{"no vmlinuz", codeKernel, func(o *Options) { o.KernelDir = noImage }},
		{"an empty index", codeKernel, func(o *Options) { o.KernelDir = notIndexed }},
		{"a CA that is none", codeUsage, func(o *Options) { o.CA = text }},
		{"a missing CA", codeUsage, func(o *Options) { o.CA = filepath.Join(kernel, "missing") }},
		{"a key for a CA", CodeSecret, func(o *Options) { o.CA = key }},
		{"a key among the files", CodeSecret, func(o *Options) { o.Files = withKey }},
		{"no files", codeUsage, func(o *Options) { o.Files = t.TempDir() }},
		{"a missing directory", codeUsage, func(o *Options) { o.Files = filepath.Join(kernel, "missing") }},
		{"an identity not asked for", CodeSecret, func(o *Options) { o.Cert, o.Key = certificate, key }},
		{"half an identity", codeUsage, func(o *Options) { o.Cert, o.WithIdentity = certificate, true }},
		{"a damaged identity", codeUsage, func(o *Options) { o.Cert, o.Key, o.WithIdentity = certificate, text, true }},
	} {
		out := write(t, filepath.Join(t.TempDir(), "out"), []byte("the old one"))
		options := Options{Base: base, KernelDir: kernel, Modules: SetVM, CA: certificate, Out: out}
		test.change(&options)
		_, err := Initramfs(t.Context(), options)
		var coded *Error
		if !errors.As(err, &coded) || coded.Code() != test.code {
			t.Errorf("%s: %v, wanted %s", test.name, err, test.code)
		}
		if left, err := os.ReadFile(out); err != nil || string(left) != "the old one" {
			t.Errorf("%s: the old file is %q now (%v)", test.name, left, err)
		}
		if entries, err := os.ReadDir(filepath.Dir(out)); err != nil || len(entries) != 1 {
			t.Errorf("%s: left %v (%v)", test.name, entries, err)
		}
	}
}

func TestInitramfsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Initramfs(ctx, Options{Base: baseFile(t), KernelDir: kernelDir(t), Out: filepath.Join(t.TempDir(), "out")})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// Without modules there need be no kernel, and with nothing added the base
// comes through as it is.
func TestInitramfsBare(t *testing.T) {
	base, out := baseFile(t), filepath.Join(t.TempDir(), "out")
	report, err := Initramfs(t.Context(), Options{Base: base, Modules: SetNone, Out: out})
	if err != nil || len(report.Parts) != 1 {
		t.Fatalf("%+v, %v", report, err)
	}
	want, err := os.ReadFile(base)
	got, err2 := os.ReadFile(out)
	if err != nil || err2 != nil || !bytes.Equal(got, padded(slices.Clone(want))) {
		t.Errorf("the base was changed: %v %v", err, err2)
	}
}

func TestFilterLines(t *testing.T) {
	got := filterLines("# a\nb\n\n c\nd", func(line string) bool { return line != "b" })
	if diff := cmp.Diff("# a\nc\nd\n", string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestForOneMachine: an inventory names the modules, and a directory the
// firmware that they want.
func TestForOneMachine(t *testing.T) {
	kernel := kernelDir(t)
	firmware := t.TempDir()
	write(t, filepath.Join(firmware, "vendor/chip.bin.xz"), squeeze(t, ".xz", []byte("microcode")))
	// A real module, of the kernel that the tests boot, names real firmware; this
	// one is an ELF file made for it.
	module := filepath.Join(kernel, "lib/modules", release, "kernel/x/igb.ko")
	matches, err := filepath.Glob(module + "*")
	if err != nil || len(matches) != 1 {
		t.Fatalf("%v, %v", matches, err)
	}
	note := write(t, filepath.Join(t.TempDir(), "modinfo"), []byte("license=GPL\x00firmware=vendor/chip.bin\x00firmware=vendor/none.bin\x00"))
	object := filepath.Join(t.TempDir(), "igb.o")
	if out, err := exec.Command("objcopy", "-I", "binary", "-O", "elf64-x86-64", "--rename-section", ".data=.modinfo", note, object).CombinedOutput(); err != nil {
		t.Fatalf("objcopy: %v: %s", err, out)
	}
	data, err := os.ReadFile(object)
	if err != nil {
		t.Fatal(err)
	}
	suffix := strings.TrimPrefix(matches[0], module)
	write(t, matches[0], squeeze(t, suffix, data))

	machine := write(t, filepath.Join(t.TempDir(), "inventory.json"), []byte(`{"format":1,"arch":"amd64","modules":["igb"]}`))
	out := filepath.Join(t.TempDir(), "out")
	options := Options{Base: baseFile(t), KernelDir: kernel, Arch: "amd64", For: machine, Firmware: firmware, Out: out}
	report, err := Initramfs(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"vendor/none.bin"}, report.MissingFirmware); report.Firmware != 1 || diff != "" {
		t.Errorf("%d firmware files; missing (-want +got):\n%s", report.Firmware, diff)
	}
	root := unpack(t, out)
	if data, err := os.ReadFile(filepath.Join(root, "lib/firmware/vendor/chip.bin")); err != nil || string(data) != "microcode" {
		t.Errorf("the firmware is %q, %v", data, err)
	}
	for name, want := range map[string]bool{"igb": true, "ext4": true, "e1000": false, "nvme": false} {
		_, err := os.Stat(filepath.Join(root, "lib/modules", release, "kernel/x", name+".ko.zst"))
		if (err == nil) != want {
			t.Errorf("module %s: there is %v, want %v", name, err, want)
		}
	}
	for text, code := range map[string]string{
		`{"format":1,"arch":"arm64","modules":["igb"]}`: CodeArch,
		`{"format":1,"arch":"amd64"}`:                   codeUsage,
		`{`:                                             codeUsage,
	} {
		options.For = write(t, filepath.Join(t.TempDir(), "inventory.json"), []byte(text))
		_, err := Initramfs(t.Context(), options)
		var coded *Error
		if !errors.As(err, &coded) || coded.Code() != code {
			t.Errorf("%s: got %v, want %s", text, err, code)
		}
	}
}
