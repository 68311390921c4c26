// Package config turns the site's files (config.json, storage-layout.json,
// imagename, imageserver and the optional ones) into one valid [Config]. It
// reports every mistake of every file at once, with file, line and the nearest
// name that it knows.
//
// It never opens a file: package fetch brings the bytes. It does not know the
// machine either: whether the configuration fits it is the plan's question.
package config

import (
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage"
)

// Names of the files that [Parse] knows. Those that it does not know are left
// alone: custom programmes keep their own files beside them.
const (
	MachineFile     = "config.json"
	LayoutFile      = "storage-layout.json"
	ImageFile       = "imagename"
	ImageServerFile = "imageserver"
	ToolsImageFile  = "tools-imagename"
	RandomSeedFile  = "random-seed"
	SiteServerFile  = "siteserver"
)

// Config is what the site wants of one machine. It is valid as far as that can
// be said without the machine and the image.
type Config struct {
	Machine Machine
	// Storage is storage-layout.json, or the default layout.
	Storage storage.Spec
	// LayoutFromDefault says that the site has no storage-layout.json. The
	// default layout is for disks without foreign data only.
	LayoutFromDefault bool
	Network           netconfig.Spec
	Install           Install
	// Image is the name of the image to install, as written: it may be a stream,
	// an alias, or carry @sha256:….
	Image string
	// ToolsImage is the image that custom programmes run in, empty for the same.
	ToolsImage string
	// ImageServers are host:port, the one that is asked first before the others;
	// none when the site has no such file.
	ImageServers []string
	// SiteServer is the URL of the site API, without a slash at its end; empty
	// when there is none.
	SiteServer string
	// RandomSeed is entropy that the site gives; it is secret.
	RandomSeed []byte
	// Warnings are fields that nobody here uses, one line each.
	Warnings []string
}

// Machine is what config.json says of the machine besides its network.
type Machine struct {
	Location string
	// Architecture, MemoryMiB, CPUs and VolumeBytes are what the fleet's records
	// expect of the machine; empty or 0 when they do not say.
	Architecture string
	MemoryMiB    uint64
	CPUs         uint64
	VolumeBytes  uint64
	Tags         map[string]string
}

// Install is how the installation is done.
type Install struct {
	// KernelOptions are appended to the new OS's kernel command line.
	KernelOptions string
	// WaitAfterFailureSeconds is how long the page of a failed installation stays
	// up before the machine reboots; nil when the site does not say.
	WaitAfterFailureSeconds *uint64
	// LowMemory says that an image that does not fit into memory is written while
	// it comes, after the disks have been erased.
	LowMemory bool
	// NetworkRenderer names who configures the new OS's network, one of
	// netconfig/renderer, or empty for what the image starts.
	NetworkRenderer string
	// ProveNetwork says whether the new OS's network is tried out before commit;
	// nil when the site does not say, and then it is where it is more than the
	// installer's own lease.
	ProveNetwork *bool
	// RequireApproval says that no disk is changed until an operator has approved
	// the plan by its hash.
	RequireApproval bool
	// Secrets are files of the new system, by their absolute paths, that the site
	// server gives to the machine's TPM alone.
	Secrets []string
	// Steps are the site's own programmes, in the order in which they stand.
	Steps []Step
	// Wipe asks for an erasure of all disks instead of an installation, this
	// thoroughly; empty for an installation.
	Wipe storage.Erase
	// Rescue says that the installer waits for operators and does nothing else.
	Rescue bool
}

// Installs says whether the configuration asks for an installation: not for a
// wipe, nor for a rescue, which need no image.
func (c Config) Installs() bool { return c.Install.Wipe == "" && !c.Install.Rescue }
