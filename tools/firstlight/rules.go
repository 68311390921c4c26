package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/tools/site"
	"github.com/firstlight/firstlight/tools/site/rules"
)

func (c *common) rulesCommand() *cobra.Command {
	parent := group("rules", "What machines that nobody has named become, by what they are")
	parent.AddCommand(c.rulesPreview(), c.rulesApply())
	return parent
}

// hashed is a preview with its hash, as it is printed.
type hashed struct {
	Hash string `json:"hash"`
	rules.Preview
}

func (c *common) rulesPreview() *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use: "preview", Args: arguments(0, 0),
		Short: "Say which machine matches which rule of rules.yaml, and what it would become",
		Long: `Say which of the machines that wait matches which rule of the site's rules.yaml,
what it would become, and why others match none. Nothing is changed. The hash at
the end is what firstlight rules apply takes.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.openSite()
			if err != nil {
				return err
			}
			waiting, err := waitingMachines(s)
			if len(files) > 0 {
				waiting, err = machinesIn(files)
			}
			if err != nil {
				return err
			}
			preview, _, err := c.preview(cmd.Context(), s, waiting)
			if err != nil {
				return err
			}
			hash, err := preview.Hash()
			if err == nil && len(files) == 0 {
				err = keepPreview(s, hash, preview)
			}
			if err != nil {
				return err
			}
			if err := c.print(hashed{hash, preview}, func(w io.Writer) { printPreview(w, preview) }); err != nil || c.output == "json" {
				return err
			}
			if len(files) > 0 {
				return nil // of inventories in files nothing can be applied
			}
			_, err = fmt.Fprintf(c.out, "\npreview %s\n", hash)
			if err == nil && slices.ContainsFunc(preview.Machines, rules.Decision.Matches) {
				c.note("to do exactly this: firstlight rules apply %s", hash)
			}
			return err
		},
	}
	cmd.Flags().StringSliceVar(&files, "inventory", nil, "try the rules on the inventory in this `file`, instead of the machines that wait; may be repeated")
	return cmd
}

func (c *common) rulesApply() *cobra.Command {
	var dryRun, approve, yes bool
	cmd := &cobra.Command{
		Use: "apply HASH", Args: arguments(1, 1),
		Short: "Do exactly what was previewed: name machines, give them image, layout and labels",
		Long: `Do exactly what the preview of that hash says. When anything has changed since
(a rule, a machine's hardware, an image, a layout), or when a machine of it has a
problem, nothing is done. Machines that have come since are left alone. With
--approve the machines are installed when they next ask.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := c.openSite()
			if err != nil {
				return err
			}
			preview, world, err := c.unchanged(cmd.Context(), s, args[0])
			if err != nil {
				return err
			}
			var chosen []rules.Decision
			for _, d := range preview.Machines {
				if d.Matches() {
					chosen = append(chosen, d)
				}
			}
			if dryRun || len(chosen) == 0 {
				c.note("%d machines would be named; nothing was changed", len(chosen))
				return c.print(chosen, func(w io.Writer) { printDecisions(w, chosen) })
			}
			if approve {
				if err := c.confirm(yes, fmt.Sprintf("name %d machines and let each be installed, which erases its disks", len(chosen))); err != nil {
					return err
				}
			}
			return c.applyRules(s, args[0], chosen, world, approve)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&dryRun, "dry-run", false, "check all, say what would be done, and do nothing")
	flags.BoolVar(&approve, "approve", false, "approve the installation of these machines as well")
	flags.BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// openSite opens the site's directory.
func (c *common) openSite() (*site.Site, error) {
	dir, err := c.siteDirectory()
	if err != nil {
		return nil, err
	}
	return site.Open(dir, time.Now)
}

// waitingMachines are those that nobody has named.
func waitingMachines(s *site.Site) ([]rules.Machine, error) {
	all, err := s.Machines()
	if err != nil {
		return nil, err
	}
	var waiting []rules.Machine
	for _, m := range all {
		if !m.Pending {
			continue
		}
		one := rules.Machine{ID: m.Name}
		found, err := s.Inventory(m.Name)
		switch {
		case err == nil:
			one.Inventory = &found
		case !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("the inventory of %s: %w", m.Name, err)
		}
		waiting = append(waiting, one)
	}
	return waiting, nil
}

