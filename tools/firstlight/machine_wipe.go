package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/firstlight/firstlight/installer/plan"
	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/tools/site"
)

// wipePlan is what a wipe would do to a machine, as far as it is known here.
type wipePlan struct {
	Machine string        `json:"machine"`
	Erase   storage.Erase `json:"erase"`
	// Disks are those of the machine's last inventory that would be erased.
	Disks []string `json:"disks,omitempty"`
	Lost  []string `json:"lost,omitempty"`
	// Kept are disks that stay as they are, and why.
	Kept []string `json:"kept,omitempty"`
	Done bool     `json:"done"`
}

// levels of erasing, from the least to the most thorough.
func levels() []string {
	return []string{string(storage.EraseMetadata), string(storage.EraseDiscard), string(storage.EraseCrypto), string(storage.EraseOverwrite)}
}

func (c *common) machineWipe() *cobra.Command {
	var erase string
	var yes bool
	cmd := &cobra.Command{
		Use: "wipe NAME --erase LEVEL", Args: arguments(1, 1),
		Short: "Let the disks of a machine be erased, once, when it next boots the installer",
		Long: `Let all disks of a machine be erased when it next boots the installer, and the
machine be switched off. Nothing is installed. LEVEL is metadata (tables,
signatures and key slots), discard (the disk is told that nothing is needed),
crypto (the disk forgets its contents by its own means) or overwrite (zeroes in
every sector, read back). A disk that cannot do what is asked for refuses the
whole before anything is written.`,
		RunE: func(_ *cobra.Command, args []string) error {
			if !slices.Contains(levels(), erase) {
				return &usageError{fmt.Sprintf("--erase is one of %s", strings.Join(levels(), ", "))}
			}
			s, err := c.openSite()
			if err != nil {
				return err
			}
			m, err := s.Machine(args[0])
			if err != nil {
				return err
			}
			wipe, err := planWipe(s, m, storage.Erase(erase))
			if err != nil {
				return err
			}
			what := fmt.Sprintf("let every disk of %s be erased (%s) when it next boots the installer", m.Name, erase)
			if len(wipe.Lost) > 0 {
				c.note("By its last inventory this is lost:\n  %s", strings.Join(wipe.Lost, "\n  "))
			} else {
				what += "; it has sent no inventory, so what is lost is not known"
			}
			if err := c.confirm(yes, what); err != nil {
				return err
			}
			if err := s.Wipe(m.Name, c.operator(), wipe.Erase); err != nil {
				return err
			}
			wipe.Done = true
			return c.print(wipe, func(w io.Writer) {
				fmt.Fprintf(w, "%s will be wiped (%s) when it next boots the installer\n", m.Name, erase)
				for _, disk := range wipe.Disks {
					fmt.Fprintf(w, "erased\t%s\n", disk)
				}
				for _, kept := range wipe.Kept {
					fmt.Fprintf(w, "kept\t%s\n", kept)
				}
				fmt.Fprintf(w, "boot it:\tfirstlight machine boot %s\n", m.Name)
				fmt.Fprintf(w, "take it back:\tfirstlight machine set %s --state waiting\n", m.Name)
			})
		},
	}
	cmd.Flags().StringVar(&erase, "erase", "", "how `thoroughly`: "+strings.Join(levels(), ", "))
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// planWipe holds a wipe against the machine's last inventory. A machine that has
// sent none is looked at by its installer alone.
func planWipe(s *site.Site, m *site.Machine, erase storage.Erase) (wipePlan, error) {
	wipe := wipePlan{Machine: m.Name, Erase: erase}
	if m.Config != nil && len(m.Config.Storage.Preserve) > 0 {
		return wipe, &refusedError{fmt.Sprintf("storage-layout.json of %s preserves %s; take Preserve out of it, if those may be lost", m.Name, strings.Join(m.Config.Storage.Preserve, ", "))}
	}
	found, ok := s.Hardware(m.Name)
	if !ok {
		return wipe, nil
	}
	layout, err := storage.ResolveWipe(erase, found.Disks, found.Selected)
	if err != nil {
		return wipe, plan.Refusals{err} // what the machine itself would say
	}
	for _, d := range layout.Disks {
		wipe.Disks = append(wipe.Disks, strings.TrimSpace(fmt.Sprintf("%s %s %s, %s", d.Path, d.Model, d.Serial, storage.Bytes(d.Size))))
	}
	wipe.Lost = layout.Lost
	for _, d := range layout.Skipped {
		wipe.Kept = append(wipe.Kept, d.Disk+": "+d.Reason)
	}
	return wipe, nil
}

func (c *common) machineRescue() *cobra.Command {
	return &cobra.Command{
		Use: "rescue NAME", Args: arguments(1, 1),
		Short: "Let a machine boot the installer and wait for you; nothing is touched",
		RunE: func(_ *cobra.Command, args []string) error {
			s, err := c.openSite()
			if err != nil {
				return err
			}
			m, err := s.Machine(args[0])
			if err != nil {
				return err
			}
			if err := s.Keep(m.Name, c.operator(), site.Rescue); err != nil {
				return err
			}
			if m, err = s.Machine(m.Name); err != nil {
				return err
			}
			return c.print(m, func(w io.Writer) {
				fmt.Fprintf(w, "%s waits for you when it next boots the installer; nothing is touched\n", m.Name)
				fmt.Fprintf(w, "boot it:\tfirstlight machine boot %s\n", m.Name)
				fmt.Fprintf(w, "then:\tfirstlight installer-shell ADDRESS\n")
			})
		},
	}
}
