package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Hostname, Address and so on are what the machine of the lab shall become.
const (
	Hostname   = "demo0"
	Domain     = "demo.test"
	Address    = "10.0.2.15"
	Netmask    = "255.255.255.0"
	Gateway    = hostInGuest
	Nameserver = "10.0.2.3"
	// DiskBytes is the size of its disk.
	DiskBytes = 8 << 30
)

// Mounts are the encrypted volumes that it shall have.
func Mounts() []string { return []string{"/home", "/var/log", "/data/0"} }

// CommandLine is what the installer's kernel is started with: both consoles,
// the serial one last, which makes it /dev/console.
const CommandLine = "console=tty0 console=ttyS0,115200"

// Config is a machine's configuration, as it lies on the boot server: file
// name → content.
type Config map[string][]byte

// NewConfig is the configuration of the lab's machine: one NIC, the default
// layout of the README with kexec, the image of the site.
func (s *Site) NewConfig(imageserver string) (Config, error) {
	type object = map[string]any
	config, err1 := json.MarshalIndent(object{
		"Machine": object{"Hostname": Hostname, "HostIpAddress": Address, "HostMacAddress": "52:54:00:12:34:56"},
		"Subnets": []object{{"Id": "lab", "IpGateway": Gateway, "IpMask": Netmask, "DomainName": Domain, "DomainNameServers": []string{Nameserver}}},
	}, "", "  ")
	layout, err2 := json.MarshalIndent(object{
		"BootDriveLayout": []object{
			{"FileSystemType": "ext4", "MountPoint": "/", "MinimumFreeBytes": 2 << 30},
			{"FileSystemType": "ext4", "MountPoint": "/home", "MinimumFreeBytes": 1 << 30},
			{"FileSystemType": "ext4", "MountPoint": "/var/log", "MinimumFreeBytes": 512 << 20},
		},
		"ExtraMountPointsBasename": "/data/", "Encrypt": true, "UseKexec": true,
	}, "", "  ")
	return Config{
		"config.json":         append(config, '\n'),
		"storage-layout.json": append(layout, '\n'),
		"imagename":           []byte(s.Image + "\n"),
		"imageserver":         []byte(imageserver + "\n"),
	}, errors.Join(err1, err2)
}

// InGuest is the address of a server on the host's loopback as a machine sees
// it.
func InGuest(port int) string { return fmt.Sprintf("%s:%d", hostInGuest, port) }

// bootFile is the iPXE script that the DHCP server names.
const bootFile = "boot.ipxe"

// WriteTFTP writes a directory for a TFTP server: the boot script, kernel and
// initramfs, and the configuration.
func (s *Site) WriteTFTP(dir string, c Config) error {
	files := Config{bootFile: []byte("#!ipxe\n" +
		"kernel tftp://${next-server}/vmlinuz " + CommandLine + "\n" +
		"initrd tftp://${next-server}/initramfs\n" +
		"boot\n")}
	for name, data := range c {
		files[name] = data
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("writing the boot server's files: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("writing the boot server's files: %w", err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return fmt.Errorf("writing the boot server's files: %w", err)
		}
	}
	for name, file := range map[string]string{"vmlinuz": s.Kernel(), "initramfs": s.Initramfs()} {
		if err := copyFile(filepath.Join(dir, name), file); err != nil {
			return fmt.Errorf("writing the boot server's files: %w", err)
		}
	}
	return nil
}
