package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/installer/plan"
)

// planCommand makes on a laptop the plan that the machine would make.
func (c *common) planCommand() *cobra.Command {
	var inventoryFile, directory, name string
	var skipStorage, skipNetwork bool
	cmd := &cobra.Command{
		Use: "plan --inventory FILE --config DIR", Args: arguments(0, 0),
		Short: "Make the plan that the machine would make, the same to the last byte",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if inventoryFile == "" {
				return &usageError{"--inventory FILE is the machine's inventory: http://MACHINE:6978/api/v1/inventory"}
			}
			read, err := c.readConfig(cmd.Context(), directory)
			if err != nil {
				return err
			}
			machine, err := readInventory(inventoryFile)
			if err != nil {
				return err
			}
			if read.Install.Rescue {
				return &usageError{"the configuration asks for a rescue (Install.Rescue): nothing is planned"}
			}
			if read.Install.Wipe != "" {
				made, err := plan.NewWipe(read, machine)
				if err != nil {
					return err
				}
				return c.printPlan(made)
			}
			if name != "" {
				read.Image = name
			}
			if len(read.ImageServers) > 0 && !cmd.Flags().Changed("imageserver") {
				c.imageserver = read.ImageServers[0]
			}
			found, err := c.planImage(cmd.Context(), read.Image, read.ToolsImage)
			if err != nil {
				return err
			}
			var skip []plan.Skip
			if skipStorage {
				skip = append(skip, plan.SkipStorage)
			}
			if skipNetwork {
				skip = append(skip, plan.SkipNetwork)
			}
			made, err := plan.New(read, machine, found, skip...)
			if err != nil {
				return err
			}
			return c.printPlan(made)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&inventoryFile, "inventory", "", "`file` with the machine's inventory")
	flags.StringVar(&directory, "config", "", "`directory` of the configuration files")
	flags.StringVar(&name, "image", "", "`name` of the image, instead of that in the file imagename")
	flags.BoolVar(&skipStorage, "skip-storage", false, "as for an installer with -skipStorage")
	flags.BoolVar(&skipNetwork, "skip-network", false, "as for an installer with -skipNetwork or -networkConfigurator")
	return cmd
}

// planImage asks the image server for what a plan needs of an image.
func (c *common) planImage(ctx context.Context, name, tools string) (plan.Image, error) {
	connection, err := c.dial(ctx)
	if err != nil {
		return plan.Image{}, err
	}
	defer connection.Close() // only read from
	one, err := manifestOf(ctx, connection, name)
	if err == nil && tools != "" {
		var from plan.Image
		from, err = manifestOf(ctx, connection, tools)
		one.Tools = &from
	}
	return one, err
}

func manifestOf(ctx context.Context, connection *client.Client, name string) (plan.Image, error) {
	found, err := connection.Manifest(ctx, name)
	if err != nil {
		return plan.Image{}, err
	}
	manifest, err := image.Decode(found.Raw)
	if err != nil {
		return plan.Image{}, fmt.Errorf("reading the manifest of %s: %w", found.Name, err)
	}
	return plan.Image{Name: found.Name, Digest: found.Digest, Manifest: manifest, Stored: found.Stored}, nil
}

// printPlan writes the very bytes that the machine hashes, or the text for a
// person with the hash as its last line.
func (c *common) printPlan(p plan.Plan) error {
	hash, err := p.Hash()
	if err != nil {
		return err
	}
	if c.output == "json" {
		data, err := p.JSON()
		if err != nil {
			return err
		}
		c.note("plan %s", hash)
		_, err = c.out.Write(data)
		return err
	}
	_, err = fmt.Fprintf(c.out, "%splan %s\n", p.Text(), hash)
	return err
}
