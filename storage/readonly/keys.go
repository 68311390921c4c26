package readonly

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firstlight/firstlight/storage/luks"
	"github.com/firstlight/firstlight/storage/tool"
	"github.com/firstlight/firstlight/storage/tpm2"
)

const (
	mostKeys = 64
	// mostKeyBytes is as much as cryptsetup reads of a key file unless told
	// otherwise (cryptsetup --help: maximum keyfile size 8192 kB) would allow;
	// real ones have at most a few KiB.
	mostKeyBytes = 64 << 10
	mostTabBytes = 64 << 10
	// A wrong key costs a key derivation, which may take seconds and a GiB.
	mostGuesses = 4
)

// key is the content of a key file and the volume that it is for.
type key struct {
	uuid  string // of the LUKS volume; "" when the table names it otherwise
	bytes []byte
}

// readKeys reads the key files that /etc/crypttab names (crypttab(5)), of the
// tree at top or of its subvolumes. Keys that are not there are no error.
func readKeys(top string) ([]key, error) {
	root, err := os.OpenRoot(top)
	if err != nil {
		return nil, err
	}
	defer root.Close() // only read from
	tables, err := fs.Glob(directory(top), "*/etc/crypttab")
	if err != nil {
		return nil, err
	}
	var keys []key
	var errs []error
	for _, table := range append([]string{"etc/crypttab"}, tables...) {
		text, err := readSmall(root, table, 0, mostTabBytes)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, e := range parseCrypttab(text) {
			if len(keys) >= mostKeys {
				break
			}
			name := filepath.Join(filepath.Dir(filepath.Dir(table)), e.file)
			b, err := readSmall(root, name, e.offset, e.size)
			switch {
			case errors.Is(err, fs.ErrNotExist):
			case err != nil:
				errs = append(errs, err)
			case len(b) > 0:
				keys = append(keys, key{e.uuid, b})
			}
		}
	}
	return keys, errors.Join(errs...)
}

// readSmall reads at most n bytes of a regular file; links out of the root are
// refused by it.
func readSmall(root *os.Root, name string, offset, n int64) ([]byte, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read from
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", name)
	}
	b, err := io.ReadAll(io.NewSectionReader(f, offset, n))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return b, nil
}

// entry is a line of crypttab with a key file.
type entry struct {
	uuid         string // lower case
	file         string // relative to the root
	offset, size int64  // bytes of the file
}

func parseCrypttab(text []byte) []entry {
	var entries []entry
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 3 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		file := unescape(fields[2])
		if !strings.HasPrefix(file, "/") || strings.HasPrefix(file, "/dev/") {
			continue // none, -, or a device
		}
		e := entry{file: strings.TrimPrefix(filepath.Clean(file), "/"), size: mostKeyBytes}
		source := strings.ToLower(unescape(fields[1]))
		for _, prefix := range []string{"uuid=", "/dev/disk/by-uuid/"} {
			if uuid, ok := strings.CutPrefix(source, prefix); ok {
				e.uuid = strings.Trim(uuid, `"`)
			}
		}
		plain := false
		if len(fields) > 3 {
			for option := range strings.SplitSeq(fields[3], ",") {
				name, value, _ := strings.Cut(option, "=")
				n, err := strconv.ParseInt(value, 10, 64)
				switch {
				case name == "keyfile-offset" && err == nil && n >= 0:
					e.offset = n
				case name == "keyfile-size" && err == nil && n > 0 && n <= mostKeyBytes:
					e.size = n
				case name == "swap", name == "plain", name == "tmp":
					plain = true // a new key each time
				}
			}
		}
		if !plain {
			entries = append(entries, e)
		}
	}
	return entries
}

// unescape undoes \040 and its like.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// decrypt opens the LUKS volumes for which there is a key and reports whether it
// opened any. A volume whose keys were all wrong is not tried with them again.
func (a *Attached) decrypt(ctx context.Context) (any bool) {
	var closed []place
	for _, p := range a.luks {
		opened, err := a.unlock(ctx, p)
		if err != nil {
			a.warn("%s (luks) cannot be read: %s", p.name, short(err))
			continue
		}
		if !opened {
			closed = append(closed, p)
		}
		any = any || opened
	}
	a.luks = closed
	return any
}

