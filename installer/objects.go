package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/installer/plan"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/stage"
	"github.com/firstlight/firstlight/installer/target"
	"github.com/firstlight/firstlight/installer/unpack"
	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/mount"
)

// stageObjects gathers every object that the installation will write, so that
// nothing can be missing once a disk has been touched.
func (i *installation) stageObjects(ctx context.Context) error {
	if i.opt.skipStorage && i.plan.Tools == nil {
		return skip{"-skipStorage: no image is written"}
	}
	directory := filepath.Join(i.runDir, "stage")
	if err := i.mountTmpfs(directory, i.plan.StageBytes); err != nil {
		return err
	}
	need := i.image.Manifest.Objects()
	if i.image.Tools != nil {
		need = unionOfObjects(need, i.image.Tools.Manifest.Objects())
	}
	var old []stage.Tree
	if !i.opt.skipStorage {
		var leave func()
		old, leave = i.oldSystem(ctx)
		defer leave()
	}
	var err error
	i.objects, err = i.stage(ctx, progress.Stage, filepath.Join(directory, "pack"), need, old, i.plan.StageBytes)
	return err
}

// stage gathers the objects need in a new file, from the booted root, from old
// file systems, then from the server, and reports as phase. limit is the most
// bytes they may take, 0 for no limit.
func (i *installation) stage(ctx context.Context, phase progress.Phase, name string, need []image.Object, old []stage.Tree, limit uint64) (object.Getter, error) {
	file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	i.opened.push("the staged objects", file.Close)
	i.freePack = func() error { return file.Truncate(0) }
	var total, done uint64
	for _, o := range need {
		total += o.Size
	}
	i.model.Logf(phase, "gathering %d objects, %s", len(need), storage.Bytes(total))
	objects, err := stage.Run(ctx, []stage.Fetcher{i.server}, file, need, stage.Options{
		Trees: append([]stage.Tree{stage.BootedRoot(os.DirFS("/"))}, old...),
		Limit: limit, Patience: i.opt.imageServerPatience,
		Report: func(source stage.Source, objects, bytes uint64) {
			done += bytes
			i.model.Objects(progress.Source(source), objects, bytes)
			i.model.Update(phase, done, total)
		},
		Wait: func(reason string) { i.model.Wait(phase, reason) },
		Log:  func(text string) { i.model.Log(phase, text) },
	})
	if err != nil {
		return nil, i.nameFile(err)
	}
	for _, source := range i.model.Snapshot().Objects {
		i.model.Logf(phase, "from %s: %d objects, %s", source.Source, source.Objects, storage.Bytes(source.Bytes))
	}
	return objects, nil
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
	objects, err := i.stage(ctx, progress.Stage, filepath.Join(i.runDir, "pack"), found.Manifest.Objects(), nil, 0)
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
	content, err := i.server.Open(ctx, entry.Digest)
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
