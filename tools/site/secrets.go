package site

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/firstlight/firstlight/tools/pki"
)

// mostSecret bounds one file that is handed out, in bytes.
const mostSecret = 256 << 10

// Secrets are, of the files that a machine asks for by their paths in the new
// system, those that lie below secrets/machines/NAME, and the endorsement key of
// the TPM that alone may read them, which a person has written into machine.yaml:
// what a machine says of itself does not count. No symbolic link is followed out
// of the directory.
func (s *Site) Secrets(name string, want []string) (endorsementKey string, files map[string][]byte, err error) {
	m, err := s.Machine(name)
	if err != nil {
		return "", nil, err
	}
	root, err := os.OpenRoot(filepath.Join(pki.Directory(s.dir), "machines", m.Name))
	if errors.Is(err, fs.ErrNotExist) {
		return m.Card.EndorsementKey, nil, nil
	}
	if err != nil {
		return "", nil, &Error{CodeDirectory, "reading the secrets of " + name, err}
	}
	defer root.Close() // only read from
	files = map[string][]byte{}
	for _, path := range want {
		data, err := readSecret(root, strings.TrimPrefix(filepath.Clean(path), "/"))
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return "", nil, &Error{CodeDirectory, "reading the secrets of " + name, err}
		default:
			files[path] = data
		}
	}
	return m.Card.EndorsementKey, files, nil
}

func readSecret(root *os.Root, name string) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read from
	data, err := io.ReadAll(io.LimitReader(f, mostSecret+1))
	if err == nil && len(data) > mostSecret {
		err = fmt.Errorf("%s is larger than %d bytes", name, mostSecret)
	}
	return data, err
}
