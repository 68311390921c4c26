package ingest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
)

const (
	// headSize holds what arch reads of an ELF header, in bytes.
	headSize = 20
	// maxContent is the most bytes that are kept of a file to compute
	// attributes from; a package database has a few million, that of rpm
	// up to a few hundred.
	maxContent = 256 << 20
)

// wantedContent reports whether attributes are computed from a file's content.
func wantedContent(p string) bool {
	switch p {
	case "etc/os-release", "usr/lib/os-release",
		"etc/passwd", "etc/group",
		"var/lib/dpkg/status", "lib/apk/db/installed", "usr/lib/apk/db/installed",
		"etc/cryptsetup-initramfs/conf-hook", "etc/mkinitcpio.conf",
		"etc/kernel/cmdline", "usr/lib/kernel/cmdline", "etc/default/grub":
		return true
	}
	return slices.Contains(rpmDatabases(), p) || looksLikeInitrd(p) || strings.HasPrefix(p, "var/lib/dpkg/status.d/") || strings.HasPrefix(p, "etc/default/grub.d/") ||
		path.Base(p) == "modules.builtin" ||
		strings.HasPrefix(p, "var/lib/pacman/local/") && path.Base(p) == "desc"
}

// looker keeps of a file's content what attributes are computed from.
type looker struct {
	path    string
	head    []byte
	content []byte
	tooLong bool
}

func (l *looker) Write(p []byte) (int, error) {
	if missing := headSize - len(l.head); missing > 0 {
		l.head = append(l.head, p[:min(missing, len(p))]...)
	}
	if wantedContent(l.path) && !l.tooLong {
		if len(l.content)+len(p) > maxContent {
			l.content, l.tooLong = nil, true
		} else {
			l.content = append(l.content, p...)
		}
	}
	return len(p), nil
}

// keep is called with the intake's lock held.
func (l *looker) keep(in *intake, d object.Digest) {
	if l.content != nil {
		in.contents[d] = l.content
	}
	if bytes.HasPrefix(l.head, []byte(elf.ELFMAG)) {
		in.heads[d] = l.head
	}
}

// attributes finds out what an installation must know of the image. Nothing is
// guessed: what is not found has no attribute.
func attributes(m *image.Manifest, contents, heads map[object.Digest][]byte, wantedArch string) (map[string]string, []byte, error) {
	s := &scan{m: m, contents: contents, heads: heads}
	a := make(map[string]string)
	set := func(key, value string) {
		if value != "" {
			a[key] = value
		}
	}
	arch, program := s.arch()
	if wantedArch != "" {
		if arch != "" && arch != wantedArch {
			return nil, nil, fmt.Errorf("wanted %s, but %s is a program for %s: %w", wantedArch, program, arch, ErrArch)
		}
		arch = wantedArch
	}
	set(image.AttrArch, arch)

	release := s.osRelease()
	set(image.AttrOSID, release["ID"])
	set(image.AttrOSVersion, release["VERSION_ID"])
	set(image.AttrOSName, release["PRETTY_NAME"])

	k := s.kernel()
	set(image.AttrKernel, k.path)
	set(image.AttrKernelVersion, k.version)
	set(image.AttrInitrd, k.initrd)

	modules := s.kernelModules(k.version)
	set(image.AttrKernelModules, strings.Join(among(modules, "btrfs", "dm-crypt", "dm-mod", "ext4", "raid0", "raid1", "raid10", "vfat", "xfs"), ","))
	if len(modules) > 0 { // an empty list says that it has none of them
		a[image.AttrKernelNetwork] = strings.Join(among(modules, "8021q", "bonding", "bridge"), ",")
	}
	set(image.AttrKernelOptions, s.kernelOptions())
	set(image.AttrBootloaders, strings.Join(s.bootloaders(), ","))
	enabled, others := s.network()
	set(image.AttrNetwork, strings.Join(append(slices.Clone(enabled), others...), ","))
	set(image.AttrNetworkEnabled, strings.Join(enabled, ","))
	set(image.AttrResolver, s.resolver())
	set(image.AttrCloudInit, s.program("cloud-init"))
	initramfs := s.initramfs()
	set(image.AttrInitramfs, initramfs)
	set(image.AttrUnlock, strings.Join(s.unlock(initramfs), ","))
	set(image.AttrInitrdUnlock, strings.Join(initrdUnlock(s.content(k.initrd), s.builtIn(k.version, "dm-crypt")), ","))
	set(image.AttrCryptsetup, s.program("cryptsetup"))
	packages, databases := s.packages()
	if len(packages) > 0 {
		set(image.AttrPackages, object.Of(packages).String())
		set(image.AttrPackageCount, strconv.Itoa(bytes.Count(packages, []byte("\n"))))
	}
	set(image.AttrPackageDatabase, strings.Join(databases, ","))
	set(image.AttrFileSystems, strings.Join(s.fileSystems(), ","))
	return a, packages, nil
}

