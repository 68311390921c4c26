package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/firstlight/firstlight/imageserver/object"
)

// notes are small objects of the bucket that were read before, in files of their
// own, so that a server need not read thousands of them at each start. What a file
// holds is known by a check sum; a missing or damaged one is read again.
type notes struct{ path string }

// oldNote is how long a note is kept that nobody reads.
const oldNote = 30 * 24 * time.Hour

func (n notes) file(e Entry) string {
	return filepath.Join(n.path, object.Of([]byte(e.Key + "\n" + e.Tag)).Hex()[:40])
}

func (n notes) get(e Entry) ([]byte, bool) {
	data, err := os.ReadFile(n.file(e))
	if err != nil || len(data) < len(object.Digest{}) {
		return nil, false
	}
	sum, content := object.Digest(data), data[len(object.Digest{}):]
	if object.Of(content) != sum {
		return nil, false
	}
	return content, true
}

// put keeps a note. Without it the store is as well off.
func (n notes) put(e Entry, content []byte) {
	sum := object.Of(content)
	temporary := fmt.Sprintf("%s.%d", n.file(e), time.Now().UnixNano())
	if os.WriteFile(temporary, append(sum[:], content...), 0o600) != nil || os.Rename(temporary, n.file(e)) != nil {
		_ = os.Remove(temporary)
	}
}

// forgetOld removes what was written long ago.
func (n notes) forgetOld(now time.Time) error {
	names, err := os.ReadDir(n.path)
	if err != nil {
		return err
	}
	for _, name := range names {
		info, err := name.Info()
		if err == nil && now.Sub(info.ModTime()) > oldNote {
			err = os.Remove(filepath.Join(n.path, name.Name()))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// ReadNoted reads a small object that was listed, from the local disk if it did not
// change since it was read last. The error wraps ErrNoKey where it is gone.
func (s *Store) ReadNoted(ctx context.Context, e Entry) ([]byte, error) {
	if data, found := s.notes.get(e); found {
		return data, nil
	}
	data, now, err := s.bucket.Read(ctx, e.Key)
	if err != nil {
		return nil, err
	}
	if now.Tag == e.Tag {
		s.notes.put(e, bytes.Clone(data))
	}
	return data, nil
}
