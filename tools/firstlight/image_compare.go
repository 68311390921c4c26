package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/firstlight/firstlight/imageserver/catalog"
	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
)

// compared is the result of image diff.
type compared struct {
	Old           string          `json:"old"`
	New           string          `json:"new"`
	PackagesKnown bool            `json:"packagesKnown"` // both lists are there
	Packages      []packageChange `json:"packages"`
	Added         []string        `json:"addedFiles"`
	Removed       []string        `json:"removedFiles"`
	Changed       []fileChange    `json:"changedFiles"`
	FetchObjects  uint64          `json:"fetchObjects"` // that only the new one has
	FetchBytes    uint64          `json:"fetchBytes"`   // unpacked
	FetchStored   uint64          `json:"fetchStoredBytes"`
}

type packageChange struct {
	Name string `json:"name"`
	Arch string `json:"arch"`
	Old  string `json:"old,omitempty"`
	New  string `json:"new,omitempty"`
}

type fileChange struct {
	Path string   `json:"path"`
	What []string `json:"what"` // type, content, mode, owner, time, target, device, xattrs
}

func (c *common) imageDiff() *cobra.Command {
	var files bool
	cmd := &cobra.Command{
		Use: "diff OLD NEW", Short: "Compare two images: packages, files, bytes to fetch", Args: arguments(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.connected(cmd.Context(), func(ctx context.Context, connection *client.Client) error {
				result, err := compare(ctx, connection, args[0], args[1])
				if err != nil {
					return err
				}
				return c.print(result, func(w io.Writer) { printCompared(w, result, files) })
			})
		},
	}
	cmd.Flags().BoolVar(&files, "files", false, "list the files too (JSON always does)")
	return cmd
}

func compare(ctx context.Context, connection *client.Client, from, to string) (compared, error) {
	before, a, err := decoded(ctx, connection, from)
	if err != nil {
		return compared{}, err
	}
	after, b, err := decoded(ctx, connection, to)
	if err != nil {
		return compared{}, err
	}
	result := compared{Old: before.Name, New: after.Name, Packages: []packageChange{}, Added: []string{}, Removed: []string{}, Changed: []fileChange{}}
	for _, change := range image.Diff(a, b) {
		switch {
		case change.Old == nil:
			result.Added = append(result.Added, change.Path)
		case change.New == nil:
			result.Removed = append(result.Removed, change.Path)
		default:
			result.Changed = append(result.Changed, fileChange{change.Path, change.What})
		}
	}
	have := make(map[object.Digest]bool)
	for _, o := range a.Objects() {
		have[o.Digest] = true
	}
	for _, o := range b.Objects() {
		if !have[o.Digest] {
			result.FetchObjects++
			result.FetchBytes += o.Size
			result.FetchStored += after.Stored[o.Digest]
		}
	}
	old, knownOld, err := packages(ctx, connection, a)
	if err != nil {
		return compared{}, err
	}
	now, knownNow, err := packages(ctx, connection, b)
	if err != nil {
		return compared{}, err
	}
	if result.PackagesKnown = knownOld && knownNow; result.PackagesKnown {
		for _, p := range image.DiffPackages(old, now) {
			result.Packages = append(result.Packages, packageChange(p))
		}
	}
	return result, nil
}

func decoded(ctx context.Context, connection *client.Client, name string) (client.Found, *image.Manifest, error) {
	found, err := connection.Manifest(ctx, name)
	if err != nil {
		return found, nil, err
	}
	manifest, err := image.Decode(found.Raw)
	if err != nil {
		return found, nil, fmt.Errorf("image %s: %w", found.Name, err)
	}
	return found, manifest, nil
}

// maxPackageList bounds what is read of a package list, in bytes.
const maxPackageList = 64 << 20

