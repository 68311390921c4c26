package md

import (
	"testing"

	"github.com/firstlight/firstlight/storage"
)

// What mdadm makes of these is seen in a virtual machine: it needs a kernel
// with md.
func TestCreate(t *testing.T) {
	members := []string{"/dev/nvme0n1p1", "/dev/nvme1n1p1"}
	a := storage.Array{Name: "root", Node: "/dev/md1", Level: 1, UUID: "702a73ca:b10aad74:8346aebb:4a791d4d", Members: members, MemberBytes: 64 << 20}
	for want, change := range map[string]func(*storage.Array){
		"mdadm --create /dev/md1 --run --quiet --metadata=1.2 --level=1 --raid-devices=2 --uuid=702a73ca:b10aad74:8346aebb:4a791d4d --name=root --homehost=any --data-offset=2048K --size=65536 --bitmap=internal /dev/nvme0n1p1 /dev/nvme1n1p1": func(*storage.Array) {},
		"mdadm --create /dev/md1 --run --quiet --metadata=1.0 --level=1 --raid-devices=2 --uuid=702a73ca:b10aad74:8346aebb:4a791d4d --name=root --homehost=any --size=65536 --bitmap=internal /dev/nvme0n1p1 /dev/nvme1n1p1":                     func(a *storage.Array) { a.AtEnd = true },
		"mdadm --create /dev/md1 --run --quiet --metadata=1.2 --level=0 --raid-devices=2 --uuid=702a73ca:b10aad74:8346aebb:4a791d4d --name=root --homehost=any --data-offset=2048K --chunk=512 /dev/nvme0n1p1 /dev/nvme1n1p1":                    func(a *storage.Array) { a.Level = 0 },
	} {
		b := a
		change(&b)
		if got := Create(b).String(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}
