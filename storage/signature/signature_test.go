package signature

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/storage"
)

const mib = 1 << 20

// run runs a real tool; a missing one fails the test.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C")
	cmd.Stdin = strings.NewReader("a passphrase")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// seen is what blkid -p says about a place; empty when it recognises nothing.
func seen(t *testing.T, file string, args ...string) map[string]string {
	t.Helper()
	out, err := exec.Command("/usr/sbin/blkid", append(append([]string{"-p", "-o", "export"}, args...), file)...).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) && (exit.ExitCode() == 2) {
		return nil
	}
	if err != nil {
		t.Fatalf("blkid: %v", err)
	}
	m := make(map[string]string)
	for line := range strings.SplitSeq(string(out), "\n") {
		if k, v, ok := strings.Cut(line, "="); ok {
			m[k] = v
		}
	}
	delete(m, "DEVNAME")
	return m
}

func create(t *testing.T, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	return name
}

func open(t *testing.T, name string) (*os.File, uint64) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return f, uint64(fi.Size())
}

func write(t *testing.T, name string, at int64, b []byte) {
	t.Helper()
	f, _ := open(t, name)
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// luks1 and the like: quick to make, since only the header matters here.
var cheapKDF = []string{"--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file=-"}

var makers = []struct {
	kind string
	size int64
	make func(t *testing.T, file string)
	// hand-made bytes that blkid need not agree on
	ours bool
}{
	{kind: "ext4", size: 64 * mib, make: func(t *testing.T, f string) { run(t, "mkfs.ext4", "-q", "-F", "-L", "my root", f) }},
	{kind: "ext3", size: 64 * mib, make: func(t *testing.T, f string) { run(t, "mkfs.ext4", "-q", "-F", "-t", "ext3", f) }},
	{kind: "ext2", size: 64 * mib, make: func(t *testing.T, f string) { run(t, "mkfs.ext4", "-q", "-F", "-t", "ext2", "-L", "two", f) }},
	{kind: "xfs", size: 320 * mib, make: func(t *testing.T, f string) { run(t, "mkfs.xfs", "-q", "-L", "xx", f) }},
	{kind: "btrfs", size: 300 * mib, make: func(t *testing.T, f string) { run(t, "mkfs.btrfs", "-q", "-L", "b tree", f) }},
	{kind: "vfat", size: 8 * mib, make: func(t *testing.T, f string) { run(t, "mkfs.vfat", "-n", "FIRSTLIGHT", f) }},
	{kind: "vfat", size: 300 * mib, make: func(t *testing.T, f string) { run(t, "mkfs.vfat", "-F", "32", "-n", "ESP", f) }},
	{kind: "ntfs", size: 16 * mib, make: func(t *testing.T, f string) { run(t, "mkfs.ntfs", "-F", "-Q", "-q", f) }},
	{kind: "swap", size: 16 * mib, make: func(t *testing.T, f string) { run(t, "mkswap", "-L", "sw", f) }},
	{kind: "luks", size: 32 * mib, make: func(t *testing.T, f string) {
		run(t, "cryptsetup", append([]string{"luksFormat", "--type", "luks2", "--label", "secret", f}, cheapKDF...)...)
	}},
	{kind: "luks", size: 32 * mib, make: func(t *testing.T, f string) {
		run(t, "cryptsetup", append([]string{"luksFormat", "--type", "luks1", f}, cheapKDF...)...)
	}},
	{kind: "iso9660", size: 0, make: func(t *testing.T, f string) {
		run(t, "xorriso", "-outdev", f, "-blank", "as_needed", "-volid", "DISC", "-map", "/etc/hostname", "/hostname", "-padding", "4m")
	}},
	{kind: "lvm", size: 32 * mib, make: func(t *testing.T, f string) {
		device := strings.TrimSpace(run(t, "losetup", "--find", "--show", f))
		defer run(t, "losetup", "--detach", device)
		run(t, "pvcreate", "--config", `devices { filter=["a|`+device+`|","r|.*|"] use_devicesfile=0 }`, "-y", device)
	}},
	{kind: "md", size: 32 * mib, make: func(t *testing.T, f string) { mdSuperblock(t, f, 0) }},
	{kind: "md", size: 32 * mib, make: func(t *testing.T, f string) { mdSuperblock(t, f, 4096) }},
	{kind: "md", size: 32 * mib, make: func(t *testing.T, f string) { mdSuperblock(t, f, 32*mib-8192) }},
	{kind: "md", size: 32 * mib, make: func(t *testing.T, f string) {
		b := make([]byte, 4096)
		for i, v := range []uint32{0xa92b4efc, 0, 90, 0, 0, 0x11111111} {
			binary.LittleEndian.PutUint32(b[4*i:], v)
		}
		for i := range 3 {
			binary.LittleEndian.PutUint32(b[52+4*i:], 0x22222222)
		}
		write(t, f, 32*mib-64<<10, b)
	}},
	{kind: "zfs", size: 32 * mib, make: func(t *testing.T, f string) {
		for _, label := range []int64{0, 256 << 10, 32*mib - 512<<10, 32*mib - 256<<10} {
			for i := range int64(64) {
				write(t, f, label+128<<10+i<<10, binary.LittleEndian.AppendUint64(nil, 0x00bab10c))
			}
		}
	}, ours: true},
	{kind: "bluestore", size: 4 * mib, make: func(t *testing.T, f string) {
		write(t, f, 0, []byte("bluestore block device\n00112233-4455-6677-8899-aabbccddeeff\n"))
	}, ours: true},
	{kind: "bitlocker", size: 4 * mib, make: func(t *testing.T, f string) {
		b := make([]byte, 512)
		copy(b[3:], "-FVE-FS-")
		binary.LittleEndian.PutUint64(b[0xb0:], 2*mib)
		write(t, f, 0, b)
		write(t, f, 2*mib, []byte("-FVE-FS-"))
	}, ours: true},
}

// mdSuperblock writes a version 1 super block (md_p.h) as mdadm would; making a
// real array needs the kernel's md driver.
func mdSuperblock(t *testing.T, f string, at int64) {
	b := make([]byte, 256+2*4)
	le := binary.LittleEndian
	le.PutUint32(b, 0xa92b4efc)
	le.PutUint32(b[4:], 1)
	copy(b[16:], "0123456789abcdef")
	copy(b[32:], "host:array")
	le.PutUint32(b[72:], 1)               // level
	le.PutUint64(b[80:], 20480)           // size
	le.PutUint32(b[92:], 2)               // disks
	le.PutUint64(b[128:], 2048)           // data offset
	le.PutUint64(b[136:], 20480)          // data size
	le.PutUint64(b[144:], uint64(at)/512) // where it is
	le.PutUint32(b[220:], 2)              // most devices
	sum := uint64(0)
	for i := 0; i < len(b); i += 4 {
		sum += uint64(le.Uint32(b[i:]))
	}
	le.PutUint32(b[216:], uint32(sum)+uint32(sum>>32))
	write(t, f, at, b)
}

func TestRealTools(t *testing.T) {
	for i, m := range makers {
		t.Run(fmt.Sprintf("%02d-%s", i, m.kind), func(t *testing.T) {
			t.Parallel()
			file := create(t, m.size)
			m.make(t, file)
			f, size := open(t, file)

			contents, err := Probe("sdx", f, size, 512)
			if err != nil {
				t.Fatal(err)
			}
			if len(contents) != 1 || contents[0].Kind != m.kind || contents[0].Where != "sdx" {
				t.Fatalf("found %+v, want one %s", contents, m.kind)
			}
			if said := seen(t, file); !m.ours {
				if said == nil {
					t.Fatal("blkid recognises nothing: the test made nothing")
				}
				if got, want := contents[0].UUID, said["UUID"]; !strings.EqualFold(got, want) && m.kind != "iso9660" {
					t.Errorf("UUID %s, blkid says %s", got, want)
				}
				if got, want := contents[0].Label, strings.ReplaceAll(said["LABEL"], `\`, ""); got != want && m.kind != "ntfs" {
					t.Errorf("label %q, blkid says %q", got, want)
				}
			}
			// The same inside a partition of a disk.
			disk := create(t, int64(size)+8*mib)
			run(t, "sgdisk", "-n", fmt.Sprintf("1:4096:+%d", size/512), disk)
			run(t, "sfdisk", "-q", "--part-label", disk, "1", "firstlight:/x")
			run(t, "dd", "if="+file, "of="+disk, "bs=1M", "seek=2", "conv=sparse,notrunc", "status=none")
			d, dsize := open(t, disk)
			contents, err = Probe("nvme0n1", d, dsize, 512)
			if err != nil {
				t.Fatal(err)
			}
			var kinds []string
			for _, c := range contents {
				kinds = append(kinds, c.Where+" "+c.Kind)
			}
			if want := []string{"nvme0n1 gpt", "nvme0n1p1 partition", "nvme0n1p1 " + m.kind}; !slices.Equal(kinds, want) {
				t.Errorf("found %v, want %v", kinds, want)
			}
			if (storage.Disk{Name: "nvme0n1", Contents: contents}).Foreign() {
				t.Error("a partition with our name is foreign")
			}

			erase(t, disk)
			if said := seen(t, disk, "-O", fmt.Sprint(2*mib), "-S", fmt.Sprint(size)); said != nil {
				t.Errorf("blkid still sees %v in the partition", said)
			}
			erase(t, file)
		})
	}
}

// erase erases the file and checks with wipefs and blkid that nothing is left.
func erase(t *testing.T, file string) {
	t.Helper()
	f, size := open(t, file)
	places, err := Places(f, size, 512)
	if err != nil {
		t.Fatal(err)
	}
	written, err := Erase(f, places)
	if err != nil {
		t.Fatal(err)
	}
	if written == 0 || written > size {
		t.Errorf("wrote %d of %d bytes", written, size)
	}
	if out := run(t, "wipefs", "-n", file); strings.TrimSpace(out) != "" {
		t.Errorf("wipefs still sees:\n%s", out)
	}
	if said := seen(t, file); said != nil {
		t.Errorf("blkid still sees %v", said)
	}
	if contents, err := Probe("sdx", f, size, 512); err != nil || contents != nil {
		t.Errorf("still there: %+v, %v", contents, err)
	}
}

func TestTables(t *testing.T) {
	t.Run("gpt, both sector sizes known", func(t *testing.T) {
		disk := create(t, 64*mib)
		run(t, "sgdisk", "-n", "1:2048:+10M", "-c", "1:alpha", "-n", "5:0:+20M", "-c", "5:beta ü", disk)
		want := []string{"sda gpt", "sda1 partition alpha", "sda5 partition beta ü"}
		for _, sector := range []uint32{512, 4096} {
			f, size := open(t, disk)
			if got := names(t, f, size, sector); !slices.Equal(got, want) {
				t.Errorf("sector size %d: %v", sector, got)
			}
		}
		// The first copy damaged: the second one speaks.
		write(t, disk, 512, make([]byte, 1024))
		f, size := open(t, disk)
		if got := names(t, f, size, 512); !slices.Equal(got, want) {
			t.Errorf("from the second copy: %v", got)
		}
		erase(t, disk)
	})
	t.Run("gpt of a disk that grew", func(t *testing.T) {
		disk := create(t, 64*mib)
		run(t, "sgdisk", "-n", "1:2048:+10M", disk)
		if err := os.Truncate(disk, 128*mib); err != nil {
			t.Fatal(err)
		}
		erase(t, disk)
		f, _ := open(t, disk)
		b := make([]byte, 8)
		if _, err := f.ReadAt(b, 64*mib-512); err != nil || string(b) == "EFI PART" {
			t.Errorf("the old second header is still there: %q, %v", b, err)
		}
	})
	t.Run("gpt with damaged entries", func(t *testing.T) {
		disk := create(t, 64*mib)
		run(t, "sgdisk", "-n", "1:2048:+10M", disk)
		write(t, disk, 1024+40, []byte{1, 2, 3})
		write(t, disk, 64*mib-33*512+40, []byte{1, 2, 3})
		f, size := open(t, disk)
		if got := names(t, f, size, 512); !slices.Equal(got, []string{"sda gpt damaged"}) {
			t.Errorf("%v", got)
		}
	})
	t.Run("mbr with logical partitions", func(t *testing.T) {
		disk := create(t, 64*mib)
		cmd := exec.Command("/usr/sbin/sfdisk", "-q", disk)
		cmd.Stdin = strings.NewReader("label: dos\nlabel-id: 0x12345678\n2048,20480,83,*\n22528,,5\n24576,20480,83\n47104,20480,83\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("sfdisk: %v %s", err, out)
		}
		inner := create(t, 10*mib)
		run(t, "mkfs.ext4", "-q", "-F", inner)
		run(t, "dd", "if="+inner, "of="+disk, "bs=512", "seek=47104", "conv=notrunc", "status=none")
		f, size := open(t, disk)
		want := []string{"sda mbr", "sda1 partition", "sda2 partition", "sda5 partition", "sda6 partition", "sda6 ext4"}
		if got := names(t, f, size, 512); !slices.Equal(got, want) {
			t.Errorf("%v", got)
		}
		erase(t, disk)
		if said := seen(t, disk, "-O", fmt.Sprint(47104*512)); said != nil {
			t.Errorf("blkid still sees %v in the logical partition", said)
		}
	})
	t.Run("a table in a partition", func(t *testing.T) {
		inner, disk := create(t, 32*mib), create(t, 64*mib)
		run(t, "sgdisk", "-n", "1:2048:+10M", "-c", "1:inner", inner)
		run(t, "sgdisk", "-n", "1:2048:+32M", "-c", "1:outer", disk)
		run(t, "dd", "if="+inner, "of="+disk, "bs=1M", "seek=1", "conv=notrunc", "status=none")
		f, size := open(t, disk)
		want := []string{"sda gpt", "sda1 partition outer", "sda1 gpt", "sda1p1 partition inner"}
		if got := names(t, f, size, 512); !slices.Equal(got, want) {
			t.Errorf("%v", got)
		}
		erase(t, disk)
	})
}

func names(t *testing.T, f *os.File, size uint64, sector uint32) []string {
	t.Helper()
	contents, err := Probe("sda", f, size, sector)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, c := range contents {
		out = append(out, strings.TrimSpace(c.Where+" "+c.Kind+" "+c.Label))
	}
	return out
}

// A key slot that survives lets an old passphrase open an old disk: the whole
// header of a LUKS volume must be zero, and so must its second copy.
func TestEraseKeySlots(t *testing.T) {
	for _, kind := range []string{"luks1", "luks2"} {
		t.Run(kind, func(t *testing.T) {
			disk := create(t, 64*mib)
			run(t, "cryptsetup", append([]string{"luksFormat", "--type", kind, disk}, cheapKDF...)...)
			if kind == "luks2" {
				// Only the second header is left.
				write(t, disk, 0, make([]byte, 4096))
			}
			erase(t, disk)
			b, err := os.ReadFile(disk)
			if err != nil {
				t.Fatal(err)
			}
			if i := bytes.IndexFunc(b, func(r rune) bool { return r != 0 }); i >= 0 {
				t.Errorf("byte %d of the old volume is not zero", i)
			}
		})
	}
}

// What an older layout left in the middle of the disk, where a new partition
// will begin or end, must not come to light in it.
func TestInside(t *testing.T) {
	disk, member, swap := create(t, 256*mib), create(t, 64*mib), create(t, 64*mib)
	mdSuperblock(t, member, 64*mib-8192)
	run(t, "mkswap", swap)
	luks := create(t, 64*mib)
	run(t, "cryptsetup", append([]string{"luksFormat", "--type", "luks2", luks}, cheapKDF...)...)
	write(t, luks, 0, make([]byte, 4096)) // only its second header is left
	for i, file := range []string{member, swap, luks} {
		run(t, "dd", "if="+file, "of="+disk, "bs=1M", fmt.Sprint("seek=", 1+64*i), "conv=sparse,notrunc", "status=none")
	}
	f, size := open(t, disk)
	if contents, err := Probe("sda", f, size, 512); err != nil || contents != nil {
		t.Fatalf("%+v, %v", contents, err)
	}
	for i := range uint64(3) {
		offset := mib + 64*mib*i
		at := []string{"-O", fmt.Sprint(offset), "-S", fmt.Sprint(64 * mib)}
		if seen(t, disk, at...) == nil && i != 2 {
			t.Fatal("blkid recognises nothing: the test made nothing")
		}
		places, err := Inside(f, offset, 64*mib, 512)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range places {
			if p.Offset < offset || p.Offset+p.Size > offset+64*mib {
				t.Errorf("%+v lies outside of the partition", p)
			}
		}
		if _, err := Erase(f, places); err != nil {
			t.Fatal(err)
		}
		if said := seen(t, disk, at...); said != nil {
			t.Errorf("blkid still sees %v", said)
		}
	}
}

type brokenReader struct{}

func (brokenReader) ReadAt([]byte, int64) (int, error) { return 0, errors.New("input/output error") }

func TestUnreadable(t *testing.T) {
	_, err := Probe("sda", brokenReader{}, 1<<30, 512)
	var coded *storage.Error
	if !errors.As(err, &coded) || coded.Code() != storage.CodeUnreadable {
		t.Errorf("%v", err)
	}
}

func TestMerge(t *testing.T) {
	got := Merge([]Range{{10, 5}, {0, 10}, {30, 1}, {12, 10}, {40, 0}})
	if d := cmp.Diff([]Range{{0, 22}, {30, 1}}, got); d != "" {
		t.Error(d)
	}
}

func FuzzProbe(f *testing.F) {
	f.Add(make([]byte, 4096), uint32(512))
	f.Add(make([]byte, 4096), uint32(1))
	f.Add([]byte(strings.Repeat("EFI PART", 1024)), uint32(1))
	f.Fuzz(func(t *testing.T, b []byte, sector uint32) {
		// Whatever stands on a disk: no panic, nothing outside of it.
		r := bytes.NewReader(b)
		contents, err := Probe("sda", r, uint64(len(b)), sector)
		if err != nil {
			return
		}
		for _, c := range contents {
			if c.Size > uint64(len(b)) || c.Offset > uint64(len(b))-c.Size {
				t.Errorf("%+v lies outside", c)
			}
		}
		places, err := Places(r, uint64(len(b)), sector)
		if err != nil {
			return
		}
		for _, p := range places {
			if p.Size > uint64(len(b)) || p.Offset > uint64(len(b))-p.Size {
				t.Errorf("%+v lies outside", p)
			}
		}
	})
}

// What lies in a logical volume or in a RAID comes to light again when somebody
// makes the same stack anew: its key slots must be gone.
func TestStacked(t *testing.T) {
	secret := create(t, 32*mib)
	run(t, "cryptsetup", append([]string{"luksFormat", "--type", "luks2", secret}, cheapKDF...)...)
	header, err := os.ReadFile(secret)
	if err != nil {
		t.Fatal(err)
	}
	slot := bytes.IndexFunc(header[256<<10:], func(r rune) bool { return r != 0 }) + 256<<10 // in the area of the key slots
	for _, x := range []struct {
		name  string
		make  func(t *testing.T, disk string) (at int64)
		kinds []string
	}{
		{"in a logical volume", func(t *testing.T, disk string) int64 {
			device := strings.TrimSpace(run(t, "losetup", "--find", "--show", disk))
			defer run(t, "losetup", "--detach", device)
			lvm := func(args ...string) string {
				return run(t, "lvm", append(args, "--driverloaded=n", `--config=devices{filter=["a|`+device+`|","r|.*|"] use_devicesfile=0 scan=["/dev"]} global{use_lvmlockd=0} backup{backup=0 archive=0}`)...)
			}
			lvm("pvcreate", "-q", device)
			lvm("vgcreate", "-q", "old-vg", device)
			lvm("lvcreate", "-q", "-an", "-Zn", "-Wn", "-L40M", "-nswap", "old-vg")
			lvm("lvcreate", "-q", "-an", "-Zn", "-Wn", "-L48M", "-nsecret", "old-vg")
			return mib + 40*mib // the first extent begins at 1 MiB
		}, []string{"sda lvm old-vg", "sda lv old-vg/secret", "sda lv old-vg/swap"}},
		{"in a RAID 1", func(t *testing.T, disk string) int64 {
			mdSuperblock(t, disk, 4096)
			data := binary.LittleEndian.AppendUint64(nil, 2048*33) // data_offset in sectors
			write(t, disk, 4096+128, append(data, binary.LittleEndian.AppendUint64(nil, 64*2048)...))
			return 33 * mib
		}, nil},
	} {
		t.Run(x.name, func(t *testing.T) {
			disk := create(t, 128*mib)
			at := x.make(t, disk)
			write(t, disk, at, header)
			f, size := open(t, disk)
			if got := names(t, f, size, 512); x.kinds != nil && !slices.Equal(got, x.kinds) {
				t.Errorf("found %q, want %q", got, x.kinds)
			}
			erase(t, disk)
			left := make([]byte, 4096)
			for _, place := range []int64{at, at + 16<<10, at + int64(slot)} {
				if _, err := f.ReadAt(left, place); err != nil || len(bytes.Trim(left, "\x00")) > 0 {
					t.Errorf("the volume's byte %d is not zero (%v)", place-at, err)
				}
			}
		})
	}
}
