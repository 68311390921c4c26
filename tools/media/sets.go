package media

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/uinit/modules"
)

// Set names a choice of kernel modules.
type Set string

const (
	// SetNone leaves modules out: for a kernel that has everything built in.
	SetNone Set = "none"
	// SetVM is for virtual machines: QEMU, VMware, Hyper-V, Xen.
	SetVM Set = "vm"
	// SetCommon adds what servers and workstations usually have.
	SetCommon Set = "common"
	// SetAll is every module below drivers for networks, disks and buses.
	SetAll Set = "all"
)

// Sets lists the sets that a person may choose from.
func Sets() []Set { return []Set{SetVM, SetCommon, SetAll, SetNone} }

// everywhere are the modules of every set: the file-systems and ciphers of
// the installer itself, and what old file-systems need to be read.
const everywhere = `
	dm-mod dm-crypt loop md-mod raid0 raid1 raid10 raid456 linear
	xts ecb cbc essiv aes_generic aesni-intel aes_ce_blk aes_ce_ccm sha256_generic sha256-ssse3 sha2-ce sha512_generic sha1_generic hmac
	algif_skcipher algif_hash authenc cryptd crypto_simd
	ext4 xfs btrfs vfat isofs squashfs overlay nls_cp437 nls_ascii nls_iso8859-1 nls_utf8
	crc32c_generic crc32c-intel crc32_pclmul xxhash_generic zstd_compress lz4_decompress
	8021q bonding bridge ipvlan af_packet
	efivarfs efi-pstore sd_mod sr_mod sg cdrom
	i6300esb virtio_rng`

const virtual = `
	virtio_pci virtio_mmio virtio_blk virtio_scsi virtio_net virtio_console virtio_balloon virtio-gpu
	ahci ata_piix ata_generic nvme
	e1000 e1000e igb 8139cp pcnet32 vmxnet3 vmw_pvscsi mptspi
	hv_vmbus hv_storvsc hv_netvsc hv_utils hyperv-keyboard hid-hyperv
	xen-blkfront xen-netfront
	xhci-pci xhci-hcd ehci-pci uhci-hcd usb-storage uas usbhid hid-generic
	i2c-piix4 psmouse serio_raw atkbd`

const physical = `
	mpt3sas mpi3mr megaraid_sas hpsa smartpqi aacraid aic94xx mvsas pm80xx isci arcmsr 3w-sas 3w-9xxx qla2xxx lpfc
	sata_nv sata_sil sata_sil24 sata_mv sata_via sata_promise pata_amd pata_via pata_jmicron sdhci-pci sdhci-acpi mmc_block vmd
	igb igc ixgbe ixgbevf i40e iavf ice tg3 bnx2 bnx2x bnxt_en r8169 realtek
	mlx4_core mlx4_en mlx5_core be2net cxgb4 enic qede qed sfc atlantic alx atl1c atl1e sky2 skge forcedeth via-rhine via-velocity
	ena gve nfp ionic mana e100 jme ne2k-pci natsemi 8139too tulip usbnet cdc_ether cdc_ncm r8152 ax88179_178a asix
	ohci-pci ohci-hcd xhci-pci-renesas typec_ucsi usbcore usb-common
	hid-apple hid-logitech hid-microsoft i2c-hid i2c-hid-acpi intel-lpss-pci i2c-designware-platform pinctrl-amd
	dm-mirror dm-snapshot dm-raid
	ipmi_si ipmi_devintf ipmi_ssif iTCO_wdt sp5100_tco hpwdt
	nvme-tcp nvme-fabrics
	tpm_tis_spi tpm_tis_i2c tpm_infineon
	phy-generic marvell broadcom bcm-phy-lib mdio_devres sfp`