// scan asks questions of a manifest.
type scan struct {
	m               *image.Manifest
	contents, heads map[object.Digest][]byte
}

// has reports whether path leads to a file or directory of the image.
func (s *scan) has(path string) bool {
	_, found := s.m.Resolve(path)
	return found
}

// programDirs is where programs lie, in the order of a root's PATH.
func programDirs() []string {
	return []string{"usr/sbin", "usr/bin", "sbin", "bin", "usr/local/sbin", "usr/local/bin"}
}

// program returns where a program really lies, "" if it is not there.
func (s *scan) program(name string) string {
	for _, dir := range programDirs() {
		if e, found := s.m.Resolve(dir + "/" + name); found && e.Type == image.File && e.Mode&0o111 != 0 {
			return e.Path
		}
	}
	return ""
}

func (s *scan) content(path string) []byte {
	e, found := s.m.Resolve(path)
	if !found {
		return nil
	}
	return s.contents[e.Digest]
}

// names returns the names in a directory, links to it followed, sorted.
func (s *scan) names(dir string) (string, []string) {
	d, found := s.m.Resolve(dir)
	if !found || d.Type != image.Dir {
		return "", nil
	}
	prefix := d.Path + "/"
	from, _ := slices.BinarySearchFunc(s.m.Entries, prefix, func(e image.Entry, p string) int { return image.Compare(e.Path, p) })
	var names []string
	for _, e := range s.m.Entries[from:] {
		rest, inside := strings.CutPrefix(e.Path, prefix)
		if !inside {
			break
		}
		if !strings.Contains(rest, "/") {
			names = append(names, rest)
		}
	}
	return d.Path, names
}

// glob returns what path.Match finds in a directory, as full paths.
func (s *scan) glob(dir, pattern string) []string {
	real, names := s.names(dir)
	var found []string
	for _, name := range names {
		if ok, err := path.Match(pattern, name); ok && err == nil {
			found = append(found, real+"/"+name)
		}
	}
	return found
}

// arch reads the architecture from a program that every system starts with.
func (s *scan) arch() (arch, program string) {
	for _, p := range []string{
		"sbin/init", "usr/lib/systemd/systemd", "lib/systemd/systemd",
		"bin/sh", "usr/bin/sh", "bin/busybox", "usr/bin/env", "bin/bash", "usr/bin/dpkg",
	} {
		e, found := s.m.Resolve(p)
		if !found {
			continue
		}
		if arch := elfArch(s.heads[e.Digest]); arch != "" {
			return arch, e.Path
		}
	}
	return "", ""
}