// machinesIn are the machines of inventories in files.
func machinesIn(files []string) ([]rules.Machine, error) {
	var all []rules.Machine
	for _, file := range files {
		found, err := readInventory(file)
		if err != nil {
			return nil, err
		}
		all = append(all, rules.Machine{ID: file, Inventory: &found})
	}
	return all, nil
}

// preview holds the site's rules against machines.
func (c *common) preview(ctx context.Context, s *site.Site, machines []rules.Machine) (rules.Preview, rules.World, error) {
	data, err := os.ReadFile(s.RulesFile())
	if errors.Is(err, fs.ErrNotExist) {
		err = &usageError{fmt.Sprintf("there are no rules: %s is not there (docs/rules.md says how to write them)", s.RulesFile())}
	}
	if err != nil {
		return rules.Preview{}, rules.World{}, err
	}
	parsed, err := rules.Parse(data)
	if err != nil {
		return rules.Preview{}, rules.World{}, err
	}
	world, err := c.world(ctx, s, parsed)
	if err != nil {
		return rules.Preview{}, rules.World{}, err
	}
	preview, err := rules.NewPreview(parsed, data, machines, world)
	return preview, world, err
}

// world asks for all that the rules name. An image server that does not answer
// ends it: without it nobody knows for which architecture an image is.
func (c *common) world(ctx context.Context, s *site.Site, parsed rules.Rules) (rules.World, error) {
	taken := make(map[string]bool)
	all, err := s.Machines()
	if err != nil {
		return rules.World{}, err
	}
	for _, m := range all {
		taken[m.Name] = true
	}
	world := rules.World{
		Images: make(map[string]rules.Image), Layouts: make(map[string][]byte),
		Taken: func(name string) bool { return taken[name] }, CheckName: site.CheckName,
	}
	for _, rule := range parsed {
		file := rule.Set.Layout
		if file == "" || world.Layouts[file] != nil {
			continue
		}
		data, err := os.ReadFile(filepath.Join(s.Dir(), filepath.FromSlash(file)))
		if errors.Is(err, fs.ErrNotExist) {
			continue // the machines that would have it are told
		}
		if err == nil {
			err = checkLayout(data)
		}
		if err != nil {
			return rules.World{}, fmt.Errorf("%s: %w", file, err)
		}
		world.Layouts[file] = data
	}
	if len(parsed) == 0 {
		return world, nil
	}
	return world, c.connected(ctx, func(ctx context.Context, connection *client.Client) error {
		for _, rule := range parsed {
			found, err := connection.Find(ctx, rule.Set.Image)
			var coded interface{ Code() string }
			switch {
			case err == nil:
				world.Images[rule.Set.Image] = rules.Image{Name: found.Name, Digest: found.Digest.String(), Arch: found.Attributes[image.AttrArch]}
			case errors.As(err, &coded) && coded.Code() == client.CodeNoImage: // the machines that would have it are told
			default:
				return err
			}
		}
		return nil
	})
}

// checkLayout reads a layout as an installer would.
func checkLayout(data []byte) error {
	_, err := config.Parse(map[string][]byte{
		config.MachineFile: []byte("{}"), config.ImageFile: []byte("any"), config.LayoutFile: data,
	}, config.DefaultPort)
	return err
}

// previewLife is how long a preview can be applied.
const previewLife = 7 * 24 * time.Hour

// keepPreview keeps a preview for rules apply, and forgets old ones.
func keepPreview(s *site.Site, hash string, preview rules.Preview) error {
	data, err := preview.JSON()
	if err != nil {
		return err
	}
	dir := s.State("previews")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > previewLife {
			_ = os.Remove(filepath.Join(dir, e.Name())) // the next time then
		}
	}
	return writeOut(nil, previewFile(s, hash), func(w io.Writer) error { _, err := w.Write(data); return err })
}