// packages are those of an image; false where nobody knows: its package database
// is of an unknown kind, or an older version added the image.
func packages(ctx context.Context, connection *client.Client, m *image.Manifest) (_ []image.Package, known bool, err error) {
	digest, err := object.ParseDigest(m.Attributes[image.AttrPackages])
	if err != nil {
		return nil, false, nil
	}
	r, err := connection.Open(ctx, digest)
	if isCode(err, client.CodeNoObject) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	list, err := io.ReadAll(io.LimitReader(r, maxPackageList))
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, false, err
	}
	return image.ParsePackages(list), true, nil
}

func isCode(err error, codes ...string) bool {
	var coded interface{ Code() string }
	return errors.As(err, &coded) && slices.Contains(codes, coded.Code())
}

func printCompared(w io.Writer, d compared, files bool) {
	fmt.Fprintf(w, "old\t%s\nnew\t%s\n", d.Old, d.New)
	var added, removed, changed int
	for _, p := range d.Packages {
		switch {
		case p.Old == "":
			added++
			fmt.Fprintf(w, "+ package\t%s %s\t%s\n", p.Name, p.Arch, p.New)
		case p.New == "":
			removed++
			fmt.Fprintf(w, "- package\t%s %s\t%s\n", p.Name, p.Arch, p.Old)
		default:
			changed++
			fmt.Fprintf(w, "~ package\t%s %s\t%s → %s\n", p.Name, p.Arch, p.Old, p.New)
		}
	}
	if files {
		for _, path := range d.Added {
			fmt.Fprintf(w, "+ file\t%s\n", safe(path))
		}
		for _, path := range d.Removed {
			fmt.Fprintf(w, "- file\t%s\n", safe(path))
		}
		for _, f := range d.Changed {
			fmt.Fprintf(w, "~ file\t%s\t%s\n", safe(f.Path), strings.Join(f.What, ", "))
		}
	}
	if d.PackagesKnown {
		fmt.Fprintf(w, "packages\t%d added, %d removed, %d changed\n", added, removed, changed)
	} else {
		fmt.Fprintf(w, "packages\tnot known of both images\n")
	}
	fmt.Fprintf(w, "files\t%d added, %d removed, %d changed\n", len(d.Added), len(d.Removed), len(d.Changed))
	fmt.Fprintf(w, "to fetch\t%s in %d files, %s unpacked\n", size(d.FetchStored), d.FetchObjects, size(d.FetchBytes))
}

// safe is a path without what would upset a terminal.
func safe(path string) string {
	if quoted := fmt.Sprintf("%q", path); len(quoted) != len(path)+2 {
		return quoted
	}
	return path
}

// verified is the result of image verify.
type verified struct {
	Image   client.Image `json:"image"`
	Objects uint64       `json:"objects"` // that were fetched and are right
	Bytes   uint64       `json:"bytes"`   // of them, unpacked
	Bad     []badObject  `json:"bad"`
}

type badObject struct {
	Digest object.Digest `json:"digest"`
	State  string        `json:"state"` // damaged or missing
	Paths  []string      `json:"paths"`
	Reason string        `json:"reason"`
}

func (c *common) imageVerify() *cobra.Command {
	return &cobra.Command{
		Use: "verify NAME", Short: "Fetch and hash everything an image needs", Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.connected(cmd.Context(), func(ctx context.Context, connection *client.Client) error {
				result, err := c.verify(ctx, connection, args[0])
				if err != nil {
					return err
				}
				err = c.print(result, func(w io.Writer) {
					for _, bad := range result.Bad {
						fmt.Fprintf(w, "%s\t%s\t%s\n", bad.State, bad.Digest, safe(strings.Join(bad.Paths, " ")))
					}
					fmt.Fprintf(w, "image\t%s\nright\t%d files, %s\nbad\t%d files\n", result.Image.Name, result.Objects, size(result.Bytes), len(result.Bad))
				})
				if err == nil && len(result.Bad) > 0 {
					err = fmt.Errorf("image %s: %d of %d files: %w", result.Image.Name, len(result.Bad), result.Objects+uint64(len(result.Bad)), object.ErrDamaged)
				}
				return err
			})
		},
	}
}

