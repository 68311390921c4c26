package tool

// Program is a program that the initramfs carries, with what it needs beside
// the shared libraries that its ELF header names.
type Program struct {
	Name    string // as Runner looks for it
	Package string // Debian package that has it
	// Files are data files that it reads.
	Files []string
	// Libraries are loaded at run time, so that the ELF header does not tell.
	Libraries []string
	// Directories must exist before it runs.
	Directories []string
}

// Programs are the programs that storage/apply and storage/readonly run. What is
// not here is done by Go code.
func Programs() []Program {
	return []Program{
		{
			Name:    "cryptsetup",
			Package: "cryptsetup-bin",
			// argon2 is not used by us, but cryptsetup links pthread_cancel.
			Libraries:   []string{"libgcc_s.so.1"},
			Directories: []string{"/run/cryptsetup", "/run/lock"},
		},
		{
			Name:    "mkfs.ext4",
			Package: "e2fsprogs",
			Files:   []string{"/etc/mke2fs.conf"},
		},
		{
			Name:    "mkswap",
			Package: "util-linux",
		},
		{
			Name:    "mkfs.vfat",
			Package: "dosfstools",
		},
		{
			Name:    "dmsetup",
			Package: "dmsetup",
		},
		{
			Name:        "mdadm",
			Package:     "mdadm",
			Directories: []string{"/run/mdadm"},
		},
	}
}
