package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/firstlight/firstlight/imageserver/catalog"
	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/ingest"
	"github.com/firstlight/firstlight/imageserver/object"
)

func (c *common) imageCommand() *cobra.Command {
	images := group("image", "Images on the image server")
	images.AddCommand(c.imageAdd(), c.imageList(), c.imageShow(), c.imageDiff(), c.imageGet(), c.imageExport(),
		c.imageVerify(), c.imagePromote(), c.imageExpire(), c.imageDelete(), c.imageGC())
	return images
}

// added is the result of image add.
type added struct {
	client.Image
	Existed       bool    `json:"existed"`
	SharedObjects uint64  `json:"sharedObjects"` // that the server had
	SharedBytes   uint64  `json:"sharedBytes"`   // unpacked
	NewObjects    uint64  `json:"newObjects"`
	NewBytes      uint64  `json:"newBytes"`    // unpacked
	PackedBytes   uint64  `json:"packedBytes"` // of the new objects, as they were sent
	Seconds       float64 `json:"seconds"`
	// Warnings say what the image lacks.
	Warnings []string `json:"warnings,omitempty"`
}

func (c *common) imageAdd() *cobra.Command {
	var arch, kernel string
	cmd := &cobra.Command{
		Use:   "add NAME SOURCE",
		Short: "Add an image from a tar, directory, container image, squashfs or disk image",
		Long: `Add an image. SOURCE is
	FILE                      a tar (plain, gz, xz, zst), a squashfs, or a disk image
	                          (raw, qcow2), whichever it is; - is a tar on stdin
	DIR                       a root file-system
	oci:DIR[:REF]             an OCI image layout, also a tar of one
	docker-archive:FILE[:TAG] what docker save wrote
A container image has no kernel; --kernel-image takes one, with its modules and
initrd, from another image of the server.

Only objects that the server lacks are sent. NAME is a path that ends with a
version, such as debian/12/2026-11-20.`,
		Args: arguments(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			result, err := c.addImage(cmd.Context(), args[0], args[1], kernel, ingest.Options{Arch: arch})
			if err != nil {
				return err
			}
			return c.print(result, func(w io.Writer) { printAdded(w, result) })
		},
	}
	cmd.Flags().StringVar(&arch, "arch", "", "`architecture` that the image must have: amd64, arm64 (default: what its programs say)")
	cmd.Flags().StringVar(&kernel, "kernel-image", "", "`name` of the image to take kernel, initrd and modules from")
	return cmd
}

func (c *common) addImage(ctx context.Context, name, source, kernel string, options ingest.Options) (result added, err error) {
	start := time.Now()
	if err := catalog.CheckName(name); err != nil { // before hashing for a minute
		return added{}, &usageError{err.Error()}
	}
	connection, err := c.dial(ctx)
	if err != nil {
		return added{}, err
	}
	defer func() { err = errors.Join(err, connection.Close()) }()
	input, err := openSource(c.in, source)
	if err != nil {
		return added{}, err
	}
	defer func() { err = errors.Join(err, input.close()) }()
	if kernel != "" {
		if _, options.Kernel, err = decoded(ctx, connection, kernel); err != nil {
			return added{}, err
		}
	}

	bar := c.startProgress("adding "+name, input.total)
	manifest, moved, err := ingestAndUpload(ctx, connection, bar, func(ctx context.Context, sink ingest.Sink) (*image.Manifest, error) {
		return input.read(ctx, bar, sink, options)
	})
	bar.end(err == nil)
	if err != nil {
		return added{}, fmt.Errorf("adding %s: %w", source, err)
	}
	raw, err := image.Encode(manifest)
	if err != nil {
		return added{}, err
	}
	one, existed, err := connection.AddImage(ctx, name, raw)
	if err != nil {
		return added{}, err
	}
	warnings := lacks(manifest)
	for _, text := range warnings {
		fmt.Fprintln(c.err, "warning:", text)
	}
	return added{
		Warnings: warnings,
		Image:    one, Existed: existed,
		SharedObjects: moved.sharedObjects.Load(), SharedBytes: moved.sharedBytes.Load(),
		NewObjects: moved.newObjects.Load(), NewBytes: moved.newBytes.Load(), PackedBytes: moved.packedBytes.Load(),
		Seconds: time.Since(start).Seconds(),
	}, nil
}

// lacks says what an image lacks to become a machine, and what to do.
func lacks(m *image.Manifest) []string {
	var warnings []string
	switch {
	case m.Attributes[image.AttrKernel] == "":
		warnings = append(warnings, "the image has no kernel, so no machine can boot it; add it again with --kernel-image NAME, an image of the server that has one, or install one into the source")
	case m.Attributes[image.AttrInitrd] == "":
		warnings = append(warnings, "the image has a kernel, but no initrd for it; make one in the source (update-initramfs -c -k all, dracut --regenerate-all)")
	}
	if strings.Contains(m.Attributes[image.AttrPackageDatabase], "not read") {
		warnings = append(warnings, "the image's rpm database is none in SQLite, so its packages are not known; everything else works")
	}
	return warnings
}

