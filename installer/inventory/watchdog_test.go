package inventory

import (
	"io/fs"
	"testing"
	"testing/fstest"
)

// A watchdog is of use when the kernel does not stop it, and its driver's name
// is known.
func TestWatchdog(t *testing.T) {
	link := func(to string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(to), Mode: fs.ModeSymlink} }
	keeps := &fstest.MapFile{Data: []byte("0\n")}
	const parameter, class = "module/watchdog/parameters/stop_on_reboot", "class/watchdog/watchdog0"
	for name, test := range map[string]struct {
		sys  fstest.MapFS
		want string
	}{
		"none":          {fstest.MapFS{parameter: keeps}, ""},
		"by its device": {fstest.MapFS{parameter: keeps, class + "/device/driver/module": link("../../../../module/iTCO_wdt")}, "iTCO_wdt"},
		"by its holder": {fstest.MapFS{parameter: keeps, class + "/timeout": {Data: []byte("30\n")}, "module/watchdog/holders/i6300esb": link("../../i6300esb")}, "i6300esb"},
		"is stopped":    {fstest.MapFS{parameter: {Data: []byte("-1\n")}, class + "/device/driver/module": link("../../../../module/iTCO_wdt")}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := &reader{sys: test.sys}
			if got := r.watchdog(); got != test.want || len(r.warnings) > 0 {
				t.Errorf("%q, warnings %q", got, r.warnings)
			}
		})
	}
}
