package plan

import (
	"bytes"
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/installer/boot"
	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/storage"
)

// Skip names a part of the plan that another programme does, so that nothing in
// it can be a reason to refuse.
type Skip string

// The parts that can be skipped.
const (
	// SkipStorage leaves the disks alone (-skipStorage): no layout, no boot
	// loader, and the hand-over is a reboot.
	SkipStorage Skip = "storage"
	// SkipNetwork writes no network configuration (-skipNetwork,
	// -networkConfigurator).
	SkipNetwork Skip = "network"
)

// New decides. Its error is a [Refusals] with everything that speaks against the
// installation.
func New(c config.Config, machine inventory.Document, img Image, skip ...Skip) (Plan, error) {
	d := &decision{config: c, machine: machine, image: img}
	d.plan = Plan{
		Format:   Format,
		Machine:  d.describeMachine(),
		Image:    summarize(img),
		HandOver: Reboot,
		Lost:     []string{},
		Kept:     []string{},
		Warnings: slices.Concat([]string{}, c.Warnings, machine.Warnings),
	}
	d.checkArchitecture(img)
	d.checkRecords()
	if !slices.Contains(skip, SkipStorage) {
		d.decideStorage()
	}
	if slices.Contains(skip, SkipNetwork) {
		d.plan.Network.Hostname = c.Network.Hostname // its name is the machine's, not the network's
	} else {
		d.decideNetwork()
	}
	d.describeSteps()
	d.decideTools()
	d.decideMemory()
	if len(d.refusals) > 0 {
		return Plan{}, d.refusals
	}
	return d.plan, nil
}

// decision is a plan in the making.
type decision struct {
	config   config.Config
	machine  inventory.Document
	image    Image
	tools    *image.Manifest // what is unpacked to memory, or nil
	plan     Plan
	refusals Refusals
}

func (d *decision) describeMachine() Machine {
	m := d.machine
	described := Machine{
		Hostname:   d.config.Network.Hostname,
		Vendor:     m.DMI.Vendor,
		Product:    m.DMI.Product,
		Serial:     m.DMI.Serial,
		UUID:       m.DMI.UUID,
		Location:   d.config.Machine.Location,
		Arch:       m.Arch,
		Firmware:   m.Firmware,
		SecureBoot: m.SecureBoot,
		CPUs:       m.CPUs,
		MACs:       []string{},
	}
	for _, nic := range m.NICs {
		mac := nic.PermanentMAC
		if mac.IsZero() {
			mac = nic.MAC
		}
		described.MACs = append(described.MACs, mac.String())
	}
	slices.Sort(described.MACs)
	return described
}

// describeSteps puts down what of the site's own will run, so that who approves
// the plan approves that too.
func (d *decision) describeSteps() {
	d.plan.RequireApproval = d.config.Install.RequireApproval
	d.plan.Secrets = d.config.Install.Secrets
	for _, s := range d.config.Install.Steps {
		sum := sha256.Sum256(s.Program)
		d.plan.Steps = append(d.plan.Steps, Step{
			Programme: s.Name, Digest: "sha256:" + hex.EncodeToString(sum[:]), When: s.When(),
			In: string(s.In), TimeoutSeconds: int(s.Timeout.Seconds()), GoOn: s.GoOn,
		})
	}
}

func summarize(img Image) ImageSummary {
	return ImageSummary{
		Name:    img.Name,
		Digest:  img.Digest,
		OS:      img.Manifest.Attributes[image.AttrOSName],
		Arch:    img.Manifest.Attributes[image.AttrArch],
		Objects: len(img.Manifest.Objects()),
		Bytes:   img.Manifest.Bytes(),
		Inodes:  img.Manifest.Inodes(),
	}
}

func (d *decision) checkArchitecture(img Image) {
	switch arch := img.Manifest.Attributes[image.AttrArch]; arch {
	case d.machine.Arch:
	case "":
		d.refuse(CodeArch, "image %s does not say for which architecture it is: it holds no program that was recognised; this machine is %s", img.Name, d.machine.Arch)
	default:
		d.refuse(CodeArch, "image %s is for %s, this machine is %s", img.Name, arch, d.machine.Arch)
	}
}

