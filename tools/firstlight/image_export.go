package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/export"
	"github.com/firstlight/firstlight/imageserver/image"
)

// exported is the result of image export into a file.
type exported struct {
	Image  client.Image `json:"image"`
	Format string       `json:"format"`
	File   string       `json:"file"`
}

func (c *common) imageExport() *cobra.Command {
	var format, file string
	cmd := &cobra.Command{
		Use: "export NAME --file OUT", Short: "Write an image as a tar or an OCI image layout (- is stdout)", Args: arguments(1, 1),
		Long: `Write an image as a tar of its files (--format tar), or as a tar of an OCI image
layout (--format oci, for podman load, docker load and skopeo oci-archive:). The
same image gives the same bytes. Extract a tar with
	tar --xattrs --xattrs-include='*' --numeric-owner -xpf OUT`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case file == "":
				return &usageError{"give --file OUT; - is stdout"}
			case format != "tar" && format != "oci":
				return &usageError{fmt.Sprintf("--format is tar or oci, not %q", format)}
			case file == "-" && terminal(c.out):
				return &usageError{"an image is no text; give --file OUT, or pipe it somewhere"}
			}
			return c.connected(cmd.Context(), func(ctx context.Context, connection *client.Client) error {
				return c.export(ctx, connection, args[0], format, file)
			})
		},
	}
	cmd.Flags().StringVar(&format, "format", "tar", "`format`: tar or oci")
	cmd.Flags().StringVar(&file, "file", "", "`file` to write; - is stdout")
	return cmd
}

func (c *common) export(ctx context.Context, connection *client.Client, name, format, file string) error {
	found, manifest, err := decoded(ctx, connection, name)
	if err != nil {
		return err
	}
	bar := c.startProgress("exporting "+found.Name, int64(unpackedBytes(manifest)))
	err = writeOut(c.out, file, func(w io.Writer) error {
		if format == "tar" {
			return export.Tar(ctx, w, connection, manifest, bar.done)
		}
		scratch, err := os.CreateTemp("", "firstlight-")
		if err != nil {
			return err
		}
		err = os.Remove(scratch.Name()) // it goes when it is closed
		if err == nil {
			err = export.OCI(ctx, w, scratch, connection, manifest, found.Name, bar.done)
		}
		return errors.Join(err, scratch.Close())
	})
	bar.end(err == nil)
	if err != nil {
		return fmt.Errorf("exporting %s: %w", found.Name, err)
	}
	if file == "-" {
		return nil
	}
	return c.print(exported{found.Image, format, file}, func(w io.Writer) {
		fmt.Fprintf(w, "image\t%s\nfile\t%s\n", found.Name, file)
	})
}

// unpackedBytes are those of all files, each name of a content counted.
func unpackedBytes(m *image.Manifest) uint64 {
	var sum uint64
	for _, e := range m.Entries {
		sum += e.Size
	}
	return sum
}