// unlock opens p with the keys that were found so far, or with what the TPM
// releases for it; opened is false when none is for it.
func (a *Attached) unlock(ctx context.Context, p place) (opened bool, err error) {
	var fitting [][]byte
	guesses := 0
	for _, k := range a.keys {
		switch {
		case k.uuid == strings.ToLower(p.uuid):
			fitting = append([][]byte{k.bytes}, fitting...)
		case k.uuid == "" && guesses < mostGuesses:
			guesses++
			fitting = append(fitting, k.bytes)
		}
	}
	if len(fitting) == 0 && (a.options.Unseal == nil || a.asked[p.uuid]) {
		return false, nil
	}
	device, err := a.loop(p.region)
	if err != nil {
		return false, err
	}
	for _, k := range fitting {
		if err = a.open(ctx, p, device, k); err == nil || !errors.Is(err, luks.ErrKey) {
			if err == nil {
				a.remember(p, k)
			}
			return err == nil, err
		}
	}
	if a.options.Unseal == nil || a.asked[p.uuid] {
		return false, err
	}
	a.asked[p.uuid] = true // it answers the same in every round
	return a.unseal(ctx, p, device)
}

// open maps a volume with one key.
func (a *Attached) open(ctx context.Context, p place, device string, key []byte) error {
	name := a.mapName()
	err := a.tool(ctx, tool.Cmd{
		Name:  "cryptsetup",
		Args:  []string{"open", "--type", "luks", "--readonly", "--batch-mode", "--tries", "1", "--key-file=-", device, name},
		Stdin: key,
	})
	if err = luks.Explain("opening "+p.name, err); err != nil {
		return err
	}
	return a.mapping(ctx, func() (string, error) { return dmNode(name) }, p.name+", decrypted", luks.Close(name))
}

// remember keeps the key of a volume for which that was asked.
func (a *Attached) remember(p place, key []byte) {
	wanted := slices.ContainsFunc(a.options.Keep, func(uuid string) bool { return strings.EqualFold(uuid, p.uuid) })
	if wanted {
		a.opened[strings.ToLower(p.uuid)] = Opened{Key: bytes.Clone(key), Contents: a.inside[p.name+", decrypted"]}
	}
}

// mostTokens is how many tokens of one volume the TPM is asked for.
const mostTokens = 4

// unseal opens a volume with a key that the TPM releases; opened is false when
// the volume has no token for a TPM.
func (a *Attached) unseal(ctx context.Context, p place, device string) (opened bool, err error) {
	tokens, err := a.tokens(ctx, p, device)
	if err != nil {
		return false, err
	}
	for _, token := range tokens[:min(len(tokens), mostTokens)] {
		var key []byte
		if key, err = a.options.Unseal(ctx, token); err != nil {
			continue
		}
		err = a.open(ctx, p, device, key)
		clear(key)
		if err == nil {
			return true, nil
		}
	}
	return false, err
}

// tokens are the LUKS2 tokens of a volume that name a TPM, as JSON.
func (a *Attached) tokens(ctx context.Context, p place, device string) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, a.options.Step)
	defer cancel()
	out, err := a.runner.Run(ctx, luks.Header(device))
	if errors.Is(luks.Explain("", err), luks.ErrDevice) || errors.Is(luks.Explain("", err), luks.ErrParameters) {
		return nil, nil // LUKS1 has none
	}
	if err != nil {
		return nil, luks.Explain("reading the header of "+p.name, err)
	}
	var header struct {
		Tokens map[string]json.RawMessage `json:"tokens"`
	}
	if err := json.Unmarshal(out.Stdout, &header); err != nil {
		return nil, fmt.Errorf("reading the header of %s: %w", p.name, err)
	}
	var tokens [][]byte
	for _, number := range slices.Sorted(maps.Keys(header.Tokens)) {
		var kind struct {
			Type string `json:"type"`
		}
		if json.Unmarshal(header.Tokens[number], &kind) == nil && kind.Type == tpm2.TokenType {
			tokens = append(tokens, header.Tokens[number])
		}
	}
	return tokens, nil
}
