package site

import (
	"io/fs"
	"path/filepath"

	"github.com/firstlight/firstlight/installer/receipt"
)

// KeepReceipt keeps the receipt of a machine's installation, in place of the one
// before. What is no receipt, or was changed after it was signed, is refused.
func (s *Site) KeepReceipt(name string, document []byte) error {
	if _, _, err := receipt.Open(document); err != nil {
		return err
	}
	if err := replace(s.State("machines", name, "receipt.json"), document, 0o644); err != nil {
		return &Error{CodeDirectory, "keeping a receipt", err}
	}
	return nil
}

// Receipt is the receipt of a machine's last installation. The error is
// fs.ErrNotExist where there is none.
func (s *Site) Receipt(name string) ([]byte, error) {
	if name == "" || name != filepath.Base(name) {
		return nil, fs.ErrNotExist
	}
	return readSmall(s.State("machines", name, "receipt.json"), 16<<20)
}