func previewFile(s *site.Site, hash string) string {
	return s.State("previews", strings.TrimPrefix(hash, "sha256:")+".json")
}

// unchanged is the preview of that hash, if the same would come out for its
// machines now.
func (c *common) unchanged(ctx context.Context, s *site.Site, hash string) (rules.Preview, rules.World, error) {
	hex := strings.TrimPrefix(hash, "sha256:")
	if len(hex) != 64 || strings.Trim(hex, "0123456789abcdef") != "" {
		return rules.Preview{}, rules.World{}, &usageError{fmt.Sprintf("%q is no hash of a preview: firstlight rules preview shows it", hash)}
	}
	data, err := os.ReadFile(previewFile(s, hash))
	if errors.Is(err, fs.ErrNotExist) {
		return rules.Preview{}, rules.World{}, rules.Refuse("no preview of this site has the hash %s", hash)
	}
	if err != nil {
		return rules.Preview{}, rules.World{}, err
	}
	was, err := rules.ParsePreview(data)
	if err != nil {
		return rules.Preview{}, rules.World{}, err
	}
	if is, err := was.Hash(); err != nil || is != "sha256:"+hex {
		return rules.Preview{}, rules.World{}, errors.Join(err, rules.Refuse("the file of the preview %s was changed", hash))
	}
	waiting, err := waitingMachines(s)
	if err != nil {
		return rules.Preview{}, rules.World{}, err
	}
	// Those that matched nothing, or have come since, are left alone whatever they
	// are now.
	was = was.Decided()
	waiting = slices.DeleteFunc(waiting, func(m rules.Machine) bool {
		return !slices.ContainsFunc(was.Machines, func(d rules.Decision) bool { return d.Machine == m.ID })
	})
	now, world, err := c.preview(ctx, s, waiting)
	if err != nil {
		return rules.Preview{}, rules.World{}, err
	}
	if changes := was.Changes(now); len(changes) > 0 {
		return rules.Preview{}, rules.World{}, rules.Refuse("it is not as it was previewed, so nothing was done: %s", strings.Join(changes, "; "))
	}
	if problems := now.Problems(); len(problems) > 0 {
		var lines []string
		for _, d := range problems {
			lines = append(lines, d.Machine+": "+d.Problem)
		}
		return rules.Preview{}, rules.World{}, rules.Refuse("nothing was done, because of %d machines: %s", len(problems), strings.Join(lines, "; "))
	}
	return now, world, nil
}

// applied is what has become of a machine.
type applied struct {
	rules.Decision
	Approved bool   `json:"approved,omitempty"`
	Error    string `json:"error,omitempty"`
}

// applyRules names the machines. What goes wrong with one does not keep the
// others from it.
func (c *common) applyRules(s *site.Site, hash string, chosen []rules.Decision, world rules.World, approve bool) error {
	var results []applied
	var failures []error
	by := c.operator()
	for _, d := range chosen {
		result := applied{Decision: d}
		err := adoptByRule(s, by, hash, d, world)
		if err == nil && approve {
			err = s.Approve(d.Name, by, false)
			result.Approved = err == nil
		}
		if err != nil {
			result.Error = err.Error()
			failures = append(failures, fmt.Errorf("%s: %w", d.Machine, err))
		}
		results = append(results, result)
	}
	err := c.print(results, func(w io.Writer) {
		fmt.Fprintln(w, "MACHINE\tRULE\tNAME\tIMAGE\tRESULT")
		for _, r := range results {
			said := "named"
			if r.Approved {
				said = "named and approved"
			}
			if r.Error != "" {
				said = r.Error
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.Machine, r.Rule, r.Name, r.Image, said)
		}
	})
	switch {
	case err != nil:
		return err
	case len(failures) == len(chosen):
		return errors.Join(failures...)
	case len(failures) > 0:
		c.note("%d of %d machines were not dealt with", len(failures), len(chosen))
		return &statusError{exitPartly}
	}
	return nil
}