// elfArch reads e_ident and e_machine of an ELF header (elf(5)) and names the
// architecture as Go does.
func elfArch(head []byte) string {
	if len(head) < headSize || !bytes.HasPrefix(head, []byte(elf.ELFMAG)) {
		return ""
	}
	var order binary.ByteOrder = binary.LittleEndian
	little := elf.Data(head[elf.EI_DATA]) == elf.ELFDATA2LSB
	if !little {
		order = binary.BigEndian
	}
	wide := elf.Class(head[elf.EI_CLASS]) == elf.ELFCLASS64
	switch machine := elf.Machine(order.Uint16(head[18:])); {
	case machine == elf.EM_X86_64:
		return "amd64"
	case machine == elf.EM_386:
		return "386"
	case machine == elf.EM_AARCH64:
		return "arm64"
	case machine == elf.EM_ARM:
		return "arm"
	case machine == elf.EM_RISCV && wide:
		return "riscv64"
	case machine == elf.EM_PPC64 && little:
		return "ppc64le"
	case machine == elf.EM_PPC64:
		return "ppc64"
	case machine == elf.EM_S390 && wide:
		return "s390x"
	case machine == elf.EM_LOONGARCH && wide:
		return "loong64"
	}
	return ""
}

// osRelease reads os-release(5).
func (s *scan) osRelease() map[string]string {
	text := s.content("etc/os-release")
	if text == nil {
		text = s.content("usr/lib/os-release")
	}
	return assignments(text)
}

