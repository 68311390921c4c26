package renderer_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/netconfigtest"
	"github.com/firstlight/firstlight/netconfig/renderer"
)

// Whatever writes the files: every address stands in them, and every name is
// pinned by a .link file.
func TestEveryRendererSaysEverything(t *testing.T) {
	for name, config := range netconfigtest.Configs(t) {
		for _, program := range renderer.Names() {
			render, ok := renderer.Named(program)
			if !ok {
				t.Fatalf("%s is listed and not there", program)
			}
			for _, resolver := range []netconfig.Resolver{netconfig.ResolvConf, netconfig.Resolved} {
				var all strings.Builder
				var paths []string
				for _, file := range render(config, resolver) {
					all.Write(file.Data)
					if slices.Contains(paths, file.Path) {
						t.Errorf("%s, %s: %s is written twice", name, program, file.Path)
					}
					paths = append(paths, file.Path)
				}
				for _, i := range config.Interfaces {
					var want []string
					for _, a := range i.Addresses {
						want = append(want, a.String())
					}
					for _, r := range i.Routes {
						if !r.IsDefault() {
							want = append(want, r.To.String())
						}
					}
					for _, a := range append(i.Gateways(), i.DNS...) {
						want = append(want, a.String())
					}
					for _, w := range want {
						if !strings.Contains(all.String(), w) {
							t.Errorf("%s, %s: nothing says %s of %s", name, program, w, i.Name)
						}
					}
					if link := "/etc/systemd/network/10-firstlight-" + i.Name + ".link"; i.Kind == netconfig.Ethernet && !slices.Contains(paths, link) {
						t.Errorf("%s, %s: no %s", name, program, link)
					}
				}
				if resolver == netconfig.Resolved && slices.Contains(paths, "/etc/resolv.conf") {
					t.Errorf("%s, %s: /etc/resolv.conf belongs to systemd-resolved", name, program)
				}
			}
		}
	}
	if _, ok := renderer.Named("netplann"); ok {
		t.Error("netplann is a renderer")
	}
}