// verifyBatch is how many objects are asked for at once: one bad one ends the
// call, and the rest must be asked for again.
const verifyBatch = 512

func (c *common) verify(ctx context.Context, connection *client.Client, name string) (result verified, err error) {
	found, manifest, err := decoded(ctx, connection, name)
	if err != nil {
		return result, err
	}
	result = verified{Image: found.Image, Bad: []badObject{}}
	paths := make(map[object.Digest][]string)
	for _, e := range manifest.Entries {
		if e.Size > 0 {
			paths[e.Digest] = append(paths[e.Digest], e.Path)
		}
	}
	var wanted []object.Digest
	for _, digest := range catalog.References(found.Digest, manifest) {
		if digest == found.Digest {
			continue // it has just been verified
		}
		if len(paths[digest]) == 0 {
			// The list of packages: images of older versions have none.
			have, err := connection.Have(ctx, []object.Digest{digest})
			if err != nil {
				return result, err
			}
			if !have[0] {
				continue
			}
			paths[digest] = []string{"(list of packages)"}
		}
		wanted = append(wanted, digest)
	}
	bar := c.startProgress("verifying "+found.Name, 0)
	defer func() { bar.end(err == nil) }()
	for ; len(wanted) > 0; wanted = wanted[min(verifyBatch, len(wanted)):] {
		if err := verifyObjects(ctx, connection, wanted[:min(verifyBatch, len(wanted))], paths, bar, &result); err != nil {
			return result, err
		}
	}
	return result, nil
}

// verifyObjects verifies a batch; where the server ends the call because one is
// bad, it halves what is left until that one is found.
func verifyObjects(ctx context.Context, connection *client.Client, wanted []object.Digest, paths map[object.Digest][]string, bar *progress, result *verified) error {
	right := make(map[object.Digest]bool)
	verifiers := make(map[object.Digest]*zstd.Verifier)
	var bad []badObject
	note := func(digest object.Digest, state string, err error) {
		bad = append(bad, badObject{digest, state, paths[digest], err.Error()})
		right[digest] = true // there is nothing more to find out
	}
	err := connection.Fetch(ctx, wanted, func(piece object.Piece) error {
		if right[piece.Digest] {
			return nil // and wrong already
		}
		verifier := verifiers[piece.Digest]
		if verifier == nil {
			verifier = zstd.NewVerifier(piece.Info)
			verifiers[piece.Digest] = verifier
		}
		_, err := verifier.Write(piece.Data)
		if err == nil && !piece.Last() {
			return nil
		}
		delete(verifiers, piece.Digest)
		if err = errors.Join(err, verifier.Close()); err != nil {
			note(piece.Digest, "damaged", err)
			return nil
		}
		right[piece.Digest] = true
		result.Objects++
		result.Bytes += piece.Size
		bar.objects(1, piece.StoredSize)
		return nil
	})
	for _, verifier := range verifiers {
		// The verdict on half an object says nothing.
		_ = verifier.Close()
	}
	result.Bad = append(result.Bad, bad...)
	if err == nil {
		return nil
	}
	if !isCode(err, client.CodeDamaged, client.CodeNoObject) {
		return err
	}
	left := slices.DeleteFunc(slices.Clone(wanted), func(d object.Digest) bool { return right[d] })
	if len(left) == 1 {
		state := "damaged"
		if isCode(err, client.CodeNoObject) {
			state = "missing"
		}
		result.Bad = append(result.Bad, badObject{left[0], state, paths[left[0]], err.Error()})
		return nil
	}
	half := len(left) / 2
	if err := verifyObjects(ctx, connection, left[:half], paths, bar, result); err != nil {
		return err
	}
	return verifyObjects(ctx, connection, left[half:], paths, bar, result)
}