// assignments reads lines NAME=value of a shell, as os-release(5) allows them.
func assignments(text []byte) map[string]string {
	found := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		key, value, ok := strings.Cut(line, "=")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			quote := value[0]
			value = value[1 : n-1]
			if quote == '"' {
				value = strings.NewReplacer(`\\`, `\`, `\"`, `"`, `\$`, `$`, "\\`", "`").Replace(value)
			}
		}
		found[key] = value
	}
	return found
}

type kernel struct{ path, version, initrd string }

// kernel finds the newest kernel and its initrd: /boot of Debian, Fedora,
// SUSE, Alpine and Arch, and /usr/lib/modules/<version>/vmlinuz. A link such as
// Debian's /vmlinuz is used when /boot has no kernel with a version.
func (s *scan) kernel() kernel {
	_, modules := s.names("usr/lib/modules")
	if len(modules) == 0 {
		_, modules = s.names("lib/modules")
	}
	var found []kernel
	consider := func(p, suffix string) {
		e, ok := s.m.Resolve(p)
		if !ok || e.Type != image.File || e.Size == 0 {
			return
		}
		found = append(found, kernel{e.Path, moduleVersion(suffix, modules), s.initrd(suffix)})
	}
	for _, name := range []string{"vmlinuz-", "vmlinux-", "Image-"} {
		for _, p := range s.glob("boot", name+"*") {
			suffix := strings.TrimPrefix(path.Base(p), name)
			if suffix == "" || strings.Contains(suffix, "rescue") || strings.HasSuffix(suffix, ".old") || strings.HasSuffix(suffix, ".hmac") {
				continue
			}
			consider(p, suffix)
		}
	}
	if len(found) == 0 {
		for _, version := range modules {
			consider("usr/lib/modules/"+version+"/vmlinuz", version)
		}
	}
	if len(found) == 0 {
		for _, link := range []string{"vmlinuz", "boot/vmlinuz", "boot/Image"} {
			if e, ok := s.m.Resolve(link); ok {
				_, suffix, _ := strings.Cut(path.Base(e.Path), "-")
				consider(link, suffix)
				break
			}
		}
	}
	if len(found) == 0 {
		return kernel{}
	}
	return slices.MaxFunc(found, func(a, b kernel) int {
		// A kernel without modules is of little use.
		aHas, bHas := slices.Contains(modules, a.version), slices.Contains(modules, b.version)
		if aHas != bHas {
			if aHas {
				return 1
			}
			return -1
		}
		return compareVersions(a.version, b.version)
	})
}

// moduleVersion finds the directory of modules of a kernel: usually its file's
// name ends like it; Alpine's vmlinuz-lts has 6.12.1-0-lts.
func moduleVersion(suffix string, modules []string) string {
	if slices.Contains(modules, suffix) {
		return suffix
	}
	var like []string
	for _, m := range modules {
		if suffix == "" || strings.HasSuffix(m, "-"+suffix) {
			like = append(like, m)
		}
	}
	switch {
	case len(like) > 0:
		return slices.MaxFunc(like, compareVersions)
	case len(modules) == 1 && (suffix == "" || !strings.ContainsAny(suffix[:1], "0123456789")):
		return modules[0]
	}
	return suffix
}

// initrd finds the initrd that belongs to a kernel whose name ends in suffix.
func (s *scan) initrd(suffix string) string {
	names := []string{"boot/initrd.img", "initrd.img", "boot/initrd", "boot/initramfs.img"}
	if suffix != "" {
		names = []string{
			"boot/initrd.img-" + suffix,         // Debian
			"boot/initramfs-" + suffix + ".img", // Fedora, Arch
			"boot/initrd-" + suffix,             // SUSE
			"boot/initramfs-" + suffix,          // Alpine
			"usr/lib/modules/" + suffix + "/initrd",
			"usr/lib/modules/" + suffix + "/initramfs.img",
		}
	}
	for _, name := range names {
		if e, found := s.m.Resolve(name); found && e.Type == image.File && e.Size > 0 {
			return e.Path
		}
	}
	return ""
}

// compareVersions compares as dpkg does: runs of digits as numbers, "~" before
// everything, letters before other characters.
func compareVersions(a, b string) int {
	rank := func(s string) int {
		switch {
		case s == "" || s[0] >= '0' && s[0] <= '9':
			return 0
		case s[0] == '~':
			return -1
		case s[0] >= 'a' && s[0] <= 'z' || s[0] >= 'A' && s[0] <= 'Z':
			return int(s[0])
		}
		return int(s[0]) + 256
	}
	isDigit := func(s string) bool { return s != "" && s[0] >= '0' && s[0] <= '9' }
	for a != "" || b != "" {
		for a != "" && !isDigit(a) || b != "" && !isDigit(b) {
			if x, y := rank(a), rank(b); x != y {
				return x - y
			}
			a, b = a[1:], b[1:]
		}
		number := func(s string) (uint64, string) {
			n := 0
			for n < len(s) && isDigit(s[n:]) {
				n++
			}
			v, _ := strconv.ParseUint("0"+s[:n], 10, 64) // too large: the largest
			return v, s[n:]
		}
		var x, y uint64
		x, a = number(a)
		y, b = number(b)
		if x != y {
			if x < y {
				return -1
			}
			return 1
		}
	}
	return 0
}

// kernelModules are the names of all modules that a kernel has, built in or
// not, with hyphens; nil where that cannot be known.
func (s *scan) kernelModules(version string) map[string]bool {
	var directory string
	for _, d := range []string{"usr/lib/modules/", "lib/modules/"} {
		if e, found := s.m.Resolve(d + version); version != "" && found && e.Type == image.Dir {
			directory = e.Path
			break
		}
	}
	if directory == "" {
		return nil
	}
	has := make(map[string]bool)
	note := func(file string) {
		name, _, _ := strings.Cut(path.Base(file), ".")
		has[strings.ReplaceAll(name, "_", "-")] = true
	}
	for _, e := range below(s.m, directory) {
		if strings.Contains(path.Base(e.Path), ".ko") {
			note(e.Path)
		}
	}
	for line := range strings.Lines(string(s.content(directory + "/modules.builtin"))) {
		note(strings.TrimSpace(line))
	}
	return has
}

// builtIn reports whether a module is part of the kernel itself.
func (s *scan) builtIn(version, module string) bool {
	return slices.ContainsFunc([]string{"usr/lib/modules/", "lib/modules/"}, func(d string) bool {
		return bytes.Contains(s.content(d+version+"/modules.builtin"), []byte("/"+module+".ko\n"))
	})
}

// among are those of names that are in has, in their order.
func among(has map[string]bool, names ...string) []string {
	return slices.DeleteFunc(names, func(name string) bool { return !has[name] })
}

// kernelOptions are those that the image's own kernels start with. A value that
// a shell would have to work out is none.
func (s *scan) kernelOptions() string {
	for _, file := range []string{"etc/kernel/cmdline", "usr/lib/kernel/cmdline"} {
		if text := s.content(file); text != nil {
			return strings.Join(strings.Fields(string(text)), " ")
		}
	}
	settings := assignments(s.content("etc/default/grub"))
	for _, file := range s.glob("etc/default/grub.d", "*.cfg") {
		maps.Copy(settings, assignments(s.content(file)))
	}
	var words []string
	for _, name := range []string{"GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT"} {
		if value := settings[name]; !strings.ContainsAny(value, "$`") {
			words = append(words, strings.Fields(value)...)
		}
	}
	return strings.Join(words, " ")
}

