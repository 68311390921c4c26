package plan

import (
	"errors"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/storage"
)

// A wipe names the disks, what is lost and what stays; there is no image, no
// network and no boot loader in it, and the same inputs give the same hash.
func TestWipe(t *testing.T) {
	c := siteConfig()
	c.Install.Wipe, c.Install.RequireApproval = storage.EraseOverwrite, true
	p, err := NewWipe(c, machine())
	if err != nil {
		t.Fatal(err)
	}
	if p.Wipe != storage.EraseOverwrite || p.HandOver != PowerOff || len(p.Layout.Disks) != 2 || p.Image.Name != "" || len(p.Network.Interfaces) > 0 || p.Boot.Kernel != "" || !p.RequireApproval {
		t.Errorf("%+v", p)
	}
	text := p.Text()
	for _, want := range []string{
		"Wipe", "the disks are erased, and nothing is installed", "WILL BE ERASED: /dev/vda", "WILL BE ERASED: /dev/vdb",
		"overwrite: zeroes in every sector, read back", "lost: vda1  ext4", "/dev/sda: it is connected by USB", "the machine is switched off", "before an operator has approved",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the text lacks %q:\n%s", want, text)
		}
	}
	for _, line := range strings.Split(text, "\n") {
		if len([]rune(line)) > columns || strings.Contains(line, "\x1b") {
			t.Errorf("%q", line)
		}
	}
	for _, unwanted := range []string{"Image", "Network", "Download", "start from this disk", secret} {
		if strings.Contains(text, unwanted) {
			t.Errorf("the text has %q:\n%s", unwanted, text)
		}
	}
	hash, err := p.Hash()
	again, _ := NewWipe(c, machine())
	same, _ := again.Hash()
	if err != nil || hash != same {
		t.Errorf("%s, %s, %v", hash, same, err)
	}
	c.Install.Wipe = storage.EraseMetadata
	less, _ := NewWipe(c, machine())
	if other, _ := less.Hash(); other == hash {
		t.Error("another level has the same hash")
	}
}

// All that speaks against a wipe is said at once.
func TestWipeRefused(t *testing.T) {
	c := siteConfig()
	c.Install.Wipe, c.Storage.Preserve = storage.EraseCrypto, []string{"home"}
	_, err := NewWipe(c, machine())
	var refusals Refusals
	if !errors.As(err, &refusals) || len(refusals) != 2 || refusals.Code() != storage.CodePreserve || !strings.Contains(err.Error(), storage.CodeErase) {
		t.Errorf("%v", err)
	}
}
