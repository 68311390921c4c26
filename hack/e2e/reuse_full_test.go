//go:build full

package e2e

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/hack/lab"
	"github.com/firstlight/firstlight/hack/qemu"
)

// TestReuse: parts of the image lie in an XFS on a logical volume in two pieces,
// in a subvolume of a btrfs, and in an ext4 on a striped md RAID; all of them
// are found.
func TestReuse(t *testing.T) {
	root := t.TempDir()
	command(t, "tar", "-C", root, "-xf", site.Products.Root)
	dir := t.TempDir()
	disks := []string{filepath.Join(dir, "lvm"), filepath.Join(dir, "btrfs"), filepath.Join(dir, "md0"), filepath.Join(dir, "md1")}
	for n, path := range disks {
		size := int64(1200 << 20)
		if n == 0 {
			size = lab.DiskBytes // the new system shall lie here
		}
		if err := qemu.CreateDisk(path, size); err != nil {
			t.Fatal(err)
		}
	}
	const size = 800 << 20
	volume := filepath.Join(dir, "volume")
	fresh := func() {
		if err := qemu.CreateDisk(volume, size); err != nil {
			t.Fatal(err)
		}
	}
	fresh()
	command(t, "mkfs.xfs", "-q", volume)
	copyInto(t, volume, root, "", "usr/lib")
	lvmInTwoPieces(t, disks[0], volume)

	command(t, "mkfs.btrfs", "-q", disks[1])
	copyInto(t, disks[1], root, "@rootfs", "usr/share", "usr/bin", "usr/sbin", "etc", "var")

	fresh()
	command(t, "mkfs.ext4", "-q", "-F", volume)
	copyInto(t, volume, root, "", "boot")
	stripe(t, volume, disks[2], disks[3])

	r := reuseFrom(t, disks...)
	r.check(t, "/dev/old/root (xfs)", "/dev/vdb (btrfs)", "RAID 0 on /dev/vdc and /dev/vdd (ext4)")
	for _, tree := range []string{"/dev/old/root (xfs)", "/dev/vdb (btrfs)", "RAID 0 on /dev/vdc and /dev/vdd (ext4)"} {
		if r.lines.index("] stage: 0 objects from "+tree) >= 0 {
			t.Errorf("nothing came from %s", tree)
		}
	}
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		if exit, ok := err.(*exec.ExitError); ok {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		t.Fatalf("%s %s: %v", name, strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out))
}

// copyInto copies parts of a root into the file system in an image, below a
// subvolume if one is named. It is mounted where nobody else sees it: a process
// whose mount namespace is made meanwhile would keep it mounted, and what is in
// memory of it would not be in the image.
func copyInto(t *testing.T, image, root, subvolume string, parts ...string) {
	t.Helper()
	const script = `set -eu
image=$1 root=$2 subvolume=$3 to=$4
shift 4
mount -o loop "$image" "$to"
[ -z "$subvolume" ] || btrfs subvolume create "$to/$subvolume" >/dev/null
for part; do
	mkdir -p "$(dirname "$to/$subvolume/$part")"
	cp -a "$root/$part" "$to/$subvolume/$part"
done
umount "$to"`
	command(t, "unshare", append([]string{"--mount", "sh", "-c", script, "sh", image, root, subvolume, t.TempDir()}, parts...)...)
}

// lvmInTwoPieces makes a logical volume old/root on the disk, in two pieces, and
// copies volume into it. lvm2 runs without the kernel's device mapper.
func lvmInTwoPieces(t *testing.T, disk, volume string) {
	t.Helper()
	node := command(t, "losetup", "-f", "--show", disk)
	defer command(t, "losetup", "-d", node)
	config := "--config=devices{filter=[\"a|" + node + "|\",\"r|.*|\"] use_devicesfile=0 scan=[\"/dev\"]} backup{backup=0 archive=0}"
	lvm := func(args ...string) string { return command(t, "lvm", append(args, "--driverloaded=n", config)...) }
	lvm("pvcreate", "-q", node)
	lvm("vgcreate", "-q", "-s", "4m", "old", node)
	lvm("lvcreate", "-q", "-an", "-Zn", "-Wn", "-l200", "-nroot", "old", node+":10-109:150-249")
	if got := lvm("lvs", "--noheadings", "-o", "seg_pe_ranges", "old/root"); len(strings.Fields(got)) != 2 {
		t.Fatalf("not two pieces: %s", got)
	}
	begin, err := strconv.ParseInt(lvm("pvs", "--noheadings", "--units=b", "--nosuffix", "-o", "pe_start"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	for piece, extent := range []int64{10, 150} {
		command(t, "dd", "if="+volume, "of="+disk, "bs=1M", "count=400", fmt.Sprint("skip=", piece*400),
			fmt.Sprint("seek=", begin+extent*4<<20), "oflag=seek_bytes", "conv=notrunc,sparse", "status=none")
	}
}

// stripe lays a volume out over two disks as an md RAID 0 does, with super
// blocks of version 1.2 (include/uapi/linux/raid/md_p.h); making one takes a
// kernel with md, which the host need not have.
func stripe(t *testing.T, volume string, disks ...string) {
	t.Helper()
	const chunk, data = 64 << 10, 1 << 20
	in, err := os.Open(volume)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		t.Fatal(err)
	}
	each := uint64(info.Size()) / uint64(len(disks))
	var out []*os.File
	for n, path := range disks {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		out = append(out, f)
		b := make([]byte, 4096)
		le := binary.LittleEndian
		le.PutUint32(b, 0xa92b4efc)
		le.PutUint32(b[4:], 1)
		copy(b[16:], "an old RAID's id") // set_uuid
		copy(b[32:], "old:0")
		le.PutUint64(b[64:], 1_600_000_000)          // ctime
		le.PutUint32(b[88:], chunk/512)              // level and layout are 0
		le.PutUint32(b[92:], uint32(len(disks)))     // raid_disks
		le.PutUint64(b[128:], data/512)              // data_offset
		le.PutUint64(b[136:], each/512)              // data_size
		le.PutUint64(b[144:], 8)                     // super_offset
		le.PutUint32(b[160:], uint32(n))             // dev_number
		copy(b[168:], fmt.Sprintf("member %09d", n)) // device_uuid
		le.PutUint64(b[192:], 1_600_000_000)         // utime
		le.PutUint64(b[208:], ^uint64(0))            // resync_offset
		le.PutUint32(b[220:], uint32(2*len(disks)))  // max_dev
		for role := range 2 * len(disks) {
			value := uint16(0xffff)
			if role < len(disks) {
				value = uint16(role)
			}
			le.PutUint16(b[256+2*role:], value)
		}
		var sum uint64
		for at := 0; at < 256+4*len(disks); at += 4 {
			sum += uint64(le.Uint32(b[at:]))
		}
		le.PutUint32(b[216:], uint32(sum)+uint32(sum>>32))
		if _, err := f.WriteAt(b, 4096); err != nil {
			t.Fatal(err)
		}
	}
	buffer := make([]byte, chunk)
	for n := int64(0); ; n++ {
		_, err := io.ReadFull(in, buffer)
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out[n%int64(len(out))].WriteAt(buffer, data+n/int64(len(out))*chunk); err != nil {
			t.Fatal(err)
		}
	}
}