// bootloaders lists what an installation can install from the image itself.
func (s *scan) bootloaders() []string {
	var found []string
	grubInstall := s.program("grub-install") != "" || s.program("grub2-install") != ""
	if grubInstall && (s.has("usr/lib/grub/i386-pc/kernel.img") || s.has("usr/lib/grub/i386-pc/modinfo.sh")) {
		found = append(found, "grub-pc")
	}
	for _, target := range []string{"x86_64-efi", "arm64-efi", "riscv64-efi"} {
		if grubInstall && s.has("usr/lib/grub/"+target+"/modinfo.sh") {
			found = append(found, "grub-efi")
			break
		}
	}
	if len(s.glob("usr/lib/systemd/boot/efi", "systemd-boot*.efi")) > 0 {
		found = append(found, "systemd-boot")
	}
	shim := slices.Concat(s.glob("usr/lib/shim", "shim*.efi*"), s.glob("usr/share/efi/x86_64", "shim*.efi"), s.glob("usr/share/efi/aarch64", "shim*.efi"))
	mkconfig := s.program("grub-mkconfig") != "" || s.program("grub2-mkconfig") != ""
	_, vendors := s.names("boot/efi/EFI")
	for _, v := range vendors {
		theirs := s.glob("boot/efi/EFI/"+v, "shim*.efi")
		shim = append(shim, theirs...)
		if mkconfig && len(theirs) > 0 && len(s.glob("boot/efi/EFI/"+v, "grub*.efi")) > 0 && !slices.Contains(found, "shim-grub") {
			found = append(found, "shim-grub")
		}
	}
	if len(shim) > 0 {
		found = append(found, "shim")
	}
	return found
}

// enabled reports whether systemd, sysvinit or OpenRC starts a service.
func (s *scan) enabled(unit string) bool {
	for _, dir := range []string{"etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"} {
		_, names := s.names(dir)
		for _, name := range names {
			if !strings.HasSuffix(name, ".wants") && !strings.HasSuffix(name, ".requires") {
				continue
			}
			// A link to /dev/null masks; one to the unit need not resolve
			// to count, as systemctl only looks at its name.
			if e, found := s.m.Lookup(dir + "/" + name + "/" + unit + ".service"); found && e.Target != "/dev/null" {
				if mask, found := s.m.Lookup("etc/systemd/system/" + unit + ".service"); !found || mask.Target != "/dev/null" {
					return true
				}
			}
		}
	}
	if !s.has("usr/lib/systemd/systemd") && !s.has("lib/systemd/systemd") {
		return len(s.glob("etc/rcS.d", "S*"+unit)) > 0 || len(s.glob("etc/rc2.d", "S*"+unit)) > 0 ||
			len(s.glob("etc/runlevels/boot", unit)) > 0 || len(s.glob("etc/runlevels/default", unit)) > 0
	}
	return false
}

