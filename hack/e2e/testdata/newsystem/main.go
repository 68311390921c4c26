// Newsystem is everything that runs in the images of TestFaces. As the first
// process it says what kernel command line and what real-time clock it finds,
// and switches the machine off. By the names of GRUB's programs it does as
// little of their work as an installation needs. By the name of look it says
// what there is in its root.
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

func main() {
	var err error
	switch name := filepath.Base(os.Args[0]); {
	case os.Getpid() == 1:
		err = start()
		fmt.Println("NEW SYSTEM ends:", err)
		syscall.Sync()
		// Returns only on failure, and then the kernel panics: both end the test.
		_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	case name == "grub-mkconfig":
		err = menu()
	case name == "look":
		err = look()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func start() error {
	for _, kind := range []string{"proc", "sysfs"} {
		if err := os.MkdirAll("/"+kind, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(kind, "/"+kind, kind, 0, ""); err != nil {
			return err
		}
	}
	for what, file := range map[string]string{"cmdline": "/proc/cmdline", "date": "/sysfs/class/rtc/rtc0/date"} {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		fmt.Printf("NEW SYSTEM %s=%s\n", what, bytes.TrimSpace(data))
		// Firmware names the initrd, kexec does not.
		if what == "cmdline" && bytes.Contains(data, []byte("hang-after-kexec")) && !bytes.Contains(data, []byte("initrd=")) {
			fmt.Println("NEW SYSTEM hangs")
			time.Sleep(time.Hour)
		}
	}
	return nil
}

// menu is `grub-mkconfig -o FILE`.
func menu() error {
	table, err := os.ReadFile("/etc/fstab")
	if err != nil {
		return err
	}
	root := ""
	for line := range strings.Lines(string(table)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[1] == "/" {
			root = fields[0]
		}
	}
	settings, err := os.ReadFile("/etc/default/grub")
	if err != nil {
		return err
	}
	words := ""
	for line := range strings.Lines(string(settings)) {
		if value, found := strings.CutPrefix(line, "GRUB_CMDLINE_LINUX="); found {
			words = strings.Trim(strings.TrimSpace(value), `"'`)
		}
	}
	kernels, err := filepath.Glob("/boot/vmlinuz-*")
	if err != nil || len(kernels) == 0 {
		return fmt.Errorf("no kernel: %w", err)
	}
	version := strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-")
	entry := fmt.Sprintf("linux %s root=%s ro %s\ninitrd /boot/initrd.img-%s\n", kernels[0], root, words, version)
	if err := os.MkdirAll("/boot/grub", 0o755); err != nil {
		return err
	}
	return os.WriteFile(os.Args[2], []byte(entry), 0o644)
}

func look() error {
	for _, file := range []string{"/dev/null", "/proc/self/exe", "/sys/class/net", "/tmp/mark", "/etc/os-release"} {
		if _, err := os.Stat(file); err != nil {
			return err
		}
	}
	fmt.Println("everything is there")
	return nil
}
