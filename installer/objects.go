package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/pack"
	"github.com/firstlight/firstlight/installer/plan"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/stage"
	"github.com/firstlight/firstlight/installer/target"
	"github.com/firstlight/firstlight/installer/unpack"
	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/mount"
)

// stageObjects gathers every object that the installation will write, so that
// nothing can be missing once a disk has been touched. Where memory is low it
// gathers what fits, and makes sure that the image server has the rest.
func (i *installation) stageObjects(ctx context.Context) error {
	if i.opt.skipStorage && i.plan.Tools == nil {
		return skip{"-skipStorage: no image is written"}
	}
	directory := filepath.Join(i.runDir, "stage")
	if err := i.mountTmpfs(directory, max(i.plan.StageBytes, leastStage)); err != nil {
		return err
	}
	if i.plan.LowMemory {
		// The collector shall rather work than let the heap grow to twice what
		// is in use: other programs need the rest of what the plan reckons with.
		debug.SetMemoryLimit(heapWhenLow + int64(len(i.image.Manifest.Entries))<<10)
	}
	must, may := i.image.Manifest.Objects(), []image.Object(nil)
	switch {
	case i.plan.LowMemory && i.plan.Tools == nil:
		must, may = nil, must
	case i.plan.LowMemory:
		must, may = i.toolsImage().Manifest.Objects(), must
	case i.image.Tools != nil:
		must = unionOfObjects(must, i.image.Tools.Manifest.Objects())
	}
	var old []stage.Tree
	if !i.opt.skipStorage {
		var leave func()
		old, leave = i.oldSystem(ctx)
		defer leave()
	}
	var missing []image.Object
	var err error
	i.objects, missing, err = i.stage(ctx, progress.Stage, filepath.Join(directory, "pack"), must, may, old, max(i.plan.StageBytes, 1))
	if err != nil || len(missing) == 0 {
		return err
	}
	return i.assureRest(ctx, missing)
}

// heapWhenLow is what this program may take for itself where memory is low, in
// bytes, besides the manifest.
const heapWhenLow = 128 << 20

// leastStage is a tmpfs in which nothing but the beginning of a pack has room.
const leastStage = 64 << 10

// assureRest makes sure, before a disk is touched, that an image server has what
// will be fetched when there is no way back.
func (i *installation) assureRest(ctx context.Context, missing []image.Object) error {
	var digests []object.Digest
	var bytes uint64
	carried := i.carriedObjects()
	for _, o := range missing {
		if carried != nil && carried.Has(o.Digest) {
			continue // the medium stays where it is
		}
		digests = append(digests, o.Digest)
		bytes += o.Size
	}
	if len(digests) == 0 {
		return nil
	}
	have, err := i.servers.have(ctx, digests)
	if err != nil {
		return err
	}
	for n, has := range have {
		if !has {
			return i.nameFile(stage.Missing(digests[n]))
		}
	}
	i.model.Logf(progress.Stage, "%d objects, %s, will be fetched after the disks have been erased; the image server has them", len(missing), storage.Bytes(bytes))
	return nil
}

// stage gathers in a new file the objects must, from the booted root, from old
// file systems and from the image servers, and what it finds and has room for of
// may; missing is the rest of that. It reports as phase. limit is the most
// bytes they may take, 0 for no limit.
func (i *installation) stage(ctx context.Context, phase progress.Phase, name string, must, may []image.Object, old []stage.Tree, limit uint64) (held *pack.Reader, missing []image.Object, err error) {
	file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, nil, err
	}
	i.opened.push("the staged objects", file.Close)
	i.freePack = func() error { return file.Truncate(0) }
	i.model.Logf(phase, "gathering %d objects, %s", len(must)+len(may), storage.Bytes(sizeOf(must)+sizeOf(may)))
	options := i.stageOptions(phase, sizeOf(must)+sizeOf(may))
	options.Trees = append([]stage.Tree{stage.BootedRoot(os.DirFS("/"))}, old...)
	options.Limit, options.Medium = limit, i.carriedObjects()
	held, missing, err = stage.Partly(ctx, i.servers.fetchers(), file, must, may, options)
	if err != nil {
		return nil, nil, i.nameFile(err)
	}
	i.logSources(phase)
	return held, missing, nil
}

// stageOptions reports to the model, as phase, how far it is with total bytes.
func (i *installation) stageOptions(phase progress.Phase, total uint64) stage.Options {
	var done uint64
	return stage.Options{
		Patience: i.opt.imageServerPatience,
		Report: func(source stage.Source, objects, bytes uint64) {
			done += bytes
			i.model.Objects(progress.Source(source), objects, bytes)
			if phase != progress.Unpack { // which tells what is written, rather
				i.model.Update(phase, done, total)
			}
		},
		Wait: func(reason string, next time.Time) { i.model.WaitUntil(phase, reason, next) },
		Log:  func(text string) { i.model.Log(phase, text) },
	}
}

func (i *installation) logSources(phase progress.Phase) {
	for _, source := range i.model.Snapshot().Objects {
		i.model.Logf(phase, "from %s: %d objects, %s", source.Source, source.Objects, storage.Bytes(source.Bytes))
	}
}