// checkRecords warns where the machine is not what the fleet's records say: it
// may be the wrong one.
func (d *decision) checkRecords() {
	records, m := d.config.Machine, d.machine
	if a := records.Architecture; a != "" && !sameArch(a, m.Arch) {
		d.warn("config.json says the machine is %s, and it is %s", a, m.Arch)
	}
	if records.CPUs > 0 && records.CPUs != uint64(m.CPUs) {
		d.warn("config.json says the machine has %d CPUs, and it has %d", records.CPUs, m.CPUs)
	}
	// The kernel keeps some per cent of the memory for itself.
	if expected := records.MemoryMiB << 20; expected > 0 && m.MemoryBytes < expected/100*85 {
		d.warn("config.json says the machine has %s of memory, and it has %s", storage.Bytes(expected), storage.Bytes(m.MemoryBytes))
	}
	var total uint64
	for _, disk := range m.Disks {
		if ok, _ := disk.Usable(); ok {
			total += disk.Size
		}
	}
	if records.VolumeBytes > total {
		d.warn("config.json says the machine has disks of %s together, and it has %s", storage.Bytes(records.VolumeBytes), storage.Bytes(total))
	}
}

// sameArch knows the names that others have for Go's architectures.
func sameArch(name, arch string) bool {
	switch strings.ToLower(name) {
	case "x86_64", "x86-64":
		name = "amd64"
	case "aarch64":
		name = "arm64"
	}
	return strings.EqualFold(name, arch)
}

func (d *decision) decideStorage() {
	spec := d.config.Storage
	spec.Architecture = d.machine.Arch
	layout, err := storage.Resolve(spec, d.machine.Disks, d.machine.Selected, spec.Need(d.files), d.machine.Firmware, d.id)
	if err == nil && d.config.LayoutFromDefault {
		err = layout.RefuseForeign()
	}
	if err != nil {
		d.refusals.add(err)
	} else {
		d.plan.Layout = layout
		d.plan.Lost = append(d.plan.Lost, layout.Lost...)
		d.plan.Kept = append(d.plan.Kept, layout.Kept...)
		for _, s := range layout.Skipped {
			d.plan.Kept = append(d.plan.Kept, s.Disk+": "+s.Reason)
		}
		d.checkTools(layout)
		d.checkStack(layout)
		d.decideEncryption(layout)
	}
	if spec.UseKexec {
		d.plan.HandOver, d.plan.KexecRequired = Kexec, spec.RequireKexec
		d.decideWatchdog()
		if d.machine.SecureBoot {
			d.warn("Secure Boot is on: kexec works only if the image's kernel is signed with a key that this kernel trusts; if it is refused, the machine reboots into its disk")
		}
	}
	choice, err := boot.Choose(d.image.Manifest.Attributes, d.config.Install.KernelOptions, boot.Machine{
		Firmware:    cmp.Or(layout.Firmware, d.machine.Firmware),
		Consoles:    d.machine.Consoles,
		RootUUID:    rootUUID(layout),
		RootOptions: d.rootOptions(layout),
		SecureBoot:  d.machine.SecureBoot,
		NewInitrd:   needsInitrd(layout, d.image.Manifest.Attributes),
	})
	if err != nil {
		d.refusals.add(err)
		return
	}
	d.plan.Boot = choice
	d.checkESP(layout, choice)
	for _, file := range []string{choice.Kernel, choice.Initrd} {
		if e, ok := d.image.Manifest.Resolve(file); !ok || e.Type != image.File || e.Size == 0 {
			d.refuse(CodeDamaged, "image %s names %s as its kernel or initrd, and holds no such file: add it again", d.image.Name, file)
		}
	}
}

// checkTools compares the layout with what the new OS itself can do with it.
func (d *decision) checkTools(layout storage.Layout) {
	attributes := d.image.Manifest.Attributes
	known := strings.Split(attributes[image.AttrFileSystems], ",")
	encrypted := false
	var missing []string
	for _, v := range layout.Volumes() {
		p := v.Partition
		encrypted = encrypted || p.LUKS != nil
		if slices.Contains(known, p.FileSystem) || slices.Contains(missing, p.FileSystem) {
			continue
		}
		if p.MountPoint == storage.ESPMountPoint {
			// Nobody listed it, and the OS starts without a check of it.
			d.warn("the image has no program to check %s, the file system of %s: install dosfstools in it", p.FileSystem, p.MountPoint)
			continue
		}
		missing = append(missing, p.FileSystem)
	}
	for _, fs := range missing {
		d.refuse(CodeFileSystem, "the layout wants %s, and image %s cannot check or repair it: install %s in the image, or choose another FileSystemType", fs, d.image.Name, packageOf(fs))
	}
	if encrypted && attributes[image.AttrCryptsetup] == "" {
		d.refuse(CodeNoCryptsetup, "the layout wants encryption, and image %s has no cryptsetup to open the volumes with: install cryptsetup in the image, or set \"Encrypt\": false", d.image.Name)
	}
}

