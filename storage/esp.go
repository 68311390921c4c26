package storage

// ESP is the disk's EFI system partition; ok is false when it has none.
func (d DiskLayout) ESP() (p Partition, ok bool) {
	for _, p := range d.Partitions {
		if p.TypeGUID == typeESP {
			return p, true
		}
	}
	return Partition{}, false
}

// BootDisks are the disks that hold the boot loader, the boot disk first.
func (l Layout) BootDisks() []DiskLayout {
	return l.Disks[:min(len(l.Disks), 1)]
}