// bringRest delivers the image while it is written, where memory is low: what is
// staged, and the rest from the image servers.
func (i *installation) bringRest(ctx context.Context, objects []image.Object, to *unpack.Writer) error {
	options := i.stageOptions(progress.Unpack, 0)
	options.Held, options.Medium = i.objects, i.carriedObjects()
	return i.nameFile(stage.Stream(ctx, i.servers.fetchers(), to, objects, options))
}

func sizeOf(objects []image.Object) uint64 {
	var total uint64
	for _, o := range objects {
		total += o.Size
	}
	return total
}

// nameFile adds to an error about an object the first file that it is the
// content of: a person knows files, not digests.
func (i *installation) nameFile(err error) error {
	var about *stage.Error
	if !errors.As(err, &about) || about.Object == (object.Digest{}) {
		return err
	}
	images := []*image.Manifest{i.image.Manifest}
	if i.image.Tools != nil {
		images = append(images, i.image.Tools.Manifest)
	}
	for _, m := range images {
		if m == nil {
			continue
		}
		for _, e := range m.Entries {
			if e.Type == image.File && e.Size > 0 && e.Digest == about.Object {
				return fmt.Errorf("the content of /%s: %w", e.Path, err)
			}
		}
	}
	return err
}

// unionOfObjects is a, and what b has besides.
func unionOfObjects(a, b []image.Object) []image.Object {
	seen := map[object.Digest]bool{}
	var union []image.Object
	for _, objects := range [][]image.Object{a, b} {
		for _, o := range objects {
			if !seen[o.Digest] {
				seen[o.Digest] = true
				union = append(union, o)
			}
		}
	}
	return union
}

// mountTmpfs mounts a tmpfs of its own at directory until the installation
// ends; its size is bounded, so that a mistake in a plan cannot take the
// machine's last memory (tmpfs(5)).
func (i *installation) mountTmpfs(directory string, bytes uint64) error {
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return err
	}
	var mounts mount.Stack
	if err := mounts.Mount("tmpfs", directory, "tmpfs", unix.MS_NODEV, fmt.Sprintf("size=%d,mode=0700", bytes)); err != nil {
		return err
	}
	i.opened.push(directory, mounts.Close)
	return nil
}

// unpackTo writes an image below a plain directory.
func (i *installation) unpackTo(ctx context.Context, phase progress.Phase, directory string, m *image.Manifest, objects object.Getter) error {
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(directory)
	if err != nil {
		return err
	}
	defer root.Close()
	return unpack.Run(ctx, objects, root, m, unpack.Options{
		Report: func(done, total uint64) { i.model.Update(phase, done, total) },
	})
}

// unpackForChroot fetches an image, unpacks it into directory and mounts what
// a program in it expects.
func (i *installation) unpackForChroot(ctx context.Context, found plan.Image, directory string) error {
	objects, _, err := i.stage(ctx, progress.Stage, filepath.Join(i.runDir, "pack"), found.Manifest.Objects(), nil, nil, 0)
	if err != nil {
		return err
	}
	if err := i.unpackTo(ctx, progress.Unpack, directory, found.Manifest, objects); err != nil {
		return err
	}
	i.model.Logf(progress.Unpack, "%s is in %s", found.Name, directory)
	var mounts mount.Stack // they stay
	return mounts.System(directory, "/dev", "/proc", "/sys", "/tmp")
}

// loadKernelOf fetches an image's kernel and initrd and loads them, with the
// running kernel's command line.
func (i *installation) loadKernelOf(ctx context.Context, found plan.Image) error {
	kernel, err := i.fetchFile(ctx, found, image.AttrKernel)
	if err != nil {
		return err
	}
	defer kernel.Close()
	initrd, err := i.fetchFile(ctx, found, image.AttrInitrd)
	if err != nil {
		return err
	}
	defer initrd.Close()
	i.model.Logf(progress.Boot, "starting the kernel of %s", found.Name)
	return i.env.loadNext(kernel, initrd, strings.Join(i.opt.kernel.forNextKernel(), " "))
}

// fetchFile fetches the file that one of the image's attributes names.
func (i *installation) fetchFile(ctx context.Context, found plan.Image, attribute string) (*os.File, error) {
	name := found.Manifest.Attributes[attribute]
	if name == "" {
		return nil, refuse("BOO-045", "the image %s has no %s", found.Name, attribute)
	}
	entry, ok := found.Manifest.Resolve(name)
	if !ok {
		return nil, refuse("BOO-045", "the image %s has no file %s", found.Name, name)
	}
	content, err := i.servers.open(ctx, entry.Digest)
	if err != nil {
		return nil, err
	}
	defer content.Close()
	file, err := os.CreateTemp(i.runDir, filepath.Base(target.Name(name))+"-")
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(file, content)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("fetching %s: %w", name, err)
	}
	// Anew, and only to read: kexec_file_load(2) takes no file that is open for
	// writing (ETXTBSY).
	return os.Open(file.Name())
}