func packageOf(fileSystem string) string {
	switch fileSystem {
	case storage.Ext4:
		return "e2fsprogs"
	case storage.XFS:
		return "xfsprogs"
	case storage.Btrfs:
		return "btrfs-progs"
	case storage.VFAT:
		return "dosfstools"
	case storage.Swap:
		return "util-linux"
	}
	return "the programs for it"
}

// files counts each inode once, under its first name.
func (d *decision) files(yield func(string, uint64) bool) {
	for i := range d.image.Manifest.Entries {
		e := &d.image.Manifest.Entries[i]
		if e.Type != image.Hardlink && !yield(e.Path, e.Size) {
			return
		}
	}
}

// id makes a UUID of version 8 (RFC 9562, 5.8): the same seed and name give the
// same one.
func (d *decision) id(name string) [16]byte {
	mac := hmac.New(sha256.New, d.machine.Seed[:])
	mac.Write([]byte(name)) // a hash never fails
	id := [16]byte(mac.Sum(nil))
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}

func rootUUID(layout storage.Layout) string {
	for _, v := range layout.Mounts() {
		if v.MountPoint() == "/" {
			return v.Partition.FSUUID
		}
	}
	return ""
}

// decideTools says which image is unpacked to memory, if one is.
func (d *decision) decideTools() {
	from := d.image.Tools
	if from != nil && from.Digest != d.image.Digest {
		d.checkArchitecture(*from)
	}
	if missing := d.missingPrograms(); len(missing) > 0 {
		if from == nil {
			from = &d.image
		}
		d.warn("%s is unpacked to memory as well, because the installer does not carry %s", from.Name, strings.Join(missing, ", "))
		for _, name := range missing {
			if !hasProgram(from.Manifest, name) {
				d.refuse(CodeNoProgram, "the layout needs %s, which neither the installer nor image %s has: install its package in the image, or choose another FileSystemType", name, from.Name)
			}
		}
	}
	if from != nil {
		tools := summarize(*from)
		d.plan.Tools = &tools
		d.tools = from.Manifest
	}
}

// hasProgram looks where a chroot into the image would.
func hasProgram(m *image.Manifest, name string) bool {
	for _, dir := range []string{"usr/sbin", "usr/bin", "sbin", "bin"} {
		if e, ok := m.Resolve(dir + "/" + name); ok && e.Type == image.File && e.Mode&0o111 != 0 {
			return true
		}
	}
	return false
}

// missingPrograms are those that the layout needs and the initramfs never has.
func (d *decision) missingPrograms() []string {
	var missing []string
	for _, name := range d.plan.Layout.Programs() {
		if !slices.Contains([]string{"cryptsetup", "dmsetup", "mdadm", "mkfs.ext4", "mkfs.vfat", "mkswap"}, name) {
			missing = append(missing, name)
		}
	}
	return missing
}

func (d *decision) warn(format string, args ...any) {
	d.plan.Warnings = append(d.plan.Warnings, fmt.Sprintf(format, args...))
}

func (d *decision) refuse(code, format string, args ...any) {
	d.refusals = append(d.refusals, &Error{ID: code, Text: fmt.Sprintf(format, args...)})
}

// JSON is the plan as it is served and kept: indented, with a final newline. The
// same plan gives the same bytes.
func (p Plan) JSON() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(p); err != nil {
		return nil, fmt.Errorf("encoding the plan: %w", err)
	}
	return b.Bytes(), nil
}

// Hash is "sha256:" and the hexadecimal SHA-256 of what JSON returns.
func (p Plan) Hash() (string, error) {
	data, err := p.JSON()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}
