// Package luks makes the command lines for cryptsetup(8): LUKS2 volumes with
// random keys. Keys go in on standard input only.
//
// It runs nothing. Keys of this package are full random keys, so key derivation
// is minimal: there is no passphrase to slow a guesser down for.
package luks

import (
	"errors"
	"strconv"

	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/storage/tool"
)

// KeySize is the length of a volume's key in bytes.
const KeySize = 64

// LabelLength is the longest label of a LUKS2 header, in bytes.
const LabelLength = 47

// Iterations of PBKDF2: the least that cryptsetup accepts (RFC 8018 puts its
// floor there). The key has 512 bits of entropy already.
const iterations = "1000"

// Format makes a LUKS2 header on a device, which is lost without a question; key
// opens its slot 0.
func Format(device string, l storage.LUKS, label string, key []byte) tool.Cmd {
	return tool.Cmd{
		Name: "cryptsetup",
		Args: []string{
			"luksFormat", "--type", "luks2", "--batch-mode",
			"--cipher", "aes-xts-plain64", "--key-size", "512",
			"--hash", "sha256",
			"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", iterations,
			"--uuid", l.UUID,
			"--label", label[:min(len(label), LabelLength)],
			"--key-file=-",
			device,
		},
		Stdin: key,
	}
}

// Open maps a volume to /dev/mapper/<mapping>.
func Open(device, mapping string, key []byte) tool.Cmd {
	return tool.Cmd{
		Name:  "cryptsetup",
		Args:  []string{"open", "--type", "luks", "--batch-mode", "--key-file=-", device, mapping},
		Stdin: key,
	}
}

// Add gives a volume a further key slot. both is a key that opens it already,
// of first bytes, and behind it the new one.
func Add(device string, slot int, both []byte, first int) tool.Cmd {
	return tool.Cmd{
		Name: "cryptsetup",
		Args: []string{
			"luksAddKey", "--batch-mode",
			"--hash", "sha256", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", iterations,
			"--key-file=-", "--keyfile-size", strconv.Itoa(first),
			"--new-keyfile-size", strconv.Itoa(len(both) - first), "--new-key-slot", strconv.Itoa(slot),
			device, "-",
		},
		Stdin: both,
	}
}

// Test tries a key on one slot, or with a negative number on all, and maps
// nothing.
func Test(device string, slot int, key []byte) tool.Cmd {
	args := []string{"open", "--type", "luks", "--batch-mode", "--test-passphrase"}
	if slot >= 0 {
		args = append(args, "--key-slot", strconv.Itoa(slot))
	}
	return tool.Cmd{Name: "cryptsetup", Args: append(args, "--key-file=-", device), Stdin: key}
}

// Header prints a LUKS2 header's metadata as JSON; nothing in it is secret.
func Header(device string) tool.Cmd {
	return tool.Cmd{Name: "cryptsetup", Args: []string{"luksDump", "--dump-json-metadata", device}}
}

// ImportToken writes a token, JSON, into a volume's header under that number.
func ImportToken(device string, number int, token []byte) tool.Cmd {
	return tool.Cmd{Name: "cryptsetup", Args: []string{"token", "import", "--token-id", strconv.Itoa(number), "--json-file=-", device}, Stdin: token}
}

// ExportToken prints the token of that number.
func ExportToken(device string, number int) tool.Cmd {
	return tool.Cmd{Name: "cryptsetup", Args: []string{"token", "export", "--token-id", strconv.Itoa(number), device}}
}

// Close removes a mapping.
func Close(mapping string) tool.Cmd {
	return tool.Cmd{Name: "cryptsetup", Args: []string{"close", mapping}}
}

// What cryptsetup's exit status means (cryptsetup(8), RETURN CODES). The errors
// of [Explain] wrap them.
var (
	ErrParameters = errors.New("cryptsetup was given wrong parameters")
	ErrKey        = errors.New("no permission: the key does not open the volume")
	ErrMemory     = errors.New("cryptsetup ran out of memory")
	ErrDevice     = errors.New("the device is wrong: missing, too small, or no LUKS volume")
	ErrBusy       = errors.New("the device exists already or is busy")
	ErrFailed     = errors.New("cryptsetup failed")
)

var statuses = [...]struct {
	err  error
	code string
}{
	1: {ErrParameters, storage.CodeLUKSParameter},
	2: {ErrKey, storage.CodeLUKSKey},
	3: {ErrMemory, storage.CodeLUKSMemory},
	4: {ErrDevice, storage.CodeLUKSDevice},
	5: {ErrBusy, storage.CodeLUKSBusy},
}

// Explain gives the error of a run of cryptsetup its meaning and a code from
// LUK-001 to LUK-006. Other errors, and nil, come back as they are. doing says
// what was tried: "opening /dev/vda3".
func Explain(doing string, err error) error {
	var exit *tool.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	meaning, code := ErrFailed, storage.CodeLUKS
	if exit.Status > 0 && exit.Status < len(statuses) {
		meaning, code = statuses[exit.Status].err, statuses[exit.Status].code
	}
	return storage.Errorf(code, "%s: %w: %w", doing, meaning, err)
}