// adoptByRule makes a waiting machine the one that was decided.
func adoptByRule(s *site.Site, by, hash string, d rules.Decision, world rules.World) error {
	machine, err := s.Inventory(d.Machine)
	if err != nil {
		return err
	}
	files, err := machineFiles(d.Name, d.Image, machine, d.Labels)
	if err != nil {
		return err
	}
	if d.Layout != "" {
		files[config.LayoutFile] = world.Layouts[d.Layout]
	}
	if err := s.Adopt(d.Machine, d.Name, by, files); err != nil {
		return err
	}
	return s.Note(site.Entry{Who: by, Verb: "rules", Machine: d.Name, Detail: fmt.Sprintf("rule %q of preview %s: image %s, layout %s", d.Rule, hash, d.Image, d.Layout)})
}

// machineFiles are the files of a machine of which only its inventory is known:
// its network is that of its lease.
func machineFiles(name, imageName string, machine inventory.Document, labels map[string]string) (map[string][]byte, error) {
	marks := site.IdentityOf(machine)
	entry := map[string]any{"Hostname": name, "ArchitectureType": machine.Arch}
	for _, nic := range machine.NICs {
		if nic.Lease {
			entry["HostMacAddress"] = nic.MAC.String()
		}
	}
	if entry["HostMacAddress"] == nil && len(marks.MACs) > 0 {
		entry["HostMacAddress"] = marks.MACs[0].String()
	}
	text, err := json.MarshalIndent(map[string]any{"Machine": entry}, "", "  ")
	if err != nil {
		return nil, err
	}
	card, err := yaml.Marshal(site.Card{MACs: marks.MACs, Serial: marks.Serial, UUID: marks.UUID, Labels: labels})
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		config.MachineFile: append(text, '\n'),
		config.ImageFile:   []byte(imageName + "\n"),
		"machine.yaml":     card,
	}, nil
}

// printPreview shows who becomes what, then who does not and why.
func printPreview(w io.Writer, p rules.Preview) {
	var matching, refused, silent, none []rules.Decision
	for _, d := range p.Machines {
		switch {
		case d.Problem != "":
			refused = append(refused, d)
		case d.Rule != "":
			matching = append(matching, d)
		case d.Silent:
			silent = append(silent, d)
		default:
			none = append(none, d)
		}
	}
	if len(p.Machines) == 0 {
		fmt.Fprintln(w, "no machine waits")
	}
	if len(matching) > 0 {
		printDecisions(w, matching)
	}
	if len(refused) > 0 {
		fmt.Fprintln(w, "\nREFUSED\tRULE\tWHY")
		for _, d := range refused {
			fmt.Fprintf(w, "%s\t%s\t%s\n", d.Machine, orDash(d.Rule), d.Problem)
		}
	}
	if len(none) > 0 {
		fmt.Fprintln(w, "\nMATCHES NOTHING\tRULE\tCONDITION\tWANTS\tHAS")
		for _, d := range none {
			for _, m := range d.Misses {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", d.Machine, m.Rule, m.Condition, m.Wants, m.Has)
			}
			if len(d.Misses) == 0 {
				fmt.Fprintf(w, "%s\t-\t\t\t\n", d.Machine)
			}
		}
	}
	for _, d := range silent {
		fmt.Fprintf(w, "%s has not sent its inventory yet\n", d.Machine)
	}
}

func printDecisions(w io.Writer, all []rules.Decision) {
	fmt.Fprintln(w, "MACHINE\tRULE\tNAME\tIMAGE\tLAYOUT\tLABELS\tMATCHES TOO")
	for _, d := range all {
		var labels []string
		for _, key := range slices.Sorted(maps.Keys(d.Labels)) {
			labels = append(labels, key+"="+d.Labels[key])
		}
		shown := d.Image
		if d.Resolved != nil && d.Resolved.Name != d.Image {
			shown += " (" + d.Resolved.Name + ")"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", d.Machine, d.Rule, d.Name, shown, orDash(d.Layout), orDash(strings.Join(labels, ",")), orDash(strings.Join(d.Also, ", ")))
	}
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
