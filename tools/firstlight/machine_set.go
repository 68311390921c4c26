package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/tools/site"
)

// machineChange are the flags of machine set.
type machineChange struct {
	name, image, layout, config, state string
	serial, uuid                       string
	macs, labels                       []string
	bmc                                site.BMC
	unchecked                          bool
}

func (c *common) machineSet() *cobra.Command {
	var change machineChange
	cmd := &cobra.Command{
		Use: "set NAME", Args: arguments(1, 1),
		Short: "Say what a machine shall be: name, image, layout, configuration, labels",
		Long: `Say what a machine shall be. One that nobody knows yet is called by its MAC
address, and needs --name and --image:

  firstlight machine set 52-54-00-12-34-56 --name web1 --image debian/12
  firstlight machine approve web1

Without --config the new system gets its address by DHCP, and without --layout
the default layout, which is for disks without foreign data only. Nothing is
installed by this command. The same files can be written by hand, into
machines/NAME of the site.

--state waiting takes an approval back; --state installed says that the machine
shall boot what is on its disk.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.openSite()
			if err != nil {
				return err
			}
			return c.setMachine(cmd.Context(), s, args[0], change, cmd.Flags().Changed)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&change.name, "name", "", "`name` for a machine that has none yet")
	flags.StringVar(&change.image, "image", "", "`image` to install")
	flags.StringVar(&change.layout, "layout", "", "`file` that becomes its storage-layout.json")
	flags.StringVar(&change.config, "config", "", "`file` that becomes its config.json")
	flags.StringSliceVar(&change.labels, "label", nil, "`name=value`; may be repeated; name= takes it away")
	flags.StringSliceVar(&change.macs, "mac", nil, "MAC `address` by which it is known, besides those in config.json; may be repeated")
	flags.StringVar(&change.serial, "serial", "", "serial `number` by which it is known")
	flags.StringVar(&change.uuid, "uuid", "", "system `UUID` by which it is known")
	flags.StringVar(&change.bmc.URL, "bmc-url", "", "`URL` of its management controller's Redfish service")
	flags.StringVar(&change.bmc.User, "bmc-user", "", "`user` there")
	flags.StringVar(&change.bmc.PasswordFile, "bmc-password-file", "", "`file` in the site's secrets directory with the password")
	flags.StringVar(&change.bmc.CA, "bmc-ca", "", "PEM `file` that the controller's certificate is checked by (default: the system's authorities)")
	flags.StringVar(&change.state, "state", "", "waiting: take an approval back; installed: it shall boot its disk")
	flags.BoolVar(&change.unchecked, "unchecked", false, "do not ask the image server whether there is such an image, for this architecture")
	return cmd
}

func (c *common) setMachine(ctx context.Context, s *site.Site, name string, change machineChange, changed func(flag string) bool) error {
	if change.state != "" && change.state != string(site.Waiting) && change.state != string(site.Installed) {
		return &usageError{"--state is waiting or installed; approve, reinstall, wipe and rescue are commands of their own"}
	}
	m, err := s.Machine(name)
	if err != nil {
		return err
	}
	files, err := change.files()
	if err != nil {
		return err
	}
	if change.image != "" && !change.unchecked {
		if err := c.checkImage(ctx, s, m, change.image); err != nil {
			return err
		}
	}
	card := m.Card
	if err := change.card(&card, changed); err != nil {
		return err
	}
	if m.Pending {
		if change.name == "" || change.image == "" {
			return &usageError{fmt.Sprintf("%s has no name yet: give --name and --image", m.Name)}
		}
		if files[config.MachineFile] == nil {
			files[config.MachineFile], err = json.MarshalIndent(map[string]any{"Machine": map[string]any{"Hostname": change.name}}, "", "  ")
			if err != nil {
				return err
			}
			// Its configuration does not say which machine it is.
			card.MACs, card.Serial, card.UUID = append(card.MACs, m.Identity.MACs...), m.Identity.Serial, m.Identity.UUID
		}
		// All at once: the machine asks every few seconds, and must be known again.
		if files[site.CardFile], err = yaml.Marshal(card); err != nil {
			return err
		}
		if err := s.Adopt(m.Name, change.name, c.operator(), files); err != nil {
			return err
		}
		name = change.name
	} else {
		if change.name != "" && change.name != m.Name {
			return &usageError{fmt.Sprintf("it is called %s; to call it otherwise, move its directory", m.Name)}
		}
		name = m.Name
		if err := s.PutFiles(name, c.operator(), files); err != nil {
			return err
		}
		if err := s.PutCard(name, c.operator(), card); err != nil {
			return err
		}
	}
	if change.state != "" {
		if err := s.Keep(name, c.operator(), site.State(change.state)); err != nil {
			return err
		}
	}
	return c.printMachine(s, name)
}

// printMachine shows a machine after a change, and what is wrong with it.
func (c *common) printMachine(s *site.Site, name string) error {
	m, err := s.Machine(name)
	if err != nil {
		return err
	}
	if m.Mistake != "" {
		c.note("%s cannot be installed as it is: %s", m.Name, m.Mistake)
	}
	line := lineOf(m)
	return c.print(line, func(w io.Writer) {
		fmt.Fprintf(w, "%s\t%s\n", line.Name, line.Headline)
		if line.Image != "" {
			fmt.Fprintf(w, "image\t%s\n", line.Image)
		}
		if line.Do != "" {
			fmt.Fprintf(w, "next\t%s\n", line.Do)
		}
	})
}

// files are the installer's files that the flags name.
func (change machineChange) files() (map[string][]byte, error) {
	files := map[string][]byte{}
	for name, from := range map[string]string{config.LayoutFile: change.layout, config.MachineFile: change.config} {
		if from == "" {
			continue
		}
		data, err := os.ReadFile(from)
		if err != nil {
			return nil, &usageError{err.Error()}
		}
		files[name] = data
	}
	if change.image != "" {
		files[config.ImageFile] = []byte(change.image + "\n")
	}
	// A mistake is told before anything is written.
	trial := map[string][]byte{config.MachineFile: []byte("{}"), config.ImageFile: []byte("any")}
	for name, data := range files {
		trial[name] = data
	}
	_, err := config.Parse(trial, config.DefaultPort)
	return files, err
}

// card changes what the flags name.
func (change machineChange) card(card *site.Card, changed func(flag string) bool) error {
	for _, text := range change.macs {
		mac, err := netconfig.ParseMAC(text)
		if err != nil || mac.IsZero() {
			return &usageError{fmt.Sprintf("--mac %q is no MAC address", text)}
		}
		card.MACs = append(card.MACs, mac)
	}
	if changed("serial") {
		card.Serial = change.serial
	}
	if changed("uuid") {
		card.UUID = change.uuid
	}
	for _, text := range change.labels {
		name, value, ok := strings.Cut(text, "=")
		switch {
		case !ok || name == "":
			return &usageError{fmt.Sprintf("--label %q is not name=value", text)}
		case value == "":
			delete(card.Labels, name)
		default:
			labels := map[string]string{name: value}
			for n, v := range card.Labels { // the machine's own map is another's too
				if n != name {
					labels[n] = v
				}
			}
			card.Labels = labels
		}
	}
	if changed("bmc-url") || changed("bmc-user") || changed("bmc-password-file") || changed("bmc-ca") {
		bmc := site.BMC{}
		if card.BMC != nil {
			bmc = *card.BMC
		}
		for flag, field := range map[string]struct{ to, from *string }{
			"bmc-url": {&bmc.URL, &change.bmc.URL}, "bmc-user": {&bmc.User, &change.bmc.User},
			"bmc-password-file": {&bmc.PasswordFile, &change.bmc.PasswordFile}, "bmc-ca": {&bmc.CA, &change.bmc.CA},
		} {
			if changed(flag) {
				*field.to = *field.from
			}
		}
		card.BMC = &bmc
	}
	return nil
}

// checkImage refuses an image that there is not, or that is for another
// architecture than the machine's.
func (c *common) checkImage(ctx context.Context, s *site.Site, m *site.Machine, name string) error {
	arch := m.Arch
	if found, ok := s.Hardware(m.Name); ok {
		arch = found.Arch
	}
	return c.connected(ctx, func(ctx context.Context, connection *client.Client) error {
		found, err := connection.Find(ctx, name)
		if err != nil {
			return err
		}
		if of := found.Attributes[image.AttrArch]; arch != "" && of != "" && of != arch {
			return &refusedError{fmt.Sprintf("%s is an image for %s, and %s is a machine of %s", found.Name, of, m.Name, arch)}
		}
		return nil
	})
}

func (c *common) machineApprove() *cobra.Command {
	return &cobra.Command{
		Use: "approve NAME…", Args: arguments(1, 1000),
		Short: "Let machines be installed, once, when they next boot the installer",
		Long: `Let each machine be installed, once: the next boot of its installer takes the
approval, erases its disks and installs it. A machine that waits goes on at once.
One that is installed is refused; that is what machine reinstall is for.`,
		RunE: func(_ *cobra.Command, args []string) error {
			s, err := c.openSite()
			if err != nil {
				return err
			}
			for _, name := range args {
				if err := s.Approve(name, c.operator(), false); err != nil {
					return err
				}
				if err := c.printMachine(s, name); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func (c *common) machineReinstall() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "reinstall NAME", Args: arguments(1, 1),
		Short: "Let a machine be installed again: what is on its disks is lost",
		RunE: func(_ *cobra.Command, args []string) error {
			s, err := c.openSite()
			if err != nil {
				return err
			}
			m, err := s.Machine(args[0])
			if err != nil {
				return err
			}
			if err := c.confirm(yes, fmt.Sprintf("let %s (%s) be erased and installed with %s when it next boots the installer", m.Name, m.Status.Headline(), m.Image)); err != nil {
				return err
			}
			if err := s.Approve(m.Name, c.operator(), true); err != nil {
				return err
			}
			return c.printMachine(s, m.Name)
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}
