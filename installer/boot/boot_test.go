package boot

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/storage"
)

func attributes() map[string]string {
	return map[string]string{
		image.AttrKernel:        "boot/vmlinuz-6.1.0",
		image.AttrKernelVersion: "6.1.0",
		image.AttrInitrd:        "boot/initrd.img-6.1.0",
		image.AttrBootloaders:   "grub-efi,grub-pc,shim",
	}
}

func TestChoose(t *testing.T) {
	tests := map[string]struct {
		options string
		machine Machine
		want    Choice
	}{
		"BIOS": {
			"", Machine{Firmware: storage.BIOS, Consoles: []string{"tty0", "ttyS0"}, RootUUID: "u"},
			Choice{
				CommandLine: "root=UUID=u ro console=tty0 console=ttyS0,115200n8",
				Consoles:    []string{"console=tty0", "console=ttyS0,115200n8"}, Loaders: []string{GrubPC},
			},
		},
		"UEFI with options": {
			" quiet \t module.x=\"a  b\"", Machine{Firmware: storage.UEFI, Consoles: []string{"ttyAMA0"}, RootUUID: "u"},
			Choice{
				CommandLine: `root=UUID=u ro console=ttyAMA0,115200n8 quiet module.x="a  b"`, Options: `quiet module.x="a  b"`,
				Consoles: []string{"console=ttyAMA0,115200n8"}, Loaders: []string{GrubEFI},
			},
		},
		"both, no console": {
			"", Machine{Firmware: storage.Both, RootUUID: "u"},
			Choice{CommandLine: "root=UUID=u ro", Loaders: []string{GrubPC, GrubEFI}},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			test.want.Kernel, test.want.Initrd, test.want.KernelVersion = "/boot/vmlinuz-6.1.0", "/boot/initrd.img-6.1.0", "6.1.0"
			got, err := Choose(attributes(), test.options, test.machine)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestEveryRefusal(t *testing.T) {
	_, err := Choose(map[string]string{image.AttrBootloaders: "grub-efi"}, "a$b", Machine{Firmware: storage.BIOS})
	want := []string{CodeNoKernel, CodeNoInitrd, CodeNoLoader, CodeOption}
	var got []string
	for _, one := range err.(interface{ Unwrap() []error }).Unwrap() {
		got = append(got, one.(*Error).Code())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for text, machine := range map[string]Machine{"not known": {Firmware: "coreboot"}, "2047": {Firmware: storage.BIOS, RootUUID: strings.Repeat("x", 2048)}} {
		if _, err := Choose(attributes(), "", machine); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("error %v: want %q in it", err, text)
		}
	}
}

func TestCheckOptions(t *testing.T) {
	for _, bad := range []string{"a\nb", "a`b`", "$HOME", `a\b`, "it's", `"open`, "ä", "a\x00"} {
		_, err := CheckOptions(bad)
		if e, ok := errors.AsType[*Error](err); !ok || e.Code() != CodeOption {
			t.Errorf("CheckOptions(%q): %v: want %s", bad, err, CodeOption)
		}
	}
}