// network lists the network stacks, those that are started at boot first.
func (s *scan) network() (enabled, others []string) {
	type stack struct {
		name             string
		there, isEnabled bool
	}
	stacks := []stack{
		// netplan's generator runs at every boot.
		{"netplan", s.program("netplan") != "", true},
		{"ifupdown", s.program("ifup") != "", s.enabled("networking")},
		{"networkd", s.has("usr/lib/systemd/systemd-networkd") || s.has("lib/systemd/systemd-networkd"), s.enabled("systemd-networkd")},
		{"networkmanager", s.program("NetworkManager") != "", s.enabled("NetworkManager")},
	}
	for _, st := range stacks {
		switch {
		case st.there && st.isEnabled:
			enabled = append(enabled, st.name)
		case st.there:
			others = append(others, st.name)
		}
	}
	return enabled, others
}

// resolver is "resolved" when systemd-resolved answers the image's programs:
// resolv.conf(5) is a link into its directory, or is missing, and then systemd
// makes that link at boot (tmpfiles.d/systemd-resolve.conf).
func (s *scan) resolver() string {
	if !s.enabled("systemd-resolved") {
		return ""
	}
	if e, there := s.m.Lookup("etc/resolv.conf"); there && (e.Type != image.Symlink || !strings.Contains(e.Target, "run/systemd/resolve/")) {
		return ""
	}
	return "resolved"
}

// initramfs names the program that makes initrds.
func (s *scan) initramfs() string {
	switch {
	case s.program("dracut") != "" && s.program("update-initramfs") == "":
		return "dracut"
	case s.program("mkinitramfs") != "":
		return "initramfs-tools"
	case s.program("dracut") != "":
		return "dracut"
	case s.program("mkinitcpio") != "":
		return "mkinitcpio"
	case s.program("mkinitfs") != "":
		return "mkinitfs"
	}
	return ""
}

// unlock lists how an initrd made in the image can open a LUKS volume.
func (s *scan) unlock(initramfs string) []string {
	var found []string
	clevis := false
	switch initramfs {
	case "initramfs-tools":
		if s.has("usr/share/initramfs-tools/hooks/cryptroot") {
			found = append(found, "passphrase")
			// cryptsetup-initramfs copies keys only where this is set.
			if assignments(s.content("etc/cryptsetup-initramfs/conf-hook"))["KEYFILE_PATTERN"] != "" {
				found = append(found, "keyfile")
			}
		}
		clevis = s.has("usr/share/initramfs-tools/hooks/clevis")
	case "dracut":
		if len(s.glob("usr/lib/dracut/modules.d", "*crypt")) > 0 && s.program("cryptsetup") != "" {
			found = append(found, "passphrase", "keyfile")
		}
		clevis = len(s.glob("usr/lib/dracut/modules.d", "*clevis")) > 0
		if len(s.glob("usr/lib/dracut/modules.d", "*tpm2-tss")) > 0 && s.tpm2Token() {
			found = append(found, "tpm2")
		}
	case "mkinitcpio":
		// The other hook, encrypt, knows only words of its own on the kernel's
		// command line.
		hooks := assignments(s.content("etc/mkinitcpio.conf"))["HOOKS"]
		if slices.Contains(strings.Fields(strings.Trim(hooks, "()")), "sd-encrypt") {
			found = append(found, "passphrase", "keyfile")
			if s.tpm2Token() {
				found = append(found, "tpm2")
			}
		}
	}
	if clevis {
		found = append(found, "clevis")
	}
	return found
}

// tpm2Token reports whether cryptsetup has systemd's plug-in for TPM 2 tokens.
func (s *scan) tpm2Token() bool {
	for _, lib := range []string{"usr/lib", "usr/lib64"} {
		dirs := []string{lib + "/cryptsetup"}
		_, names := s.names(lib)
		for _, name := range names {
			if strings.Contains(name, "-linux-") {
				dirs = append(dirs, lib+"/"+name+"/cryptsetup")
			}
		}
		for _, dir := range dirs {
			if s.has(dir + "/libcryptsetup-token-systemd-tpm2.so") {
				return true
			}
		}
	}
	return false
}

