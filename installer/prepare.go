package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/installer/plan"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/mount"
)

// getManifest finds the image without its objects: on a medium, or else on the
// image server.
func (i *installation) getManifest(ctx context.Context) error {
	found, err := i.findImage(ctx, i.config.Image)
	if err != nil {
		return err
	}
	i.image = found
	if err := i.findTools(ctx); err != nil {
		return fmt.Errorf("the tools image: %w", err)
	}
	if err := i.nameServers(progress.Manifest); err != nil {
		return err
	}
	i.model.Describe(func(f *progress.Facts) {
		f.Image, f.ImageDigest = found.Name, found.Digest.String()
	})
	i.model.Logf(progress.Manifest, "%s is %s: %d files, %s", found.Name, found.Digest,
		len(found.Manifest.Objects()), storage.Bytes(found.Manifest.Bytes()))
	return nil
}

// connect finds an image server that answers. It may be called again.
func (i *installation) connect(ctx context.Context, phase progress.Phase) error {
	if err := i.nameServers(phase); err != nil {
		return err
	}
	i.model.Wait(phase, "the image server "+strings.Join(i.imageServerAddresses(), ", "))
	defer i.model.Wait(phase, "")
	return i.servers.connect(ctx)
}

// nameServers makes the image servers known, and speaks to none of them yet.
// There may be none where a medium carries the image.
func (i *installation) nameServers(phase progress.Phase) error {
	if i.servers != nil {
		return nil
	}
	addresses := i.imageServerAddresses()
	config, err := i.clientTLS()
	if err != nil {
		return err
	}
	if config == nil && len(addresses) > 0 {
		i.model.Warn(phase, "there is no "+i.env.trust.ca+" in the boot medium: the image server is not authenticated and nothing it sends is secret")
	}
	i.servers = newImageServers(addresses, func(text string) { i.model.Warn(phase, text) },
		func(ctx context.Context, address string) (*client.Client, error) {
			i.model.Logf(phase, "connecting to the image server %s", address)
			var server *client.Client
			err := i.agreeOnTime(ctx, address, func() (err error) {
				server, err = client.Dial(ctx, client.Options{Address: address, TLS: config})
				return err
			})
			return server, err
		})
	i.opened.push("the connection to the image server", i.servers.Close)
	return nil
}

// clientTLS is how this machine speaks TLS to servers. With a CA in the boot
// medium nothing but TLS is spoken, and certificates of that CA are the only
// ones that count. It is nil without a CA: then a connection can be read and
// changed by anybody on the way.
func (i *installation) clientTLS() (*tls.Config, error) {
	if _, err := os.Stat(i.env.trust.ca); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	cert, key := i.env.trust.cert, i.env.trust.key
	if _, err := os.Stat(cert); errors.Is(err, fs.ErrNotExist) {
		cert, key = "", "" // reading needs none, unless the server insists
	}
	return i.clientTLSWith(i.env.trust.ca, cert, key)
}

func (i *installation) findImage(ctx context.Context, name string) (plan.Image, error) {
	if carried, ok, err := i.imageOnMedium(ctx, name); ok || err != nil {
		return carried, err
	}
	if err := i.connect(ctx, progress.Manifest); err != nil {
		return plan.Image{}, err
	}
	found, err := i.servers.manifest(ctx, name)
	if err != nil {
		return plan.Image{}, err
	}
	manifest, err := image.Decode(found.Raw)
	if err != nil {
		return plan.Image{}, fmt.Errorf("reading the manifest of %s: %w", found.Name, err)
	}
	return plan.Image{Name: found.Name, Digest: found.Digest, Manifest: manifest, Stored: found.Stored}, nil
}

// makePlan decides everything that follows, and shows it whole.
func (i *installation) makePlan(context.Context) error {
	p, err := plan.New(i.config, i.inventory, i.image, i.skipped()...)
	if err != nil {
		return err
	}
	return i.showPlan(p)
}

