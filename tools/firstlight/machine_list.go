package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/tools/site"
)

// machineLine is a machine as machine list and machine watch print it.
type machineLine struct {
	Name     string     `json:"name"`
	State    site.State `json:"state"`
	Headline string     `json:"headline"`
	Image    string     `json:"image,omitempty"`
	Address  string     `json:"address,omitempty"`
	Phase    string     `json:"phase,omitempty"`
	Ratio    float64    `json:"ratio"`
	Heard    time.Time  `json:"heard,omitzero"`
	Reason   string     `json:"reason,omitempty"`
	Do       string     `json:"do,omitempty"`
	Mistake  string     `json:"mistake,omitempty"`
}

func lineOf(m *site.Machine) machineLine {
	line := machineLine{
		Name: m.Name, State: m.Status.State, Headline: m.Status.Headline(), Image: m.Image, Address: m.Status.Address,
		Heard: m.Status.Heard, Reason: m.Status.Reason, Do: m.Status.Do, Mistake: m.Mistake,
	}
	if p := m.Status.Progress; p != nil {
		line.Ratio = p.Ratio
		for _, phase := range p.Current() {
			line.Phase = strings.TrimPrefix(line.Phase+"+"+string(phase.Phase), "+")
		}
	}
	return line
}

func (c *common) machineList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the machines: those that have a name, and those that wait for one", Args: arguments(0, 0),
		RunE: func(*cobra.Command, []string) error {
			s, err := c.openSite()
			if err != nil {
				return err
			}
			machines, err := s.Machines()
			if err != nil {
				return err
			}
			lines := []machineLine{}
			for _, m := range machines {
				lines = append(lines, lineOf(m))
			}
			if len(lines) == 0 {
				c.note("no machine has asked for anything yet, and none is in %s/machines", s.Dir())
			}
			return c.print(lines, func(w io.Writer) {
				fmt.Fprintln(w, "NAME\tSTATE\tIMAGE\tADDRESS\tPHASE\tWHAT IT WANTS")
				for _, l := range lines {
					wants := l.Reason
					if l.Mistake != "" {
						wants, _, _ = strings.Cut(l.Mistake, "\n")
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", l.Name, l.Headline, l.Image, l.Address, l.Phase, wants)
				}
			})
		},
	}
}

func (c *common) machineShow() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show all that is known of a machine", Args: arguments(1, 1),
		RunE: func(_ *cobra.Command, args []string) error {
			s, err := c.openSite()
			if err != nil {
				return err
			}
			m, err := s.Machine(args[0])
			if err != nil {
				return err
			}
			found, known := s.Hardware(m.Name)
			shown := struct {
				*site.Machine
				Headline  string          `json:"headline"`
				Marks     string          `json:"marks"`
				Inventory json.RawMessage `json:"inventory,omitempty"`
			}{Machine: m, Headline: m.Status.Headline(), Marks: m.Identity.String()}
			if known {
				if shown.Inventory, err = found.JSON(); err != nil {
					return err
				}
			}
			return c.print(shown, func(w io.Writer) {
				field := func(name, value string) {
					if value != "" {
						fmt.Fprintf(w, "%s\t%s\n", name, value)
					}
				}
				field("name", m.Name)
				field("state", m.Status.Headline())
				field("because", m.Status.Reason)
				field("what to do", m.Status.Do)
				field("mistake", m.Mistake)
				field("firmware", m.Status.Firmware)
				field("image", m.Image)
				field("known by", m.Identity.String())
				field("address", m.Status.Address)
				if !m.Status.Heard.IsZero() {
					field("heard", m.Status.Heard.Local().Format(time.DateTime))
				}
				if !m.Status.Answered.IsZero() {
					field("new system seen", m.Status.Answered.Local().Format(time.DateTime)+", "+m.Status.How)
				}
				if !known {
					return
				}
				field("hardware", strings.Join(strings.Fields(fmt.Sprintf("%s %s %s, %d CPUs, %s, %s", found.DMI.Vendor, found.DMI.Product, found.Arch, found.CPUs, storage.Bytes(found.MemoryBytes), found.Firmware)), " "))
				for _, d := range found.Disks {
					field("disk", strings.Join(strings.Fields(fmt.Sprintf("%s %s %s, %s, %d things on it", d.Path, d.Model, d.Serial, storage.Bytes(d.Size), len(d.Contents))), " "))
				}
				for _, n := range found.NICs {
					field("nic", fmt.Sprintf("%s %s %s", n.Name, n.MAC, n.Driver))
				}
			})
		},
	}
}

// watchInterval is the time between two looks of machine watch.
const watchInterval = 500 * time.Millisecond

func (c *common) machineWatch() *cobra.Command {
	var until string
	cmd := &cobra.Command{
		Use: "watch [NAME…]", Args: arguments(0, 1000),
		Short: "Say what changes, line by line, until you stop it",
		Long: `Say what changes at the machines that are named, or at all, line by line. With
--until STATE it ends when all of them are in that state, and with exit status 1
as soon as one of them has failed instead.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.openSite()
			if err != nil {
				return err
			}
			return c.watchMachines(cmd.Context(), s, args, site.State(until))
		},
	}
	cmd.Flags().StringVar(&until, "until", "", "end when all are in this `state`, such as installed")
	return cmd
}

func (c *common) watchMachines(ctx context.Context, s *site.Site, names []string, until site.State) error {
	for _, name := range names {
		if _, err := s.Machine(name); err != nil {
			return err
		}
	}
	encoder := json.NewEncoder(c.out)
	before := map[string]string{}
	for {
		machines, err := s.Machines()
		if err != nil {
			return err
		}
		there, left := 0, 0
		for _, m := range machines {
			if len(names) > 0 && !slices.Contains(names, m.Name) {
				continue
			}
			line := lineOf(m)
			text := fmt.Sprintf("%s: %s", line.Name, line.Headline)
			if line.State == site.Installing && line.Phase != "" {
				text += fmt.Sprintf(", %s, %d %%", line.Phase, int(line.Ratio*100)/5*5)
			} else if line.Reason != "" {
				text += " (" + line.Reason + ")"
			}
			if text != before[m.Name] {
				before[m.Name] = text
				if c.output == "json" {
					err = encoder.Encode(line)
				} else {
					_, err = fmt.Fprintf(c.out, "%s %s\n", time.Now().Format(time.TimeOnly), text)
				}
				if err != nil {
					return err
				}
			}
			there++
			if line.State != until {
				left++
			}
			if until != "" && until != site.Failed && line.State == site.Failed {
				return site.FailedMachine(m)
			}
		}
		if until != "" && there > 0 && left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil // it was stopped, which is how it ends
		case <-time.After(watchInterval):
		}
	}
}
