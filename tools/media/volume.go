package media

import (
	"context"
	"fmt"
	"os"

	"github.com/firstlight/firstlight/storage"
)

// Volume writes a file system labelled FIRSTLIGHT with the configuration files
// of the directory files, to be carried beside a medium that has none: as a
// second virtual medium of a BMC, or on a stick.
func Volume(ctx context.Context, files, out string) (Report, error) {
	found, err := configuration(files)
	if err != nil {
		return Report{}, err
	}
	size := fatSize(found, stickFree)
	err = replaceFile(out, 0o600, func(f *os.File) error {
		if err := f.Truncate(size); err != nil {
			return err
		}
		_, err := writeFAT(f, 0, size, storage.MediumLabel, found)
		return err
	})
	if err != nil {
		return Report{}, fmt.Errorf("writing %s: %w", out, err)
	}
	return Report{Parts: []Part{{"volume FIRSTLIGHT", size}}, Bytes: size}, ctx.Err()
}
