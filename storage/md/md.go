// Package md makes the command lines that make and stop the RAIDs of the
// kernel's md driver, mdadm(8).
//
// It runs nothing, and decides nothing: members, sizes and UUIDs are in the
// layout.
package md

import (
	"fmt"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/tool"
)

// Create makes and starts an array. Its copies are not equal where nothing was
// written yet; the kernel sees to that in the background, here or in the new OS.
func Create(a storage.Array) tool.Cmd {
	args := []string{
		"--create", a.Node, "--run", "--quiet", "--metadata=" + a.Metadata(),
		fmt.Sprint("--level=", a.Level), fmt.Sprint("--raid-devices=", len(a.Members)),
		"--uuid=" + a.UUID, "--name=" + a.Name, "--homehost=any",
	}
	if !a.AtEnd {
		args = append(args, fmt.Sprintf("--data-offset=%dK", storage.ArrayOffset>>10))
	}
	if a.Level != 1 {
		args = append(args, fmt.Sprint("--chunk=", storage.ArrayChunk>>10))
	}
	if a.Level != 0 {
		// A stripe takes all of its members, which are equally large.
		args = append(args, fmt.Sprint("--size=", a.MemberBytes>>10), "--bitmap=internal")
	}
	return tool.Cmd{Name: "mdadm", Args: append(args, a.Members...)}
}

// Stop takes an array down; its contents stay.
func Stop(node string) tool.Cmd {
	return tool.Cmd{Name: "mdadm", Args: []string{"--quiet", "--stop", node}}
}
