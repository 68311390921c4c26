package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/export"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/tools/bootdisk"
)

// exported is the result of image export into a file.
type exported struct {
	Image  client.Image `json:"image"`
	Format string       `json:"format"`
	File   string       `json:"file"`
}

func (c *common) imageExport() *cobra.Command {
	var format, file string
	var disk bootable
	cmd := &cobra.Command{
		Use: "export NAME --file OUT", Short: "Write an image as a tar, an OCI image layout or a bootable disk (- is stdout)", Args: arguments(1, 1),
		Long: `Write an image as a tar of its files (--format tar), or as a tar of an OCI image
layout (--format oci, for podman load, docker load and skopeo oci-archive:). The
same image gives the same bytes. Extract a tar with
	tar --xattrs --xattrs-include='*' --numeric-owner -xpf OUT

--format raw and qcow2 make a disk that boots: the installer installs the image in
a virtual machine, which needs qemu-system-x86_64, the installer's initramfs and a
kernel for it, and takes minutes. --config DIR has files such as config.json and
storage-layout.json for that; without them the disk has one volume. The network
stays as the image has it, unless --network says that it becomes that of config.json.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case file == "":
				return &usageError{"give --file OUT; - is stdout"}
			case !slices.Contains([]string{"tar", "oci", "raw", "qcow2"}, format):
				return &usageError{fmt.Sprintf("--format is tar, oci, raw or qcow2, not %q", format)}
			case !slices.Contains([]string{"", firmwareBIOS, firmwareUEFI}, disk.firmware):
				return &usageError{fmt.Sprintf("--firmware is bios or uefi, not %q", disk.firmware)}
			case !slices.Contains([]string{"", "kvm", "tcg"}, disk.accel):
				return &usageError{fmt.Sprintf("--accel is kvm or tcg, not %q", disk.accel)}
			case file == "-" && terminal(c.out):
				return &usageError{"an image is no text; give --file OUT, or pipe it somewhere"}
			}
			return c.connected(cmd.Context(), func(ctx context.Context, connection *client.Client) error {
				if format == "raw" || format == "qcow2" {
					return c.exportDisk(ctx, connection, args[0], format, file, disk)
				}
				return c.export(ctx, connection, args[0], format, file)
			})
		},
	}
	cmd.Flags().StringVar(&format, "format", "tar", "`format`: tar, oci, raw or qcow2")
	cmd.Flags().StringVar(&file, "file", "", "`file` to write; - is stdout")
	cmd.Flags().StringVar(&disk.size, "size", "", "`size` of a disk, such as 8GiB (default: the image and some room)")
	cmd.Flags().StringVar(&disk.base, "base", "", "`file` that make initramfs built (default build/initramfs-amd64.cpio.zst)")
	cmd.Flags().StringVar(&disk.kernel, "kernel", "", "`directory` with vmlinuz and lib/modules for the installer (default build/kernel/amd64)")
	cmd.Flags().StringVar(&disk.config, "config", "", "`directory` of configuration files for the installation of a disk")
	cmd.Flags().StringVar(&disk.firmware, "firmware", "", "`firmware` that boots a disk: bios or uefi (default: what the image has a boot loader for, bios first)")
	cmd.Flags().StringVar(&disk.accel, "accel", "", "`way` in which QEMU runs the machine: kvm or tcg (default: kvm where it works)")
	cmd.Flags().BoolVar(&disk.network, "network", false, "write the network files of config.json into a disk, for the NIC of --mac")
	cmd.Flags().StringVar(&disk.mac, "mac", bootdisk.DefaultMAC, "`address` of the virtual machine's NIC, by which a disk with --network knows it")
	cmd.Flags().IntVar(&disk.memory, "memory", 2048, "`MiB` of memory that the machine has at least")
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
