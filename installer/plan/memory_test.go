package plan

import (
	"strings"
	"testing"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
)

// Where the image fits into memory, LowMemory changes nothing: staging is
// safer. Where it does not, it is refused with the remedy, and with the remedy
// the stage takes what is left.
func TestLowMemory(t *testing.T) {
	c, d, img := siteConfig(), machine(), debian(t)
	plain, err := New(c, d, img)
	if err != nil {
		t.Fatal(err)
	}
	c.Install.LowMemory = true
	same, err := New(c, d, img)
	if err != nil || same.LowMemory || same.StageBytes != plain.StageBytes {
		t.Errorf("there is room for all: %t, stage %d, %v", same.LowMemory, same.StageBytes, err)
	}

	c.Install.LowMemory = false
	d.MemoryAvailableBytes = plain.MemoryNeed - 64<<20
	_, err = New(c, d, img)
	if err == nil || !strings.Contains(err.Error(), `set "LowMemory": true in Install of config.json`) {
		t.Errorf("the remedy is not named: %v", err)
	}
	c.Install.LowMemory = true
	low, err := New(c, d, img)
	if err != nil {
		t.Fatal(err)
	}
	if !low.LowMemory || low.MemoryNeed > low.MemoryHave || low.StageBytes >= plain.StageBytes || low.StageBytes == 0 ||
		low.FetchBytes != plain.FetchBytes {
		t.Errorf("%t, need %d of %d, stage %d of %d, fetch %d", low.LowMemory, low.MemoryNeed, low.MemoryHave, low.StageBytes, plain.StageBytes, low.FetchBytes)
	}
	if text := strings.Join(strings.Fields(low.Text()), " "); !strings.Contains(text, "the rest of the image is fetched after the disks have been erased") ||
		!strings.Contains(text, "Warning the memory cannot hold the image") {
		t.Errorf("the text does not say it:\n%s", low.Text())
	}

	// What custom programmes run from is held in any case.
	tools := Image{Name: "tools/1", Digest: object.Of([]byte("tools/1")), Manifest: &image.Manifest{
		Attributes: map[string]string{image.AttrArch: "amd64"},
		Entries: []image.Entry{
			{Path: ".", Type: image.Dir},
			{Path: "b", Type: image.File, Size: 40 << 20, Digest: object.Of([]byte("tool"))},
		},
	}}
	img.Tools = &tools
	with, err := New(c, d, img)
	if err == nil && (!with.LowMemory || with.StageBytes < 40<<20 || with.MemoryNeed > with.MemoryHave) {
		t.Errorf("with tools: %t, stage %d, need %d of %d", with.LowMemory, with.StageBytes, with.MemoryNeed, with.MemoryHave)
	}
	img.Tools = nil

	// Too little is too little.
	d.MemoryAvailableBytes = 150 << 20
	if _, err = New(c, d, img); err == nil || !strings.Contains(err.Error(), "With LowMemory it still needs") {
		t.Errorf("%v", err)
	}
	c.Install.LowMemory = false
	if _, err = New(c, d, img); err == nil || !strings.Contains(err.Error(), "LowMemory would not help") {
		t.Errorf("%v", err)
	}
}
