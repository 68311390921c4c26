package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/storage/tool"
)

// runProgramme runs one of the operator's own programmes and logs what it
// says.
func (i *installation) runProgramme(ctx context.Context, phase progress.Phase, c tool.Cmd) error {
	i.debugf(phase, "running %q", append([]string{c.Name}, c.Args...))
	out, err := i.env.runner.Run(ctx, c)
	if text := bytes.TrimSpace(out.Stderr); len(text) > 0 {
		i.model.Log(phase, string(text))
	}
	if err != nil {
		return fmt.Errorf("custom programme: %w", err)
	}
	return nil
}

// selectDisks lets -driveSelector choose among the usable disks; it answers
// with one path a line.
func (i *installation) selectDisks(ctx context.Context, usable []string) ([]string, error) {
	out, err := i.env.runner.Run(ctx, tool.Cmd{Name: i.opt.driveSelector, Args: usable})
	i.debugf(progress.Inventory, "-driveSelector %q answered %q", usable, out.Stdout)
	if text := bytes.TrimSpace(out.Stderr); len(text) > 0 {
		i.model.Log(progress.Inventory, string(text))
	}
	if err != nil {
		return nil, fmt.Errorf("-driveSelector: %w", err)
	}
	selected := []string{}
	for line := range strings.Lines(string(out.Stdout)) {
		name := strings.TrimSpace(line)
		if name == "" {
			continue
		}
		if !slices.Contains(usable, name) {
			return nil, refuse("STO-051", "-driveSelector answered %q, which is none of the disks it was given: %s", name, strings.Join(usable, " "))
		}
		if !slices.Contains(selected, name) {
			selected = append(selected, name)
		}
	}
	return selected, nil
}

// missingPrograms lists what the plan needs and the boot image does not have.
func (i *installation) missingPrograms() []string {
	if i.opt.skipStorage {
		return nil
	}
	var missing []string
	for _, name := range i.plan.Layout.Programs() {
		if _, err := tool.Look("", name); errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, name)
		}
	}
	return missing
}

// rootedRunner runs programs below root.
type rootedRunner struct {
	tool.Runner
	root string
}

// Run implements tool.Runner.
func (r rootedRunner) Run(ctx context.Context, c tool.Cmd) (tool.Output, error) {
	if c.Root == "" {
		c.Root = r.root
	}
	return r.Runner.Run(ctx, c)
}

// storageRunner runs the programs that make volumes: those of the boot image
// or, where it lacks some, those of the tools root.
func (i *installation) storageRunner() tool.Runner {
	if i.toolsRoot == "" {
		return i.env.runner
	}
	return rootedRunner{i.env.runner, i.toolsRoot}
}
