package bootloader

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/firstlight/firstlight/installer/boot"
)

// Settings are the lines of /etc/default/grub that make GRUB boot what was
// chosen: the same command line as kexec's, on the same consoles.
func Settings(c boot.Choice) string {
	var words []string
	for _, part := range slices.Concat(c.RootOptions, []string{c.Defaults}, c.Consoles, []string{c.Options}) {
		if part != "" {
			words = append(words, part)
		}
	}
	lines := []string{
		"# Written when this system was installed. These lines win over /etc/default/grub.",
		"GRUB_DEFAULT=0",
		"GRUB_TIMEOUT_STYLE=menu",
		"GRUB_TIMEOUT=2",
		"GRUB_RECORDFAIL_TIMEOUT=2",
		"GRUB_CMDLINE_LINUX_DEFAULT=''",
		// Options hold no single quote (boot.CheckOptions).
		"GRUB_CMDLINE_LINUX='" + strings.Join(words, " ") + "'",
		"GRUB_DISABLE_OS_PROBER=true",
	}
	serialConsole := regexp.MustCompile(`^console=ttyS(\d+)(?:,(\d+))?`)
	for _, console := range c.Consoles {
		if m := serialConsole.FindStringSubmatch(console); m != nil {
			speed := m[2]
			if speed == "" {
				speed = "9600" // the kernel's default, serial-console.rst
			}
			lines = append(lines, "GRUB_TERMINAL='console serial'",
				"GRUB_SERIAL_COMMAND='serial --unit="+m[1]+" --speed="+speed+"'")
			break
		}
	}
	return strings.Join(lines, "\n") + "\n"
}

// CheckMenu says whether menu, a grub.cfg, has an entry that boots t's
// kernel with its initrd and every word of its command line.
func CheckMenu(menu string, t Target) error {
	kernel, initrd := path.Base(t.Choice.Kernel), path.Base(t.Choice.Initrd)
	linuxLine := regexp.MustCompile(`(?m)^\s*linux(?:efi|16)?\s+(\S+)\s*(.*)$`)
	initrdLine := regexp.MustCompile(`(?m)^\s*initrd(?:efi|16)?\s+(.*)$`)
	var nearest error
	for _, at := range linuxLine.FindAllStringSubmatchIndex(menu, -1) {
		name, arguments := menu[at[2]:at[3]], strings.Fields(menu[at[4]:at[5]])
		if path.Base(name) != kernel {
			continue
		}
		var lacks []string
		for _, word := range append([]string{"root=UUID=" + t.RootUUID}, strings.Fields(t.Choice.CommandLine)...) {
			if !slices.Contains(arguments, word) && !slices.Contains(lacks, word) {
				lacks = append(lacks, word)
			}
		}
		if i := initrdLine.FindStringSubmatch(menu[at[1]:]); t.Choice.Initrd != "" &&
			(i == nil || !slices.ContainsFunc(strings.Fields(i[1]), func(s string) bool { return path.Base(s) == initrd })) {
			lacks = append(lacks, "the initrd "+initrd)
		}
		if len(lacks) == 0 {
			return nil
		}
		if nearest == nil {
			nearest = fmt.Errorf("the entry of %s lacks %s", kernel, strings.Join(lacks, ", "))
		}
	}
	if nearest == nil {
		nearest = fmt.Errorf("it has no entry of the kernel %s", kernel)
	}
	return nearest
}
