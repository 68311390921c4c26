package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/installer/stage"
)

// scanPart compares the search of an old tree with a bare loop.
func scanPart(ctx context.Context, g *ground) ([]row, error) {
	tree, err := g.tree(ctx)
	if err != nil {
		return nil, err
	}
	sizes := g.path("sizes")
	wanted, err := writeSizes(sizes, tree)
	if err != nil {
		return nil, err
	}
	p, err := beside(g.runs,
		func() (cost, error) { return g.task(ctx, "scan", tree, sizes) },
		func() (cost, error) { return g.task(ctx, "loop", tree, sizes) })
	if err != nil {
		return nil, err
	}
	return []row{p.row(fmt.Sprintf("search of a warm tree for %d sizes, CPU", wanted), "bare loop", cpuOf, 1.15)}, nil
}

// writeSizes writes the sizes of every second file, one a line.
func writeSizes(file, tree string) (int, error) {
	sizes := map[int64]bool{}
	odd := false
	err := filepath.WalkDir(tree, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		i, err := d.Info()
		if odd = !odd; err == nil && odd && i.Size() > 0 {
			sizes[i.Size()] = true
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	out, err := os.Create(file)
	if err != nil {
		return 0, err
	}
	for size := range sizes {
		fmt.Fprintln(out, size)
	}
	return len(sizes), out.Close()
}

func readSizes(file string) (sizes []uint64, err error) {
	in, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer in.Close() // only read from
	for lines := bufio.NewScanner(in); lines.Scan(); {
		size, err := strconv.ParseUint(lines.Text(), 10, 64)
		if err != nil {
			return nil, err
		}
		sizes = append(sizes, size)
	}
	return sizes, nil
}

// errSearched ends a search before anything is fetched.
var errSearched = errors.New("searched")

type nothing struct{}

func (nothing) Fetch(context.Context, []object.Digest, func(object.Piece) error) error {
	return &searched{}
}

// searched has a code that no stage.Run tries again after.
type searched struct{}

func (*searched) Error() string { return errSearched.Error() }
func (*searched) Code() string  { return "TRU-001" }
func (*searched) Unwrap() error { return errSearched }

// scan lets the installer look for objects of these sizes in tree, two of each:
// of a single one it would take a large file of that size for it, and pack it
// while it reads. None of them is there, so that searching is all that it does.
func scan(ctx context.Context, tree, file string) error {
	sizes, err := readSizes(file)
	if err != nil {
		return err
	}
	var need []image.Object
	for _, size := range sizes {
		for _, other := range []string{"a", "b"} {
			need = append(need, image.Object{Digest: object.Of(strconv.AppendUint([]byte(other), size, 10)), Size: size})
		}
	}
	packed, err := os.CreateTemp(filepath.Dir(file), "pack-")
	if err != nil {
		return err
	}
	defer os.Remove(packed.Name())
	defer packed.Close()
	_, err = stage.Run(ctx, []stage.Fetcher{nothing{}}, packed, need, stage.Options{
		Trees: []stage.Tree{{Name: tree, Source: stage.FromOldOS, FS: os.DirFS(tree)}},
	})
	if !errors.Is(err, errSearched) {
		return fmt.Errorf("the search ended with %w", err)
	}
	return nil
}

// bareLoop reads and hashes the same files.
func bareLoop(tree, file string) error {
	sizes, err := readSizes(file)
	if err != nil {
		return err
	}
	wanted := map[uint64]bool{}
	for _, size := range sizes {
		wanted[size] = true
	}
	buffer := make([]byte, 1<<20)
	digests := map[[sha256.Size]byte]int{}
	return filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil || !wanted[uint64(info.Size())] {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close() // only read from
		hash := sha256.New()
		if _, err := io.CopyBuffer(struct{ io.Writer }{hash}, struct{ io.Reader }{f}, buffer); err != nil {
			return err
		}
		digests[[sha256.Size]byte(hash.Sum(nil))]++
		return nil
	})
}
