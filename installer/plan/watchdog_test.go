package plan

import (
	"slices"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/imageserver/image"
)

// A watchdog is armed only for a system that is sure to take it over.
func TestWatchdog(t *testing.T) {
	for name, test := range map[string]struct {
		driver string
		files  []string
		want   string
		warns  bool
	}{
		"none":              {},
		"taken over":        {"i6300esb", []string{"usr/lib/modules/6.1.0-26-cloud-amd64/kernel/drivers/watchdog/i6300esb.ko.xz", "usr/lib/systemd/systemd-modules-load"}, "i6300esb", false},
		"no driver":         {"i6300esb", []string{"usr/lib/modules/5.10/i6300esb.ko", "usr/lib/systemd/systemd-modules-load"}, "", true},
		"nothing loads it":  {"iTCO_wdt", []string{"usr/lib/modules/6.1.0-26-cloud-amd64/kernel/drivers/watchdog/iTCO_wdt.ko"}, "", true},
		"name with hyphens": {"a_b", []string{"lib/modules/6.1.0-26-cloud-amd64/a-b.ko", "lib/systemd/systemd-modules-load"}, "a_b", false},
	} {
		t.Run(name, func(t *testing.T) {
			c, d, img := siteConfig(), machine(), debian(t)
			c.Storage.UseKexec, d.Watchdog = true, test.driver
			img.Manifest.Attributes[image.AttrKernelVersion] = "6.1.0-26-cloud-amd64"
			there := make(map[string]bool)
			for _, e := range img.Manifest.Entries {
				there[e.Path] = true
			}
			for _, f := range test.files {
				img.Manifest.Entries = append(img.Manifest.Entries, image.Entry{Path: f, Type: image.File, Mode: 0o644})
				for dir := image.Parent(f); !there[dir]; dir = image.Parent(dir) {
					there[dir] = true
					img.Manifest.Entries = append(img.Manifest.Entries, image.Entry{Path: dir, Type: image.Dir, Mode: 0o755})
				}
			}
			slices.SortFunc(img.Manifest.Entries, func(a, b image.Entry) int { return image.Compare(a.Path, b.Path) })
			p, err := New(c, d, img)
			if err != nil {
				t.Fatal(err)
			}
			warned := slices.ContainsFunc(p.Warnings, func(w string) bool { return strings.Contains(w, "watchdog") })
			if p.Watchdog != test.want || warned != test.warns {
				t.Errorf("watchdog %q, warnings %q", p.Watchdog, p.Warnings)
			}
		})
	}
}
