package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/installer/fetch"
	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/installer/plan"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/netconfig/renderer"
)

// configCommand is what can be done with configuration files alone.
func (c *common) configCommand() *cobra.Command {
	cmd := group("config", "Check and preview the configuration files of a machine")
	check := &cobra.Command{
		Use: "check DIR", Short: "Read the files in DIR as the installer does, and report every mistake", Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error { return c.configCheck(cmd.Context(), args[0]) },
	}
	var show showOptions
	preview := &cobra.Command{
		Use: "show --network --config DIR", Short: "Preview what the configuration becomes", Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error { return c.configShow(cmd.Context(), show) },
	}
	flags := preview.Flags()
	flags.BoolVar(&show.network, "network", false, "the installed system's network")
	flags.StringVar(&show.renderer, "renderer", "", "`name` of the program to write the files for, or all: "+strings.Join(renderer.Names(), ", "))
	flags.BoolVar(&show.resolved, "resolved", false, "as for an image that uses systemd-resolved")
	flags.StringVar(&show.config, "config", "", "`directory` of the configuration files")
	flags.StringVar(&show.inventory, "inventory", "", "`file` with the machine's inventory (/api/v1/inventory of the installer)")
	cmd.AddCommand(check, preview)
	return cmd
}

type showOptions struct {
	network           bool
	renderer          string
	resolved          bool
	config, inventory string
}

// readConfig reads the files of a directory as the installer does.
func (c *common) readConfig(ctx context.Context, directory string) (config.Config, error) {
	if directory == "" {
		return config.Config{}, &usageError{"--config DIR says where the configuration files are"}
	}
	if info, err := os.Stat(directory); err != nil {
		return config.Config{}, &usageError{err.Error()}
	} else if !info.IsDir() {
		return config.Config{}, &usageError{directory + " is no directory"}
	}
	source := fetch.Directory(directory)
	files := fetch.Files{}
	for _, name := range []string{config.MachineFile, config.LayoutFile, config.ImageFile, config.ImageServerFile,
		config.ToolsImageFile, config.RandomSeedFile, config.SiteServerFile} {
		data, err := source.Get(ctx, name)
		switch {
		case err == nil:
			files[name] = data
		case !errors.Is(err, fetch.ErrAbsent): // a missing one is a mistake among others
			return config.Config{}, err
		}
	}
	for _, name := range config.StepFiles(files) {
		data, err := source.Get(ctx, name)
		if err != nil && !errors.Is(err, fetch.ErrAbsent) {
			return config.Config{}, err
		}
		files[name] = data
	}
	read, err := config.Parse(files, config.DefaultPort)
	if err != nil {
		return config.Config{}, err
	}
	for _, warning := range read.Warnings {
		fmt.Fprintln(c.err, "warning:", warning)
	}
	return read, nil
}

// checked is the result of config check.
type checked struct {
	Machine  string           `json:"machine,omitempty"`
	Image    string           `json:"image,omitempty"`
	Mistakes []config.Mistake `json:"mistakes"`
	Warnings []string         `json:"warnings"`
}

func (c *common) configCheck(ctx context.Context, directory string) error {
	read, err := c.readConfig(ctx, directory)
	result := checked{Machine: read.Network.Hostname, Image: read.Image, Mistakes: []config.Mistake{}, Warnings: append([]string{}, read.Warnings...)}
	var mistakes config.Mistakes
	if errors.As(err, &mistakes) {
		for _, one := range mistakes {
			result.Mistakes = append(result.Mistakes, *one)
		}
	} else if err != nil {
		return err
	}
	if c.output == "json" || err == nil {
		printErr := c.print(result, func(w io.Writer) {
			fmt.Fprintf(w, "machine\t%s\nimage\t%s\nstate\tno mistake\n", result.Machine, result.Image)
		})
		return errors.Join(err, printErr)
	}
	return err
}

// preview is the result of config show --network.
type preview struct {
	Network netconfig.Config       `json:"network"`
	Files   map[string][]shownFile `json:"files,omitempty"` // by renderer
}

type shownFile struct {
	Path string `json:"path"`
	Mode string `json:"mode"` // octal
	Text string `json:"text"`
}

func (c *common) configShow(ctx context.Context, show showOptions) error {
	if !show.network {
		return &usageError{"say what to show: --network"}
	}
	var names []string
	switch _, ok := renderer.Named(show.renderer); {
	case show.renderer == "all":
		names = renderer.Names()
	case ok:
		names = []string{show.renderer}
	case show.renderer != "":
		return &usageError{fmt.Sprintf("--renderer is all or one of %s, not %q", strings.Join(renderer.Names(), ", "), show.renderer)}
	}
	read, err := c.readConfig(ctx, show.config)
	if err != nil {
		return err
	}
	var nics []netconfig.NIC
	if show.inventory != "" {
		machine, err := readInventory(show.inventory)
		if err != nil {
			return err
		}
		nics = machine.NICs
	} else {
		nics = inventNICs(read.Network)
		c.note("no --inventory: shown for a machine with the NICs of config.json and one more with a link")
	}
	resolved, err := netconfig.Resolve(read.Network, nics)
	if err != nil {
		return err
	}
	resolver := netconfig.ResolvConf
	if show.resolved {
		resolver = netconfig.Resolved
	}
	result := preview{Network: resolved, Files: map[string][]shownFile{}}
	for _, name := range names {
		render, _ := renderer.Named(name) // named above
		for _, file := range append(netconfig.Identity(resolved), render(resolved, resolver)...) {
			result.Files[name] = append(result.Files[name], shownFile{file.Path, fmt.Sprintf("%#o", file.Mode), string(file.Data)})
		}
	}
	return c.print(result, func(w io.Writer) {
		if len(names) == 0 {
			fmt.Fprint(w, plan.Network{Config: resolved}.Text())
		}
		for _, name := range names {
			for _, file := range result.Files[name] {
				fmt.Fprintf(w, "==> %s: %s %s\n%s\n", name, file.Path, file.Mode, file.Text)
			}
		}
	})
}

// inventNICs is a machine with every NIC that the configuration names and one
// that it does not, for the VLANs or the lease.
func inventNICs(spec netconfig.Spec) []netconfig.NIC {
	var nics []netconfig.NIC
	add := func(mac netconfig.MAC) {
		nics = append(nics, netconfig.NIC{Name: fmt.Sprintf("eth%d", len(nics)), MAC: mac, PermanentMAC: mac, Carrier: true})
	}
	trunk := false
	for _, entry := range spec.Entries {
		if !entry.MAC.IsZero() {
			add(entry.MAC)
		}
		trunk = trunk || entry.VlanTrunk
	}
	if !trunk {
		add(netconfig.MAC{0x02, 0, 0, 0, 0, 0x01}) // locally administered: no real one
	}
	return nics
}

func readInventory(path string) (inventory.Document, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return inventory.Document{}, &usageError{err.Error()}
	}
	machine, err := inventory.Parse(data)
	if err != nil {
		return inventory.Document{}, fmt.Errorf("reading %s: %w", path, err)
	}
	return machine, nil
}