// source is where an image comes from.
type source struct {
	ingest.Source
	reader io.Reader // of a tar
	total  int64     // bytes of a tar; 0 where it is not known
	close  func() error
}

func openSource(stdin io.Reader, name string) (source, error) {
	parsed, err := ingest.ParseSource(name)
	nothing := func() error { return nil }
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return source{}, &usageError{err.Error()}
	case err != nil:
		return source{}, err
	case parsed.Path == "-":
		return source{Source: parsed, reader: stdin, close: nothing}, nil
	case parsed.Kind != ingest.KindTar:
		return source{Source: parsed, close: nothing}, nil
	}
	file, err := os.Open(parsed.Path)
	if err != nil {
		return source{}, err
	}
	info, err := file.Stat()
	if err != nil {
		return source{}, errors.Join(err, file.Close())
	}
	return source{Source: parsed, reader: file, total: info.Size(), close: file.Close}, nil
}

// read turns the source into a manifest.
func (s source) read(ctx context.Context, bar *progress, sink ingest.Sink, options ingest.Options) (*image.Manifest, error) {
	switch s.Kind {
	case ingest.KindDirectory:
		return ingest.Directory(ctx, s.Path, sink, options)
	case ingest.KindOCI:
		return ingest.OCI(ctx, s.Path, s.Ref, sink, options)
	case ingest.KindDockerArchive:
		return ingest.DockerArchive(ctx, s.Path, s.Ref, sink, options)
	case ingest.KindSquashfs:
		return ingest.Squashfs(ctx, s.Path, sink, options)
	case ingest.KindDisk:
		return ingest.Disk(ctx, s.Path, sink, options)
	}
	return ingest.Tar(ctx, bar.reader(s.reader), sink, options)
}

func printAdded(w io.Writer, a added) {
	line := func(label, format string, args ...any) { fmt.Fprintf(w, label+"\t"+format+"\n", args...) }
	line("image", "%s", a.Name)
	line("digest", "%s", a.Digest)
	printAttributes(w, a.Attributes)
	line("size", "%s in %d files, %d inodes", size(a.Bytes), a.Objects, a.Inodes)
	line("new", "%s in %d files, sent as %s", size(a.NewBytes), a.NewObjects, size(a.PackedBytes))
	line("shared", "%s in %d files were on the server", size(a.SharedBytes), a.SharedObjects)
	state := "added"
	if a.Existed {
		state = "the same image had this name already"
	}
	line("state", "%s, after %.1f s", state, a.Seconds)
}

// printAttributes shows what was found in an image.
func printAttributes(w io.Writer, attributes map[string]string) {
	shown := map[string]bool{}
	for _, one := range []struct{ label, key string }{
		{"system", image.AttrOSName}, {"arch", image.AttrArch}, {"kernel", image.AttrKernel}, {"initrd", image.AttrInitrd},
		{"boot loaders", image.AttrBootloaders}, {"network", image.AttrNetwork}, {"initramfs", image.AttrInitramfs},
		{"unlock", image.AttrUnlock}, {"cryptsetup", image.AttrCryptsetup}, {"file-systems", image.AttrFileSystems},
	} {
		value := attributes[one.key]
		shown[one.key] = true
		if value == "" {
			value = "none found"
		}
		fmt.Fprintf(w, "%s\t%s\n", one.label, value)
		if one.key == image.AttrUnlock {
			fmt.Fprintf(w, "TPM\t%s\n", tpmText(attributes))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(attributes)) {
		if !shown[key] {
			fmt.Fprintf(w, "%s\t%s\n", key, attributes[key])
		}
	}
}

// tpmText says whether an initramfs of the image can open volumes by TPM.
func tpmText(attributes map[string]string) string {
	if slices.Contains(strings.Split(attributes[image.AttrUnlock], ","), "tpm2") {
		return "its initramfs can open encrypted volumes by TPM 2.0"
	}
	return "its initramfs cannot open encrypted volumes by TPM"
}

func (c *common) imageList() *cobra.Command {
	return &cobra.Command{
		Use: "list [PREFIX]", Short: "List images, or those below a name", Args: arguments(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			prefix := ""
			if len(args) == 1 {
				prefix = args[0]
			}
			return c.connected(cmd.Context(), func(ctx context.Context, connection *client.Client) error {
				images, err := connection.List(ctx, prefix)
				if err != nil {
					return err
				}
				if images == nil {
					images = []client.Image{} // "[]", not "null"
				}
				return c.print(images, func(w io.Writer) {
					fmt.Fprintln(w, "NAME\tSYSTEM\tARCH\tSIZE\tFILES\tADDED\tEXPIRES\tALIASES")
					for _, one := range images {
						fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", one.Name, one.Attributes[image.AttrOSName], one.Attributes[image.AttrArch],
							size(one.Bytes), one.Inodes, one.Added.Format(time.DateTime), expiryText(one.Expires), strings.Join(one.Aliases, " "))
					}
				})
			})
		},
	}
}

