// Package sanitize has a disk forget its contents by its own means: NVMe's
// format and sanitize with cryptographic erasure, ATA's security erase.
//
// Which of them a disk has it says itself ([Ask]). Nothing stands in for what a
// disk does not have, and a command that would erase more than the one disk (a
// namespace of its controller that belongs to somebody else) counts as not had.
package sanitize

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/firstlight/firstlight/storage"
)

// The means, as they stand in an inventory.
const (
	NVMeFormat   = "nvme-format"   // Format NVM, cryptographic erase
	NVMeSanitize = "nvme-sanitize" // Sanitize, crypto erase
	ATAEnhanced  = "ata-enhanced"  // SECURITY ERASE UNIT, enhanced
	ATASecurity  = "ata-security"  // SECURITY ERASE UNIT
)

// Ask asks a disk which means it has. It changes nothing. An empty answer comes
// with the reason.
func Ask(node string) (means, reason string) {
	name := filepath.Base(node)
	var ask func(*os.File) (string, string, error)
	switch {
	case strings.HasPrefix(name, "nvme"):
		ask = askNVMe
	case strings.HasPrefix(name, "sd"):
		ask = askATA
	default:
		return "", "disks of its kind have no command for it"
	}
	f, err := os.OpenFile(node, os.O_RDONLY, 0)
	if err != nil {
		return "", fmt.Sprintf("it could not be asked: %v", err)
	}
	defer f.Close() // only asked
	means, reason, err = ask(f)
	if err != nil {
		return "", fmt.Sprintf("it could not be asked: %v", err)
	}
	return means, reason
}

// Run has the disk at node forget its contents by the means that [Ask] told, and
// returns when it has. Everything on the disk is lost. Errors have code STO-021.
//
// ATA's security erase takes long, and needs a password while it runs: when the
// machine loses its power meanwhile, the disk stays locked with the password
// "firstlight" until it is erased again.
func Run(ctx context.Context, node, means string) (err error) {
	defer func() {
		if err != nil {
			err = storage.Errorf(storage.CodeErase, "%s of %s: %w", means, node, err)
		}
	}()
	f, err := os.OpenFile(node, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// The disk may have been exchanged since it was asked.
	ask := askATA
	if strings.HasPrefix(means, "nvme") {
		ask = askNVMe
	}
	switch now, reason, err := ask(f); {
	case err != nil:
		return err
	case now != means:
		return fmt.Errorf("the disk no longer has it: %s", reason)
	}
	switch means {
	case NVMeFormat:
		return formatNVMe(f)
	case NVMeSanitize:
		return sanitizeNVMe(ctx, f)
	case ATAEnhanced, ATASecurity:
		return eraseATA(func(command, protocol byte, data []byte, limit time.Duration) error {
			return ata(f, command, protocol, data, limit)
		}, means == ATAEnhanced)
	}
	return errors.New("there is no such means")
}

// How long a disk may take, and how often it is asked whether it has ended.
const (
	formatLimit = 4 * time.Hour
	ataLimit    = 24 * time.Hour // an overwriting disk says how long, up to 8.5 h, or more than that
	askAgain    = 500 * time.Millisecond
)

// control runs a system call on an open file.
func control(f *os.File, call func(fd uintptr) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = call(fd) }); err != nil {
		return err
	}
	return inner
}
