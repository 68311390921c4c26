package takeover

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage"
)

// Facts are what a host says of itself.
type Facts struct {
	Arch      string // in Go's words
	Kernel    string // release
	Hostname  string
	System    string // of os-release(5)
	User      int    // 0 for root
	Container string // kind of container, empty for a machine
	// Kexec says that the kernel can do it; Disabled that it was switched off
	// until the next start; Lockdown is the kernel's: none, integrity,
	// confidentiality.
	Kexec, Disabled bool
	Lockdown        string
	// Program is the host's own kexec(8), empty where it has none.
	Program   string
	Available uint64 // bytes of memory that can be had
	Room      uint64 // bytes that fit into /run
	Consoles  []string
	MACs      []netconfig.MAC
	Serial    string
	UUID      string
	Boot      string // boot_id
}

// script asks, and changes nothing. It is for any POSIX shell.
const script = `PATH=$PATH:/usr/sbin:/sbin
say() { printf '%s=%s\n' "$1" "$(printf '%s' "$2" | tr '\n' ' ')"; }
first() { head -n 1 "$1" 2>/dev/null; }
say arch "$(uname -m)"
say kernel "$(uname -r)"
say hostname "$(uname -n)"
say system "$(sed -n 's/^PRETTY_NAME=//p' /etc/os-release 2>/dev/null)"
say user "$(id -u)"
say container "$(tr '\0' '\n' </proc/1/environ 2>/dev/null | sed -n 's/^container=//p')"
[ -e /.dockerenv ] && say container docker
[ -e /sys/kernel/kexec_loaded ] && say kexec 1
say disabled "$(first /proc/sys/kernel/kexec_load_disabled)"
say lockdown "$(first /sys/kernel/security/lockdown)"
say program "$(command -v kexec)"
say available "$(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo)"
say room "$(df -kP /run 2>/dev/null | sed -n '2s/  */ /gp' | cut -d ' ' -f 4)"
say cmdline "$(first /proc/cmdline)"
say serial "$(first /sys/class/dmi/id/product_serial)"
say uuid "$(first /sys/class/dmi/id/product_uuid)"
say boot "$(first /proc/sys/kernel/random/boot_id)"
for n in /sys/class/net/*; do
	[ -e "$n/device" ] && say mac "$(first "$n/address")"
done
exit 0
`

// Look asks the host what it is.
func (r *Remote) Look(ctx context.Context) (Facts, error) {
	out, err := r.run(ctx, "sh", strings.NewReader(script))
	if err != nil {
		return Facts{}, fmt.Errorf("asking %s what it is: %w", r.login.Host, err)
	}
	return parseFacts(out), nil
}

func parseFacts(text string) (f Facts) {
	f.User = -1
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimRight(line, "\n"), "=")
		value = strings.TrimSpace(value)
		number, _ := strconv.ParseUint(value, 10, 64) // 0 where it is none
		switch name {
		case "arch":
			f.Arch = map[string]string{"x86_64": "amd64", "aarch64": "arm64"}[value]
			if f.Arch == "" {
				f.Arch = value
			}
		case "kernel":
			f.Kernel = value
		case "hostname":
			f.Hostname = value
		case "system":
			f.System = strings.Trim(value, `"'`)
		case "user":
			if value != "" {
				f.User = int(number)
			}
		case "container":
			f.Container = value
		case "kexec":
			f.Kexec = true
		case "disabled":
			f.Disabled = value != "" && value != "0"
		case "lockdown":
			// "none [integrity] confidentiality": the one in brackets holds.
			if _, after, found := strings.Cut(value, "["); found {
				f.Lockdown, _, _ = strings.Cut(after, "]")
			}
		case "program":
			f.Program = value
		case "available":
			f.Available = number << 10
		case "room":
			f.Room = number << 10
		case "cmdline":
			for word := range strings.FieldsSeq(value) {
				if strings.HasPrefix(word, "console=") {
					f.Consoles = append(f.Consoles, word)
				}
			}
		case "serial":
			f.Serial = value
		case "uuid":
			f.UUID = strings.ToLower(value)
		case "boot":
			f.Boot = value
		case "mac":
			if mac, err := netconfig.ParseMAC(value); err == nil && !mac.IsZero() {
				f.MACs = append(f.MACs, mac)
			}
		}
	}
	return f
}

// Memory that a take-over needs besides the files themselves: the kernel keeps a
// copy of them, and the installer wants some to start with, in bytes.
const (
	copies  = 2
	startup = 256 << 20
)

// Refuse says why the host cannot be taken over by a kernel for arch and files of
// so many bytes together; nil when it can.
func (f Facts) Refuse(arch string, bytes uint64) error {
	unable := func(format string, args ...any) error { return fail(CodeUnable, nil, format, args...) }
	switch need := copies*bytes + startup; {
	case f.User != 0:
		return unable("only root may start another kernel: log in as root")
	case f.Container != "":
		return unable("it is a container (%s), whose kernel is that of another machine", f.Container)
	case f.Arch != arch:
		return unable("it is %s, and the installer's kernel is for %s", f.Arch, arch)
	case !f.Kexec:
		return unable("its kernel %s was built without kexec", f.Kernel)
	case f.Disabled:
		return unable("its kernel forbids kexec until the next start (kernel.kexec_load_disabled is 1): restart it without that setting in /etc/sysctl.d")
	case f.Lockdown != "" && f.Lockdown != "none":
		return unable("its kernel is locked down (%s), as it is under Secure Boot: it starts signed kernels only. Boot the installer over the network or from a medium", f.Lockdown)
	case f.Available > 0 && f.Available < need:
		return unable("it has %s of memory to spare, and %s are needed", storage.Bytes(f.Available), storage.Bytes(need))
	case f.Room > 0 && f.Room < bytes:
		return unable("/run has room for %s, and %s are needed", storage.Bytes(f.Room), storage.Bytes(bytes))
	}
	return nil
}