// shown is the result of image show.
type shown struct {
	client.Image
	StoredBytes   uint64 `json:"storedBytes"`   // of its objects on the server
	ManifestBytes int    `json:"manifestBytes"` // unpacked
}

func (c *common) imageShow() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show an image, or the newest of a stream", Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.connected(cmd.Context(), func(ctx context.Context, connection *client.Client) error {
				found, err := connection.Manifest(ctx, args[0])
				if err != nil {
					return err
				}
				result := shown{Image: found.Image, ManifestBytes: len(found.Raw)}
				for _, stored := range found.Stored {
					result.StoredBytes += stored
				}
				return c.print(result, func(w io.Writer) {
					fmt.Fprintf(w, "image\t%s\n", found.Name)
					fmt.Fprintf(w, "digest\t%s\n", found.Digest)
					fmt.Fprintf(w, "added\t%s%s\n", found.Added.Format(time.DateTime), by(found.AddedBy))
					fmt.Fprintf(w, "expires\t%s\n", expiryText(found.Expires))
					if len(found.Aliases) > 0 {
						fmt.Fprintf(w, "aliases\t%s\n", strings.Join(found.Aliases, " "))
					}
					printAttributes(w, found.Attributes)
					fmt.Fprintf(w, "size\t%s in %d files, %d inodes\n", size(found.Bytes), found.Objects, found.Inodes)
					fmt.Fprintf(w, "stored\t%s, manifest %s\n", size(result.StoredBytes), size(uint64(result.ManifestBytes)))
				})
			})
		},
	}
}

func by(name string) string {
	if name == "" {
		return ""
	}
	return " by " + name
}

func (c *common) imageGet() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use: "get NAME [PATH]", Short: "Get one file of an image, or without PATH its manifest",
		Args: arguments(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && out == "-" && terminal(c.out) {
				return &usageError{"a manifest is no text; give --out FILE"}
			}
			return c.connected(cmd.Context(), func(ctx context.Context, connection *client.Client) error {
				found, err := connection.Manifest(ctx, args[0])
				if err != nil {
					return err
				}
				return writeOut(c.out, out, func(w io.Writer) error {
					if len(args) == 1 {
						_, err := w.Write(found.Raw)
						return err
					}
					return copyFile(ctx, connection, found, args[1], w)
				})
			})
		},
	}
	cmd.Flags().StringVar(&out, "out", "-", "`file` to write; - is stdout")
	return cmd
}

// notFoundError is a path that an image does not have.
type notFoundError struct{ text string }

func (e *notFoundError) Error() string { return e.text }

// Code is that of an image that is not there.
func (e *notFoundError) Code() string { return client.CodeNoImage }

// copyFile writes the content of one file of an image.
func copyFile(ctx context.Context, getter object.Getter, found client.Found, name string, w io.Writer) error {
	manifest, err := image.Decode(found.Raw)
	if err != nil {
		return fmt.Errorf("image %s: %w", found.Name, err)
	}
	entry, ok := manifest.Resolve(path.Clean("./" + name))
	switch {
	case !ok:
		return &notFoundError{fmt.Sprintf("image %s has no file %s", found.Name, name)}
	case entry.Type != image.File:
		return &usageError{fmt.Sprintf("%s of image %s is no regular file", name, found.Name)}
	case entry.Size == 0:
		return nil
	}
	content, err := getter.Open(ctx, entry.Digest)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, content)
	return errors.Join(err, content.Close())
}

// writeOut writes to stdout, or to a file that is there whole or not at all.
func writeOut(stdout io.Writer, name string, write func(io.Writer) error) (err error) {
	if name == "-" {
		return write(stdout)
	}
	temporary, err := os.CreateTemp(filepath.Dir(name), ".firstlight-*")
	if err != nil {
		return err
	}
	if err = write(temporary); err == nil {
		err = temporary.Chmod(0o644)
	}
	if err == nil {
		err = temporary.Sync()
	}
	if err = errors.Join(err, temporary.Close()); err == nil {
		err = os.Rename(temporary.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temporary.Name()))
	}
	return nil
}

// connected runs f with a connection to the image server.
func (c *common) connected(ctx context.Context, f func(context.Context, *client.Client) error) (err error) {
	connection, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, connection.Close()) }()
	return f(ctx, connection)
}
