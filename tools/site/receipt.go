package site

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/firstlight/firstlight/installer/receipt"
)

// KeepReceipt keeps the receipt of a machine's installation, in place of the one
// before. What is no receipt, or was changed after it was signed, is refused; and
// once the machine is installed, so is another one than that of its installation:
// whoever has taken over its system could say what he likes.
func (s *Site) KeepReceipt(name string, document []byte) error {
	if _, _, err := receipt.Open(document); err != nil {
		return err
	}
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	status, err := s.status(name)
	if err != nil {
		return err
	}
	if status.State == Installed {
		kept, err := s.Receipt(name)
		switch {
		case err == nil && bytes.Equal(kept, document):
			return nil // its answer was lost
		case err == nil:
			return fail(CodeState, "%s is installed, and the receipt of that is kept: no other one is taken", name)
		case !errors.Is(err, fs.ErrNotExist):
			return &Error{CodeDirectory, "reading a receipt", err}
		}
	}
	if err := replace(s.State("machines", name, "receipt.json"), document, 0o644); err != nil {
		return &Error{CodeDirectory, "keeping a receipt", err}
	}
	return nil
}

// putAway has a new installation begin: what an earlier one said is not part of
// it. Its receipt stays beside, for the old system may still be there.
func (s *Site) putAway(name string) {
	_ = os.Remove(s.State("machines", name, "events.jsonl"))
	_ = os.Rename(s.State("machines", name, "receipt.json"), s.State("machines", name, "receipt.before.json")) // there may be none
}

// Receipt is the receipt of a machine's last installation. The error is
// fs.ErrNotExist where there is none.
func (s *Site) Receipt(name string) ([]byte, error) {
	if name == "" || name != filepath.Base(name) {
		return nil, fs.ErrNotExist
	}
	return readSmall(s.State("machines", name, "receipt.json"), 16<<20)
}
