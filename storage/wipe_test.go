package storage

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Every disk of the machine is wiped, whatever is on it and wherever a layout
// would put something; what comes and goes stays.
func TestResolveWipe(t *testing.T) {
	foreign, stick, medium, both := disk("sda", 8*GiB, 512), disk("sdb", GiB, 512), disk("sr0", GiB, 512), disk("nvme0n1", 16*GiB, 4096)
	foreign.Contents = []Content{{Where: "sda", Kind: "ntfs", Label: "accounts", Size: 8 * GiB}}
	stick.Transport, medium.BootMedium = "usb", true
	other := disk("sdc", 4*GiB, 512)
	foreign.WWN, other.WWN = "naa.5000", "naa.5000" // two ways to one disk
	other.Size = foreign.Size
	other.Serial = foreign.Serial
	other.Contents = []Content{{Where: "sdc", Kind: "ntfs", Label: "accounts", Size: 8 * GiB}}

	l, err := ResolveWipe(EraseOverwrite, []Disk{foreign, stick, medium, both, other}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var wiped, skipped []string
	for _, d := range l.Disks {
		wiped = append(wiped, d.Path)
		if d.Erase != EraseOverwrite || len(d.Partitions) > 0 {
			t.Errorf("%s: %q, %v", d.Path, d.Erase, d.Partitions)
		}
	}
	for _, s := range l.Skipped {
		skipped = append(skipped, s.Disk)
		if s.Reason == "" {
			t.Errorf("%s is skipped without a reason", s.Disk)
		}
	}
	if diff := cmp.Diff([]string{"/dev/nvme0n1", "/dev/sda"}, wiped); diff != "" {
		t.Errorf("wiped: %s", diff)
	}
	if diff := cmp.Diff([]string{"/dev/sdb", "/dev/sdc", "/dev/sr0"}, skipped); diff != "" {
		t.Errorf("skipped: %s", diff)
	}
	if !strings.Contains(strings.Join(l.Lost, "\n"), `ntfs`) {
		t.Errorf("what is lost is not said: %q", l.Lost)
	}

	l, err = ResolveWipe("", []Disk{foreign, both}, []string{"/dev/nvme0n1"})
	if err != nil || len(l.Disks) != 1 || l.Disks[0].Erase != EraseMetadata || len(l.Skipped) != 1 {
		t.Errorf("by a selector: %+v, %v", l, err)
	}
}

// A wipe that would leave a disk of the machine as it is, or cannot be as
// thorough as it was asked for, is none.
func TestResolveWipeRefuses(t *testing.T) {
	readOnly, broken, usb := disk("sda", GiB, 512), disk("sdb", GiB, 512), disk("sdc", GiB, 512)
	readOnly.ReadOnly, usb.Transport = true, "usb"
	broken.Contents = []Content{{Where: "sdb", Kind: KindUnreadable}}
	good := disk("vda", GiB, 512)
	for name, c := range map[string]struct {
		erase    Erase
		disks    []Disk
		selected []string
		code     string
	}{
		"read-only":      {EraseMetadata, []Disk{good, readOnly}, nil, CodeErase},
		"unreadable":     {EraseMetadata, []Disk{good, broken}, nil, CodeErase},
		"no discard":     {EraseDiscard, []Disk{good}, nil, CodeErase},
		"no crypto":      {EraseCrypto, []Disk{good}, nil, CodeErase},
		"none":           {EraseMetadata, []Disk{usb}, nil, CodeNoDisk},
		"selected a USB": {EraseMetadata, []Disk{good, usb}, []string{"sdc"}, CodeSelection},
	} {
		l, err := ResolveWipe(c.erase, c.disks, c.selected)
		var coded *Error
		if !errors.As(err, &coded) || coded.Code() != c.code || len(l.Disks) > 0 {
			t.Errorf("%s: %v, %v", name, l.Disks, err)
		}
	}
}