// directories are the parts of a kernel's tree that SetAll takes whole.
const directories = `
	kernel/drivers/ata kernel/drivers/block kernel/drivers/nvme kernel/drivers/scsi kernel/drivers/message kernel/drivers/virtio
	kernel/drivers/net/ethernet kernel/drivers/net/phy kernel/drivers/net/mdio kernel/drivers/net/usb kernel/drivers/net/vmxnet3
	kernel/drivers/net/hyperv kernel/drivers/net/bonding kernel/drivers/net/pcs kernel/drivers/hv kernel/drivers/mmc
	kernel/drivers/usb/host kernel/drivers/usb/storage kernel/drivers/usb/core kernel/drivers/hid kernel/drivers/md
	kernel/drivers/char/tpm kernel/drivers/char/ipmi kernel/drivers/watchdog kernel/drivers/phy kernel/drivers/pinctrl
	kernel/drivers/i2c kernel/drivers/input/keyboard kernel/drivers/input/serio`

// wanted says which modules of a kernel the options ask for. Whether the kernel
// has them is another question.
func (o Options) wanted() (func(*modules.Index) []string, error) {
	if o.For != "" {
		return o.wantedByInventory()
	}
	set := o.Modules
	if set == "" {
		set = SetCommon
	}
	names := map[Set]string{SetNone: "", SetVM: everywhere + virtual, SetCommon: everywhere + virtual + physical, SetAll: everywhere + virtual + physical}
	named, known := names[set]
	if !known {
		return nil, &Error{code: codeUsage, text: fmt.Sprintf("there is no set of modules %q: use one of %v", set, Sets())}
	}
	return func(x *modules.Index) []string {
		all := strings.Fields(named)
		if set != SetAll {
			return all
		}
		for _, name := range x.Names() {
			file, _ := x.File(name)
			for dir := range strings.FieldsSeq(directories) {
				if strings.HasPrefix(file, dir+"/") {
					all = append(all, name)
				}
			}
		}
		return all
	}, nil
}

// wantedByInventory are the modules that a machine loaded when its inventory was
// taken.
func (o Options) wantedByInventory() (func(*modules.Index) []string, error) {
	data, err := os.ReadFile(o.For)
	if err != nil {
		return nil, &Error{code: codeUsage, text: "the inventory cannot be read", err: err}
	}
	machine, err := inventory.Parse(data)
	if err != nil {
		return nil, &Error{code: codeUsage, text: o.For, err: err}
	}
	switch {
	case machine.Arch != o.arch():
		return nil, &Error{code: CodeArch, text: fmt.Sprintf("%s is of a machine with %s, and the medium is for %s", o.For, machine.Arch, o.arch())}
	case len(machine.Modules) == 0:
		return nil, &Error{code: codeUsage, text: o.For + " names no kernel modules: it was taken by an older installer, or by a kernel that has everything built in"}
	}
	return func(*modules.Index) []string { return append(strings.Fields(everywhere), machine.Modules...) }, nil
}

// choose returns those modules, sorted by file, that the kernel has, with
// everything that they need (modules.dep) and would like (modules.softdep). A
// name that a kernel does not know is built in or belongs to another version or
// architecture; but a set of which the kernel knows almost nothing is a mistake.
func choose(x *modules.Index, wanted func(*modules.Index) []string) ([]modules.Step, error) {
	names := wanted(x)
	chosen := map[string]modules.Step{}
	for _, name := range names {
		if _, known := x.File(name); !known {
			continue
		}
		steps, err := x.Order(name)
		if err != nil {
			return nil, &Error{code: codeKernel, text: "the kernel's modules.dep is not complete", err: err}
		}
		for _, step := range steps {
			chosen[step.Name] = step
		}
	}
	const atLeast = 10 // even the smallest Debian kernel has more
	if len(chosen) < atLeast {
		return nil, &Error{code: codeKernel, text: fmt.Sprintf("the kernel has only %d of the modules that an installer wants; has `depmod -b` been run?", len(chosen))}
	}
	list := make([]modules.Step, 0, len(chosen))
	for _, step := range chosen {
		list = append(list, step)
	}
	slices.SortFunc(list, func(a, b modules.Step) int { return strings.Compare(a.File, b.File) })
	return list, nil
}

// packedName is the name in the archive of a module's file.
func packedName(file string) string {
	for _, suffix := range []string{".gz", ".xz", ".zst"} {
		file = strings.TrimSuffix(file, suffix)
	}
	return path.Clean(file) + ".zst"
}