// showPlan makes p the plan of this run: printed, served, to be approved. In a
// dry run nothing follows.
func (i *installation) showPlan(p plan.Plan) error {
	hash, err := p.Hash()
	if err != nil {
		return err
	}
	i.plan, i.by = p, p.HandOver
	i.publishPlan(p)
	i.model.Describe(func(f *progress.Facts) { f.Plan = hash })
	for _, warning := range p.Warnings {
		i.model.Warn(progress.Plan, warning)
	}
	i.model.Log(progress.Plan, p.Text())
	i.model.Logf(progress.Plan, "plan %s", hash)
	if p.RequireApproval {
		i.approval.need(hash)
	}
	if i.opt.dryRun {
		i.model.Log(progress.Plan, "dry run: stopping here, nothing was changed")
		return errDryRun
	}
	if p.RequireApproval && i.shells == nil && !i.opt.skipStorage {
		return refuse("TRU-042", "Install.RequireApproval wants the plan to be approved, and nobody can: installer-shell is refused on this machine")
	}
	return nil
}

// skipped are the parts that the flags leave to somebody else.
func (i *installation) skipped() []plan.Skip {
	var parts []plan.Skip
	if i.opt.skipStorage {
		parts = append(parts, plan.SkipStorage)
	}
	if i.opt.skipNetwork || i.opt.networkConfigurator != "" {
		parts = append(parts, plan.SkipNetwork)
	}
	return parts
}

// findTools finds the image that custom programmes want in -tmpRoot: the tools
// image, or the image itself.
func (i *installation) findTools(ctx context.Context) error {
	switch {
	case i.config.ToolsImage != "":
		tools, err := i.findImage(ctx, i.config.ToolsImage)
		i.image.Tools = &tools
		return err
	case i.opt.networkConfigurator != "" || i.opt.completionNotifier != "" || i.config.Install.StepsIn(config.InTools):
		itself := i.image
		i.image.Tools = &itself
	}
	return nil
}

// toolsImage is what is unpacked to -tmpRoot, if something is.
func (i *installation) toolsImage() plan.Image {
	if i.image.Tools != nil {
		return *i.image.Tools
	}
	return i.image
}

// unpackTools unpacks what the plan names to -tmpRoot: for custom programmes,
// or because the boot image lacks a program that the layout needs.
func (i *installation) unpackTools(ctx context.Context) error {
	if i.plan.Tools == nil {
		return skip{"the boot image has every program that the plan needs"}
	}
	from := i.toolsImage()
	i.model.Logf(progress.Tools, "unpacking %s to %s", from.Name, i.opt.tmpRoot)
	if err := i.mountTmpfs(i.opt.tmpRoot, i.inventory.MemoryBytes); err != nil {
		return err
	}
	if err := i.unpackTo(ctx, progress.Tools, i.opt.tmpRoot, from.Manifest, i.objects); err != nil {
		return err
	}
	var system mount.Stack
	i.opened.push("the system below "+i.opt.tmpRoot, system.Close)
	if err := system.System(i.opt.tmpRoot); err != nil {
		return err
	}
	if missing := i.missingPrograms(); len(missing) > 0 {
		i.model.Logf(progress.Tools, "programs are run from there: the boot image lacks %s", strings.Join(missing, ", "))
		i.toolsRoot = i.opt.tmpRoot
	}
	return nil
}

// commit is the line between reading and writing: everything that can fail
// without touching a disk has been tried. Whether the disks still are the ones
// that the plan speaks of is looked at once more by what writes to them, just
// before its first write.
func (i *installation) commit(ctx context.Context) error {
	if i.opt.skipStorage {
		return skip{"-skipStorage: no disk is written"}
	}
	if !i.env.inMemory {
		return refuse("STO-050", "the running system's root file-system is not in memory: disks are erased from the installer's own initramfs only")
	}
	if err := i.tryKexec(ctx); err != nil {
		return err
	}
	if err := i.makeKeys(ctx); err != nil {
		return err
	}
	if err := i.fetchSecrets(ctx); err != nil {
		return err
	}
	return i.awaitApproval(ctx)
}

// writeConfigDir keeps the files where custom programmes look for them.
func writeConfigDir(directory string, files map[string][]byte) error {
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(directory, name)), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(directory, name), files[name], 0o600); err != nil {
			return err
		}
	}
	return nil
}
