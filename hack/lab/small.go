package lab

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// A small system is the lab's own less what only people need: enough to be
// installed, to boot, and to say whether it is whole. Series of many
// installations use it.

// SmallReport is what a small system says on its first serial port: its
// edition, and what of it is missing or wrong; nothing where it is whole.
var SmallReport = regexp.MustCompile(`SMALL-REPORT edition=(\S*) wrong=([^\r\n]*?) done`)

// superfluous is what a small system does without.
var superfluous = regexp.MustCompile(`^(usr/share/(perl|zoneinfo|bash-completion|doc|info|man|locale|fonts|common-licenses)/` +
	`|usr/share/grub/[^/]*\.(pf2|h)$|usr/lib/x86_64-linux-gnu/(perl|perl-base|gconv|krb5|security|systemd)/` +
	`|usr/lib/(udev|openssh|apt|klibc|gcc)/|usr/lib/systemd/` +
	`|usr/bin/(perl|ssh|openssl|pzstd|grub-(mkrescue|fstest|syslinux2cfg|render-label|mount|file))` +
	`|usr/sbin/(sshd|grub-macbless|tc)$` +
	`|var/(cache|lib/apt)/|etc/(ssh|ssl/certs)/|usr/share/ca-certificates/)`)

// module is a kernel module that a small system keeps: those of its disks,
// file-systems and ciphers.
var (
	module     = regexp.MustCompile(`^usr/lib/modules/[^/]+/kernel/.*\.ko`)
	keptModule = regexp.MustCompile(`/kernel/(crypto|lib|arch/x86/crypto|drivers/(md|block|nvme|virtio|ata|scsi|char/tpm)|fs/(ext4|jbd2|xfs|btrfs|fat|nls|mbcache\.ko|efivarfs))`)
)

// smallInit is the first program of a small system.
const smallInit = `#!/bin/sh
# Opens and mounts everything, compares every file with what it should be, and
# says so.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc 2>/dev/null
mount -t sysfs sysfs /sys 2>/dev/null
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mount -t tmpfs tmpfs /run 2>/dev/null
mkdir -p /run/cryptsetup
mount -o remount,rw / || wrong="$wrong root-not-writable"
modprobe dm_crypt
if [ -e /etc/crypttab ]; then
	while read -r name device key options; do
		case $name in '' | '#'*) continue ;; esac
		cryptsetup open --type luks --key-file "$key" "$(blkid -U "${device#UUID=}")" "$name" || wrong="$wrong $name-closed"
	done </etc/crypttab
fi
while read -r device mount kind options rest; do
	case $device in '' | '#'*) continue ;; UUID=*) device=$(blkid -U "${device#UUID=}") ;; esac
	[ "$mount" = / ] && continue
	case $kind in swap | none) continue ;; esac
	mount -t "$kind" "$device" "$mount" || wrong="$wrong $mount-not-mounted"
done </etc/fstab
cd /
sha256sum --quiet -c /usr/share/small/sums >/run/sums 2>&1 || wrong="$wrong $(head -n 3 /run/sums | tr '\n' ' ')"
[ -s /usr/share/small/sums ] || wrong="$wrong no-sums"
printf '\r\nSMALL-REPORT edition=%s wrong=%s done\r\n' "$(cat /usr/share/small/edition)" "$wrong" >/dev/ttyS0
sync
echo o >/proc/sysrq-trigger
sleep 60
`

// MakeSmallRoot makes a small system's root file-system, a tar, from the
// lab's. Editions differ in a few files.
func MakeSmallRoot(out, root, edition string) (err error) {
	in, err := os.Open(root)
	if err != nil {
		return fmt.Errorf("making a small root: %w", err)
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return fmt.Errorf("making a small root: %w", err)
	}
	f, err := os.Create(out)
	if err != nil {
		return fmt.Errorf("making a small root: %w", err)
	}
	w := tar.NewWriter(f)
	err = makeSmall(w, tar.NewReader(in), edition)
	if err := errors.Join(err, w.Close(), f.Close()); err != nil {
		return fmt.Errorf("making a small root: %w", err)
	}
	return nil
}

func makeSmall(w *tar.Writer, r *tar.Reader, edition string) error {
	var sums bytes.Buffer
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(h.Name, "./")
		if superfluous.MatchString(name) || module.MatchString(name) && !keptModule.MatchString(name) || name == "usr/sbin/init" {
			continue
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		sum := sha256.New()
		if _, err := io.Copy(io.MultiWriter(w, sum), r); err != nil {
			return err
		}
		if installed(name) {
			fmt.Fprintf(&sums, "%x  %s\n", sum.Sum(nil), name)
		}
	}
	big := bytes.Repeat([]byte(edition+"\n"), 1<<20)
	for _, file := range []struct {
		name string
		mode int64
		data []byte
	}{
		{"usr/sbin/init", 0o755, []byte(smallInit)},
		{"usr/share/small/edition", 0o644, []byte(edition + "\n")},
		// Something for each volume that a layout may have.
		{"home/" + edition, 0o644, big},
		{"srv/" + edition, 0o644, big},
	} {
		if err := add(w, file.name, file.mode, file.data); err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(file.data), file.name)
	}
	return add(w, "usr/share/small/sums", 0o644, sums.Bytes())
}

// installed is true of a file that the installation leaves as the image has
// it: it writes the machine's own into /etc, the boot loader's into /boot.
func installed(name string) bool {
	return !strings.HasPrefix(name, "etc/") && !strings.HasPrefix(name, "boot/grub/") && !strings.HasPrefix(name, "boot/initrd") && !strings.HasPrefix(name, "var/")
}

func add(w *tar.Writer, name string, mode int64, data []byte) error {
	if dir := filepath.Dir(name); dir == "usr/share/small" && strings.HasSuffix(name, "edition") {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "./" + dir + "/", Mode: 0o755}); err != nil {
			return err
		}
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "./" + name, Mode: mode, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}
