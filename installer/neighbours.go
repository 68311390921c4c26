package main

import (
	"context"
	"fmt"
	"maps"
	"sync"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/link"
	"github.com/firstlight/firstlight/netconfig/lldp"
)

// neighbours are the switches that were heard, by the name of the NIC.
type neighbours struct {
	mu    sync.Mutex
	heard map[string]netconfig.Neighbour
	told  map[string]int // how often something was news
}

// mostTold is how much news of one NIC's neighbours is told. Anybody on the link
// can send as many names as he likes, and the log lies in memory.
const mostTold = 20

// note is true of what is news, and to be told.
func (n *neighbours) note(name string, neighbour netconfig.Neighbour, gone bool) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.heard == nil {
		n.heard, n.told = map[string]netconfig.Neighbour{}, map[string]int{}
	}
	old, known := n.heard[name]
	news := known
	if gone {
		delete(n.heard, name)
	} else {
		n.heard[name] = neighbour
		news = !known || old.String() != neighbour.String()
	}
	if news {
		n.told[name]++
	}
	return news && n.told[name] <= mostTold
}

// beside adds to each NIC what its switch says.
func (n *neighbours) beside(nics []netconfig.NIC) {
	n.mu.Lock()
	heard := maps.Clone(n.heard)
	n.mu.Unlock()
	for i := range nics {
		if neighbour, ok := heard[nics[i].Name]; ok {
			nics[i].Neighbour = &neighbour
		}
	}
}

// listenToNeighbours hears switches until the installation ends. They speak
// every 30 seconds or so: what comes after the inventory is added to it.
func (i *installation) listenToNeighbours() {
	i.opened.run("the listening to switches", func(ctx context.Context) error {
		return lldp.Listen(ctx, func() ([]string, error) {
			nics, err := link.List(i.env.sys)
			var names []string
			for _, nic := range nics {
				names = append(names, nic.Name)
			}
			return names, err
		}, func(name string, neighbour netconfig.Neighbour, gone bool) {
			switch {
			case !i.switches.note(name, neighbour, gone):
			case gone:
				i.model.Logf(progress.Links, "%s: %s takes its leave", name, neighbour)
			default:
				i.model.Logf(progress.Links, "%s: %s", name, neighbour)
			}
		})
	})
}

// currentNICs are the NICs with their counters and neighbours as they are now,
// for the page.
func (i *installation) currentNICs() []netconfig.NIC {
	nics, err := link.List(i.env.sys)
	if err != nil {
		return nil // the page then shows none; phases report it
	}
	i.switches.beside(nics)
	return nics
}

// describeNIC is a line for the log.
func describeNIC(nic netconfig.NIC) string {
	state := "no link"
	if nic.Carrier {
		state = "link"
		if nic.SpeedMbps > 0 {
			state = fmt.Sprintf("link, %d Mbit/s", nic.SpeedMbps)
		}
	}
	return fmt.Sprintf("%s %s %s: %s", nic.Name, nic.MAC, nic.Driver, state)
}