// packages returns the sorted lines "name version architecture" of dpkg, apk,
// pacman and rpm, and which of them there are.
func (s *scan) packages() (list []byte, databases []string) {
	var lines []string
	note := func(database string, before int) {
		if len(lines) > before {
			databases = append(databases, database)
		}
	}
	add := func(fields map[string]string, name, version, arch string) {
		if fields[name] != "" {
			lines = append(lines, fields[name]+" "+fields[version]+" "+fields[arch]+"\n")
		}
	}
	dpkg := [][]byte{s.content("var/lib/dpkg/status")}
	for _, p := range s.glob("var/lib/dpkg/status.d", "*") {
		if !strings.HasSuffix(p, ".md5sums") {
			dpkg = append(dpkg, s.content(p))
		}
	}
	for i, text := range dpkg {
		for fields := range paragraphs(text, ": ") {
			if i > 0 || strings.HasSuffix(fields["Status"], " installed") {
				add(fields, "Package", "Version", "Architecture")
			}
		}
	}
	note("dpkg", 0)
	before := len(lines)
	for fields := range paragraphs(s.content("lib/apk/db/installed"), ":") {
		add(fields, "P", "V", "A")
	}
	note("apk", before)
	before = len(lines)
	_, local := s.names("var/lib/pacman/local")
	for _, name := range local {
		add(pacmanDesc(s.content("var/lib/pacman/local/"+name+"/desc")), "NAME", "VERSION", "ARCH")
	}
	note("pacman", before)
	for _, path := range rpmDatabases() {
		e, found := s.m.Resolve(path)
		if !found || e.Type != image.File {
			continue
		}
		packages, err := rpmPackages(s.contents[e.Digest])
		if err != nil {
			databases = append(databases, "rpm (not read)")
			break
		}
		lines = append(lines, packages...)
		databases = append(databases, "rpm")
		break
	}
	slices.Sort(lines)
	return []byte(strings.Join(slices.Compact(lines), "")), databases
}

// paragraphs gives the fields of each paragraph of a database of dpkg or apk.
// Continued lines are left out.
func paragraphs(text []byte, separator string) func(yield func(map[string]string) bool) {
	return func(yield func(map[string]string) bool) {
		fields := make(map[string]string)
		for line := range strings.Lines(string(text)) {
			line = strings.TrimRight(line, "\n")
			if line == "" {
				if len(fields) > 0 && !yield(fields) {
					return
				}
				fields = make(map[string]string)
				continue
			}
			if key, value, found := strings.Cut(line, separator); found && line[0] != ' ' {
				fields[key] = value
			}
		}
		if len(fields) > 0 {
			yield(fields)
		}
	}
}

// pacmanDesc reads "%NAME%\nvalue\n\n".
func pacmanDesc(text []byte) map[string]string {
	fields := make(map[string]string)
	key := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if len(line) > 2 && line[0] == '%' && line[len(line)-1] == '%' {
			key = line[1 : len(line)-1]
		} else if line != "" && fields[key] == "" {
			fields[key] = line
		}
	}
	return fields
}

// fileSystems lists what the image can make or check.
func (s *scan) fileSystems() []string {
	found := make(map[string]bool)
	for _, dir := range programDirs() {
		_, names := s.names(dir)
		for _, name := range names {
			for _, prefix := range []string{"mkfs.", "fsck."} {
				if fs, ok := strings.CutPrefix(name, prefix); ok && fs != "nfs" && s.program(name) != "" {
					found[fs] = true
				}
			}
		}
	}
	if s.program("mkswap") != "" {
		found["swap"] = true
	}
	var all []string
	for fs := range found {
		all = append(all, fs)
	}
	slices.Sort(all)
	return all
}
