// Package plan decides everything about an installation before anything is
// changed. [New] is a pure function of the configuration, the inventory and the
// image's manifest: the same inputs give the same bytes and the same hash on the
// machine and on a laptop.
//
// What it returns is shown to people, served to anyone who asks and kept on the
// installed disk: no secret ever stands in it. Nothing is decided again after it.
package plan

import (
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/installer/boot"
	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage"
)

// Format is the version of the plan's JSON.
const Format = 1

// The two hand-overs to the new OS, and the end of a wipe.
const (
	Kexec    = "kexec"
	Reboot   = "reboot"
	PowerOff = "power-off"
)

// Image is the image to install, as the image server describes it.
type Image struct {
	// Name is resolved: no stream, no alias.
	Name     string
	Digest   object.Digest
	Manifest *image.Manifest
	// Stored is the size in bytes of each object as the server sends it. It is a
	// hint: an object that is missing here is counted with its unpacked size.
	Stored map[object.Digest]uint64
	// Tools is the image that is unpacked to memory because custom programmes run
	// in it: that of tools-imagename, or the image itself; nil when there are no
	// such programmes. Its own Tools means nothing.
	Tools *Image
}

// Plan is an installation, completely decided.
type Plan struct {
	Format  int          `json:"format"`
	Machine Machine      `json:"machine"`
	Image   ImageSummary `json:"image"`
	// Tools is the image that is unpacked to memory for custom programmes and for
	// programs that the installer does not carry; nil when there is no need.
	Tools  *ImageSummary  `json:"tools,omitempty"`
	Layout storage.Layout `json:"layout"`
	// Encryption is nil when no volume is encrypted.
	Encryption *Encryption `json:"encryption,omitempty"`
	// Network is how the new OS will be connected.
	Network Network     `json:"network"`
	Boot    boot.Choice `json:"boot"`
	// Wipe says that the disks of the layout are erased, this thoroughly, and that
	// nothing is installed: there is no image then. Empty for an installation.
	Wipe storage.Erase `json:"wipe,omitempty"`
	// HandOver is Kexec or Reboot; PowerOff after a wipe.
	HandOver string `json:"handOver"`
	// KexecRequired refuses the installation when the running kernel does not
	// take the new one.
	KexecRequired bool `json:"kexecRequired,omitempty"`
	// Watchdog is the driver of the hardware watchdog that is armed across the
	// hand-over by kexec; empty when there is none, or when the new OS would not
	// take it over.
	Watchdog string `json:"watchdog,omitempty"`

	// RequireApproval says that no disk is changed before an operator has
	// approved this plan by its hash.
	RequireApproval bool `json:"requireApproval,omitempty"`
	// Secrets are files of the new system that the site server gives to this
	// machine's TPM alone. Their contents never stand here.
	Secrets []string `json:"secrets,omitempty"`
	// Steps are the site's own programmes, in their order.
	Steps []Step `json:"steps,omitempty"`

	// FetchObjects and FetchBytes bound what is downloaded: nothing is reused.
	// Bytes are as they travel, compressed.
	FetchObjects int    `json:"fetchObjects"`
	FetchBytes   uint64 `json:"fetchBytes"`
	// StageBytes bounds the tmpfs that holds the staged objects.
	StageBytes uint64 `json:"stageBytes"`
	// LowMemory says that the stage does not hold the whole image: what is not in
	// it is fetched and written after commit. Before commit the stage takes what
	// custom programmes run from, and of what old disks have as much as fits.
	LowMemory bool `json:"lowMemory,omitempty"`
	// MemoryNeed and MemoryHave are bytes: what the installation needs at most,
	// and what the machine has.
	MemoryNeed uint64 `json:"memoryNeed"`
	MemoryHave uint64 `json:"memoryHave"`

	// Lost has a line for each thing on a disk that will be gone, Kept one for
	// each thing on these disks that stays, and for each disk that is left alone.
	Lost     []string `json:"lost"`
	Kept     []string `json:"kept"`
	Warnings []string `json:"warnings"`
}

// Network is the new OS's network and who is told of it.
type Network struct {
	netconfig.Config
	// Renderer is the name of the program for which it is written, see package
	// netconfig/renderer; empty when nothing is written.
	Renderer string             `json:"renderer,omitempty"`
	Resolver netconfig.Resolver `json:"resolver,omitempty"`
	// WithoutCloudInit says that the image has cloud-init, which is told to
	// leave the network alone.
	WithoutCloudInit bool `json:"withoutCloudInit,omitempty"`
	// Prove is what is tried out before commit; empty: nothing is.
	Prove []netconfig.Segment `json:"prove,omitempty"`
	// ProveAll says that whatever does not answer stops the installation, not
	// only what the machine cannot be without.
	ProveAll bool `json:"proveAll,omitempty"`
}

// Step is a programme of the site's own.
type Step struct {
	Programme string `json:"programme"`
	Digest    string `json:"digest"` // sha256:… of the programme
	When      string `json:"when"`   // "before storage"
	// In is the root that it runs in: installer, tools or system.
	In             string `json:"in"`
	TimeoutSeconds int    `json:"timeoutSeconds"`
	// GoOn says that its failure does not end the installation.
	GoOn bool `json:"goOn,omitempty"`
}

// Machine says which machine the plan is for.
type Machine struct {
	Hostname   string           `json:"hostname"`
	Vendor     string           `json:"vendor,omitempty"`
	Product    string           `json:"product,omitempty"`
	Serial     string           `json:"serial,omitempty"`
	UUID       string           `json:"uuid,omitempty"`
	Location   string           `json:"location,omitempty"`
	Arch       string           `json:"arch"`
	Firmware   storage.Firmware `json:"firmware"`
	SecureBoot bool             `json:"secureBoot"`
	CPUs       int              `json:"cpus"`
	MACs       []string         `json:"macs"`
}

// ImageSummary is the image without its entries.
type ImageSummary struct {
	Name   string        `json:"name"`
	Digest object.Digest `json:"digest"`
	OS     string        `json:"os,omitempty"`
	Arch   string        `json:"arch"`
	// Objects and Bytes are the distinct files and their unpacked sizes; Inodes
	// counts every entry that takes one.
	Objects int    `json:"objects"`
	Bytes   uint64 `json:"bytes"`
	Inodes  uint64 `json:"inodes"`
}
