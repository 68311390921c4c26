package apply

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/block"
	"github.com/firstlight/firstlight/storage/keys"
	"github.com/firstlight/firstlight/storage/mount"
	"github.com/firstlight/firstlight/storage/signature"
	"github.com/firstlight/firstlight/storage/tool"
)

func ids(name string) (id [16]byte) {
	sum := sha256.Sum256([]byte(name))
	copy(id[:], sum[:])
	return id
}

func create(t *testing.T, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
	return name
}

func sh(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func loop(t *testing.T, file string, sector int) string {
	t.Helper()
	device := sh(t, "/usr/sbin/losetup", "--find", "--show", "--sector-size", fmt.Sprint(sector), file)
	t.Cleanup(func() {
		// Partitions that the kernel was told of outlive the loop device.
		_ = exec.Command("/usr/bin/partx", "--delete", device).Run() // fails when there are none
		sh(t, "/usr/sbin/losetup", "--detach", device)
	})
	return device
}

func spec() storage.Spec {
	return storage.Spec{
		Volumes: []storage.VolumeSpec{
			{MountPoint: "/", MinimumFreeBytes: 20 * storage.MiB},
			{MountPoint: "/firstlight-test-home", MinimumFreeBytes: 16 * storage.MiB, RootUserID: 12, RootGroupID: 34},
			{MountPoint: "/firstlight-test-home/deep/er", MinimumFreeBytes: 16 * storage.MiB},
		},
		ExtraMountPointsBasename: "/firstlight-test-data/",
		Encrypt:                  true,
	}
}

// resolve makes the layout of devices that may be loop devices or plain files,
// which no installation would touch.
func resolve(t *testing.T, s storage.Spec, firmware storage.Firmware, paths ...string) storage.Layout {
	t.Helper()
	l, err := storage.Resolve(s, found(t, paths...), nil, storage.Need{}, firmware, ids)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// found are the disks at these paths, as an inventory would have them.
func found(t *testing.T, paths ...string) (disks []storage.Disk) {
	t.Helper()
	for i, path := range paths {
		dev, err := block.OpenReadOnly(path)
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprint("vd", string(rune('a'+i)))
		contents, err := signature.Probe(name, dev, dev.Size(), dev.SectorSize())
		if err != nil {
			t.Fatal(err)
		}
		disks = append(disks, storage.Disk{Name: name, Path: path, Size: dev.Size(), SectorSize: dev.SectorSize(), Contents: contents, Serial: "S" + name})
		dev.Close()
	}
	return disks
}

// runner runs the real programs but for those that need the kernel's device
// mapper: there a mapping is a symbolic link to the partition.
type runner struct {
	mu   sync.Mutex
	ran  []string
	keys map[string][]byte
	fail func(c tool.Cmd) error
	// aside is the device that stands for the inside of a volume; nil means the
	// volume's own, whose header is then overwritten.
	aside func(mapping string) string
}

func (r *runner) Run(ctx context.Context, c tool.Cmd) (tool.Output, error) {
	r.mu.Lock()
	r.ran = append(r.ran, c.String())
	if r.fail != nil {
		if err := r.fail(c); err != nil {
			r.mu.Unlock()
			return tool.Output{}, err
		}
	}
	r.mu.Unlock()
	if c.Name != "cryptsetup" {
		return tool.Exec{}.Run(ctx, c)
	}
	switch c.Args[0] {
	case "luksFormat":
		r.mu.Lock()
		r.keys[c.Args[len(c.Args)-1]] = bytes.Clone(c.Stdin)
		r.mu.Unlock()
		return tool.Exec{}.Run(ctx, c)
	case "luksAddKey", "token":
		return tool.Exec{}.Run(ctx, c)
	case "open":
		if slices.Contains(c.Args, "--test-passphrase") {
			return tool.Exec{}.Run(ctx, c)
		}
		device, mapping := c.Args[len(c.Args)-2], c.Args[len(c.Args)-1]
		// The real thing checks the key.
		c.Args = append([]string{"open", "--test-passphrase"}, c.Args[1:len(c.Args)-1]...)
		if out, err := (tool.Exec{}).Run(ctx, c); err != nil {
			return out, err
		}
		if r.aside != nil {
			device = r.aside(mapping)
		}
		return tool.Output{}, os.Symlink(device, "/dev/mapper/"+mapping)
	case "close":
		return tool.Output{}, os.Remove("/dev/mapper/" + c.Args[1])
	}
	return tool.Output{}, fmt.Errorf("unexpected %s", c)
}

func seams(t *testing.T) (Seams, *runner) {
	t.Helper()
	r := &runner{keys: make(map[string][]byte)}
	if err := os.MkdirAll("/dev/mapper", 0o755); err != nil {
		t.Fatal(err)
	}
	return Seams{Runner: r, OpenDisk: block.Open, WaitFor: block.WaitFor, Mounter: &mounter{}}, r
}

// made are new keys for a layout, wiped with the test.
func made(t *testing.T, l storage.Layout) *keys.Keys {
	t.Helper()
	k, err := keys.New(l, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Wipe(); err != nil {
			t.Error(err)
		}
	})
	return k
}

// mounter mounts for real. The kernels that tests run on need not know vfat: a
// tmpfs stands for it.
type mounter struct{ mount.Stack }

func (m *mounter) Mount(source, target, fileSystem string, flags uintptr, data string) error {
	if fileSystem == storage.VFAT {
		source, fileSystem, data = "tmpfs", "tmpfs", ""
	}
	return m.Stack.Mount(source, target, fileSystem, flags, data)
}

// The whole way on loop devices of both sector sizes, with an old disk below.
func TestRun(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		t.Run(fmt.Sprint(sector), func(t *testing.T) {
			first, second := create(t, 2<<30), create(t, 512<<20)
			sh(t, "/usr/sbin/sgdisk", "-n", "1:2048:+200M", "-n", "2:0:0", first)
			sh(t, "/usr/sbin/mkfs.ext4", "-q", "-F", second)
			firmware, system := storage.Both, 3 // the number of /'s partition
			if sector == 4096 {
				firmware, system = storage.UEFI, 2 // no BIOS starts from such a disk
			}
			l := resolve(t, spec(), firmware, loop(t, first, sector), loop(t, second, sector))
			s, r := seams(t)
			root := t.TempDir()
			var mu sync.Mutex
			var ready, steps []string
			committed := 0
			a, err := Run(t.Context(), s, l, Options{
				Root:   root,
				Keys:   made(t, l),
				Commit: func() error { committed++; return nil },
				Ready: func(point string) {
					mu.Lock()
					defer mu.Unlock()
					ready = append(ready, point)
					// The mount points of the volumes below are there already.
					if point == "/" {
						for _, name := range []string{"firstlight-test-home", "firstlight-test-data/0", "firstlight-test-data/1", "boot/efi"} {
							if fi, err := os.Stat(filepath.Join(root, name)); err != nil || fi.Mode().Perm() != 0o755 {
								t.Errorf("mount point %s: %v, %v", name, fi, err)
							}
						}
					}
				},
				Progress: func(disk, partition, step string) {
					mu.Lock()
					defer mu.Unlock()
					steps = append(steps, strings.Join(strings.Fields(disk+" "+partition+" "+step), " "))
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			if committed != 1 {
				t.Errorf("Commit was called %d times", committed)
			}
			if ready[0] != "/" || len(ready) != 6 || slices.Index(ready, "/firstlight-test-home") > slices.Index(ready, "/firstlight-test-home/deep/er") {
				t.Errorf("ready in the order %v", ready)
			}
			for _, step := range []string{"vda check", "vdb check", "vda erase", "vdb partition", fmt.Sprintf("vda vda%d encrypt", system+2), "vdb vdb1 format", fmt.Sprintf("vda vda%d mount", system)} {
				if !slices.Contains(steps, step) {
					t.Errorf("no step %q in %v", step, steps)
				}
			}
			if w := a.Written(); w["vda"] < 4<<20 || w["vdb"] < 4<<20 || w["vda"] > 64<<20 {
				t.Errorf("written %v", w)
			}

			// What the kernel has mounted is what the layout says.
			mounts := sh(t, "/usr/bin/findmnt", "-rn", "-o", "TARGET,FSTYPE")
			for _, v := range l.Mounts() {
				p := v.Partition
				want := filepath.Join(root, p.MountPoint) + " " + strings.Replace(p.FileSystem, storage.VFAT, "tmpfs", 1)
				if !strings.Contains(mounts, want) {
					t.Errorf("not mounted: %s\n%s", want, mounts)
				}
				if out := sh(t, "/usr/sbin/blkid", "-p", "-o", "value", "-s", "UUID", v.Device()); out != p.FSUUID {
					t.Errorf("%s has UUID %s, want %s", p.MountPoint, out, p.FSUUID)
				}
			}
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(root, "firstlight-test-home"), &st); err != nil || st.Uid != 12 || st.Gid != 34 {
				t.Errorf("owner %d:%d, %v", st.Uid, st.Gid, err)
			}

			// Key files.
			tree, err := os.OpenRoot(root)
			if err != nil {
				t.Fatal(err)
			}
			defer tree.Close()
			old := unix.Umask(0o077)
			for range 2 {
				if err := a.WriteKeys(tree); err != nil {
					t.Fatal(err)
				}
			}
			unix.Umask(old)
			if fi, err := tree.Stat("etc/keys"); err != nil || fi.Mode().Perm() != 0o700 {
				t.Errorf("/etc/keys: %v %v", fi, err)
			}
			if fi, err := tree.Stat("etc"); err != nil || fi.Mode().Perm() != 0o755 {
				t.Errorf("/etc: %v %v", fi, err)
			}
			seen := make(map[string]bool)
			for _, v := range l.Mounts() {
				if v.Partition.LUKS == nil {
					continue
				}
				name := v.Partition.LUKS.KeyFile[1:]
				key, err := tree.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				if fi, err := tree.Stat(name); err != nil || fi.Mode().Perm() != 0o400 {
					t.Errorf("%s: %v %v", name, fi, err)
				}
				if !bytes.Equal(key, r.keys[v.Disk.Node(v.Partition)]) {
					t.Errorf("%s is not the key that the volume was formatted with", name)
				}
				if seen[string(key)] || len(key) != 64 || bytes.Count(key, []byte{0}) > 16 {
					t.Errorf("%s: the key is not a random one of its own", name)
				}
				seen[string(key)] = true
			}
			for _, command := range r.ran {
				for key := range seen {
					if strings.Contains(command, key[:4]) {
						t.Errorf("a key stands in %q", command)
					}
				}
			}
			tree.Close()

			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			if err := a.Close(); err != nil {
				t.Errorf("the second Close: %v", err)
			}
			if a.WriteKeys(tree) == nil {
				t.Error("keys could be written after they were wiped")
			}
			if out := sh(t, "/usr/bin/findmnt", "-rn", "-o", "TARGET"); strings.Contains(out, root) {
				t.Errorf("still mounted:\n%s", out)
			}
			if left, _ := filepath.Glob("/dev/mapper/firstlight-test-*"); left != nil {
				t.Errorf("still mapped: %v", left)
			}
			for _, d := range l.Disks {
				if out := sh(t, "/usr/sbin/sgdisk", "-v", d.Path); !strings.Contains(out, "No problems found") {
					t.Errorf("sgdisk -v %s:\n%s", d.Path, out)
				}
				// What we made is recognised as ours by the next run.
				dev, err := block.OpenReadOnly(d.Path)
				if err != nil {
					t.Fatal(err)
				}
				contents, err := signature.Probe(d.Name, dev, dev.Size(), dev.SectorSize())
				dev.Close()
				if err != nil {
					t.Fatal(err)
				}
				if (storage.Disk{Name: d.Name, Contents: contents}).Foreign() {
					t.Errorf("foreign: %+v", contents)
				}
			}
			for _, v := range l.Mounts() {
				if v.Partition.FileSystem == storage.Ext4 {
					sh(t, "/usr/sbin/e2fsck", "-fn", v.Disk.Node(v.Partition))
				}
			}

			// And once more over itself, as on a disk that cannot discard.
			s.OpenDisk = func(path string) (block.Device, error) {
				d, err := block.Open(path)
				if err != nil {
					return nil, err
				}
				return neverDiscards{d}, nil
			}
			l = resolve(t, spec(), firmware, l.Disks[0].Path, l.Disks[1].Path)
			if len(l.Lost) < 10 {
				t.Errorf("lost: %q", l.Lost)
			}
			a, err = Run(t.Context(), s, l, Options{Root: root, Keys: made(t, l)})
			if err != nil {
				t.Fatal(err)
			}
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

type neverDiscards struct{ block.Device }

func (neverDiscards) Discard(uint64, uint64) (bool, error) { return false, nil }

// A disk that is not the one of the plan is refused, with every byte as it was,
// and so are the others.
func TestRunRefuses(t *testing.T) {
	cases := []struct {
		name   string
		change func(t *testing.T, l *storage.Layout, s *Seams)
		code   string
		text   string
	}{
		{"other size", func(t *testing.T, l *storage.Layout, s *Seams) { l.Disks[1].Size -= 512 }, storage.CodeChanged, "bytes in sectors of"},
		{"other contents", func(t *testing.T, l *storage.Layout, s *Seams) {
			sh(t, "/usr/sbin/mkswap", l.Disks[1].Path)
		}, storage.CodeChanged, "something else on it now (vdb swap) than then (vdb ext4)"},
		{"other serial", func(t *testing.T, l *storage.Layout, s *Seams) {
			s.Identify = func(d storage.DiskLayout) (string, string, error) { return "S" + "vda", "", nil }
		}, storage.CodeChanged, `serial number is "vda"`},
		{"gone", func(t *testing.T, l *storage.Layout, s *Seams) { l.Disks[1].Path += "x" }, storage.CodeIO, "no such file"},
		{"the caller says no", nil, "", "not approved"},
		{"no keys", func(t *testing.T, l *storage.Layout, s *Seams) {}, storage.CodeKeyMemory, "there are no keys for /firstlight-test-"},
		{"keys of another layout", func(t *testing.T, l *storage.Layout, s *Seams) {}, storage.CodeKeyMemory, "for another layout"},
		{"a key that is not sealed", func(t *testing.T, l *storage.Layout, s *Seams) {}, storage.CodeTPM, "not sealed"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			first, second := create(t, 320<<20), create(t, 128<<20)
			sh(t, "/usr/sbin/mkfs.ext4", "-q", "-F", second)
			l := resolve(t, spec(), storage.BIOS, first, second)
			s, r := seams(t)
			committed := false
			commit := func() error { committed = true; return nil }
			if c.change != nil {
				c.change(t, &l, &s)
			} else {
				commit = func() error { return errors.New("not approved") }
			}
			ring := made(t, l)
			switch c.name {
			case "no keys":
				ring = nil
			case "keys of another layout":
				l.Disks[0].Partitions[2].LUKS.Slots = []storage.Slot{storage.SlotRecovery}
			case "a key that is not sealed":
				l.Disks[0].Partitions[2].LUKS.Slots = []storage.Slot{storage.SlotTPM2}
				ring = made(t, l)
			}
			if c.name == "other serial" {
				c.text = `its serial number is "Svda"`
			}
			for _, file := range []string{first, second} {
				sh(t, "cp", "--sparse=always", file, file+".before")
			}
			_, err := Run(t.Context(), s, l, Options{Root: t.TempDir(), Keys: ring, Commit: commit})
			if err == nil || !strings.Contains(err.Error(), c.text) {
				t.Fatalf("error %v, want %q", err, c.text)
			}
			var coded interface{ Code() string }
			if c.code != "" && (!errors.As(err, &coded) || coded.Code() != c.code) {
				t.Errorf("%v has not the code %s", err, c.code)
			}
			if committed {
				t.Error("Commit was called")
			}
			for _, file := range []string{first, second} {
				sh(t, "cmp", file, file+".before")
			}
			if r.ran != nil {
				t.Errorf("ran %v", r.ran)
			}
		})
	}
}

func TestRunBusy(t *testing.T) {
	device := loop(t, create(t, 2<<30), 512)
	sh(t, "/usr/sbin/mkfs.ext4", "-q", "-F", device)
	l := resolve(t, spec(), storage.BIOS, device)
	var m mount.Stack
	if err := m.Mount(device, t.TempDir(), "ext4", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	s, _ := seams(t)
	_, err := Run(t.Context(), s, l, Options{Root: t.TempDir(), Keys: made(t, l)})
	var coded *storage.Error
	if !errors.As(err, &coded) || coded.Code() != storage.CodeBusy {
		t.Errorf("%v", err)
	}
}

// Whatever fails after the commit, everything is closed again and the error says
// what it was.
func TestRunFails(t *testing.T) {
	cases := []struct {
		name string
		fail func(c tool.Cmd) error
		code string
	}{
		{"luksFormat", func(c tool.Cmd) error {
			if c.Args[0] == "luksFormat" && strings.Contains(c.String(), "data/0") {
				return &tool.ExitError{Command: c.String(), Status: 3}
			}
			return nil
		}, storage.CodeLUKSMemory},
		{"mkfs", func(c tool.Cmd) error {
			if c.Name == "mkfs.ext4" && strings.Contains(c.String(), "deep-er") {
				return &tool.ExitError{Command: c.String(), Status: 1, Last: "no space"}
			}
			return nil
		}, storage.CodeFormat},
		{"no program", func(c tool.Cmd) error {
			if c.Name == "mkfs.ext4" {
				return storage.Errorf(storage.CodeNoProgram, "there is none")
			}
			return nil
		}, storage.CodeNoProgram},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			l := resolve(t, spec(), storage.BIOS, loop(t, create(t, 2<<30), 512))
			s, r := seams(t)
			r.fail = c.fail
			root := t.TempDir()
			committed := false
			_, err := Run(t.Context(), s, l, Options{Root: root, Keys: made(t, l), Commit: func() error { committed = true; return nil }})
			var coded interface{ Code() string }
			if !errors.As(err, &coded) || coded.Code() != c.code {
				t.Errorf("%v", err)
			}
			if !committed {
				t.Error("Commit was not called")
			}
			if out := sh(t, "/usr/bin/findmnt", "-rn", "-o", "TARGET"); strings.Contains(out, root) {
				t.Errorf("still mounted:\n%s", out)
			}
			if left, _ := filepath.Glob("/dev/mapper/firstlight-test-*"); left != nil {
				t.Errorf("still mapped: %v", left)
			}
		})
	}
}

// A logical volume that was half made when dmsetup ended is taken away: its disk
// could not be closed.
func TestHalfMadeVolume(t *testing.T) {
	wanted := spec()
	wanted.Encrypt, wanted.VolumeGroup = false, "vg0"
	l := resolve(t, wanted, storage.BIOS, loop(t, create(t, 2<<30), 512))
	s, r := seams(t)
	r.fail = func(c tool.Cmd) error {
		if c.Name == "dmsetup" {
			return &tool.ExitError{Command: c.String(), Status: 1}
		}
		return nil
	}
	_, err := Run(t.Context(), s, l, Options{Root: t.TempDir()})
	var coded interface{ Code() string }
	if !errors.As(err, &coded) || coded.Code() != storage.CodeAssemble {
		t.Errorf("%v", err)
	}
	var ran []string
	for _, c := range r.ran {
		if rest, ok := strings.CutPrefix(c, "dmsetup "); ok {
			ran = append(ran, strings.Fields(rest)[0])
		}
	}
	if !slices.Equal(ran, []string{"create", "remove"}) {
		t.Errorf("dmsetup ran with %q", ran)
	}
}

func TestRunCancelled(t *testing.T) {
	l := resolve(t, spec(), storage.BIOS, loop(t, create(t, 2<<30), 512))
	s, _ := seams(t)
	ctx, cancel := context.WithCancel(t.Context())
	s.WaitFor = func(ctx context.Context, node string, limit time.Duration) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	}
	if _, err := Run(ctx, s, l, Options{Root: t.TempDir(), Keys: made(t, l)}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
