package networkmanager_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/netconfigtest"
	"github.com/firstlight/firstlight/netconfig/networkmanager"
)

func TestRenderGolden(t *testing.T) { netconfigtest.Golden(t, networkmanager.Render) }

// nmcli is the system's, or that of the package that hack/setup unpacks: an
// installed NetworkManager would take over the network of a developer's machine.
func nmcli(t *testing.T) string {
	t.Helper()
	if path, err := exec.LookPath("nmcli"); err == nil {
		return path
	}
	path, err := filepath.Abs("../../build/network-manager/usr/bin/nmcli")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatal("there is no nmcli: run hack/setup")
	}
	return path
}

// settings are "group.key=value" of a keyfile; what stands for the same is
// written the same.
func settings(text string) []string {
	var out []string
	group := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		key, value, ok := strings.Cut(line, "=")
		switch {
		case strings.HasPrefix(line, "["):
			group = strings.Trim(line, "[]")
		case strings.HasPrefix(line, "#"), !ok:
		case strings.HasPrefix(key, "address"): // address1=address,gateway
			address, gateway, has := strings.Cut(value, ",")
			out = append(out, group+"."+key+"="+address)
			if has {
				out = append(out, group+".gateway="+gateway)
			}
		default:
			out = append(out, group+"."+key+"="+strings.ToLower(value))
		}
	}
	return out
}

// libnm reads each keyfile, finds it valid, and keeps every setting: it drops
// those that it does not know.
func TestNetworkManagerKnowsEveryWord(t *testing.T) {
	program := nmcli(t)
	for name, config := range netconfigtest.Configs(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, file := range networkmanager.Render(config, netconfig.ResolvConf) {
				if !strings.HasSuffix(file.Path, ".nmconnection") {
					continue
				}
				cmd := exec.Command(program, "--offline", "connection", "modify", "connection.autoconnect", "yes")
				cmd.Stdin = bytes.NewReader(file.Data)
				var stderr bytes.Buffer
				cmd.Stderr = &stderr
				out, err := cmd.Output()
				if err != nil || stderr.Len() > 0 {
					t.Errorf("nmcli refuses %s: %v\n%s%s", file.Path, err, stderr.Bytes(), file.Data)
					continue
				}
				kept := settings(string(out))
				for _, want := range settings(string(file.Data)) {
					// Defaults are not written again.
					if slices.Contains([]string{"bridge.stp=true"}, want) {
						continue
					}
					if !slices.Contains(kept, want) {
						t.Errorf("%s: NetworkManager does not keep %s:\n%s", file.Path, want, out)
					}
				}
			}
		})
	}
}
