package main

import (
	"fmt"
	"testing"

	"github.com/firstlight/firstlight/netconfig"
)

// A neighbour is told once, and who sends ever new names does not fill the log;
// what was heard last stands beside the NIC all the same.
func TestNeighboursAreToldOnce(t *testing.T) {
	var n neighbours
	one := netconfig.Neighbour{Chassis: "one", Port: "1"}
	if !n.note("eth0", one, false) || n.note("eth0", one, false) || !n.note("eth0", one, true) || n.note("eth0", one, true) {
		t.Error("news is not told once")
	}
	told := 0
	for i := range 1000 {
		if n.note("eth0", netconfig.Neighbour{Chassis: fmt.Sprint(i), Port: "1"}, false) {
			told++
		}
	}
	nics := []netconfig.NIC{{Name: "eth0"}, {Name: "eth1"}}
	if n.beside(nics); told > mostTold || nics[0].Neighbour == nil || nics[0].Neighbour.Chassis != "999" || nics[1].Neighbour != nil {
		t.Errorf("told %d times, at last %+v", told, nics)
	}
	if !n.note("eth1", one, false) {
		t.Error("another NIC's neighbour is not told")
	}
}
