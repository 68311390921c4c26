package storage

// Resolve decides the layout.
func Resolve(spec Spec, disks []Disk, selected []string, need Need, firmware Firmware, ids func(name string) [16]byte) (Layout, error) {
	return Layout{}, Errorf(CodeNoDisk, "not yet")
}
