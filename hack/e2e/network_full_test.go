//go:build full

package e2e

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/netconfig/renderer"
)

// TestNetworkRenderers: each program makes each network, and what it makes is
// what the model says.
func TestNetworkRenderers(t *testing.T) {
	found, err := filepath.Glob(filepath.Join(checkout, "netconfig", "testdata", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range renderer.Names() {
		for _, file := range found {
			name := strings.TrimSuffix(filepath.Base(file), ".json")
			if slices.Contains([]string{"config", "no-permanent-mac", "host-nic-without-link"}, name) {
				continue // the example's own file; NICs that these machines do not have
			}
			t.Run(program+"/"+name, func(t *testing.T) { rendered(t, program, name) })
		}
	}
}

// TestNetworkExamples: as TestNetworkExample, with the other programs.
func TestNetworkExamples(t *testing.T) {
	for _, program := range renderer.Names() {
		if program != "netplan" {
			t.Run(program, func(t *testing.T) { installExample(t, program) })
		}
	}
}

// TestNetworkScenarios: those that TestNetworkScenario leaves out.
func TestNetworkScenarios(t *testing.T) {
	for _, name := range longScenarios() {
		t.Run(strings.ReplaceAll(name, " ", "-"), scenarios()[name].play)
	}
}

// TestNetworkInstallations: whole installations of a small system over networks
// that lose frames, that take none but small ones, and whose frames have tags.
func TestNetworkInstallations(t *testing.T) {
	for name, sc := range map[string]scenario{
		"loss-of-5-%": {ports: lossy(5)},
		"MTU-576":     scenarios()["MTU 576"],
		"tagged":      scenarios()["tagged, with a lease"],
	} {
		sc.installs, sc.limit = true, 20*time.Minute
		if name == "tagged" {
			sc.tag = 1
		}
		t.Run(name, sc.play)
	}
}
