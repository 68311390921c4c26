package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/s3"
)

// filed is a file of the catalog: its directory and name, and a tag that changes
// when its content does; "" where only this process writes it.
type filed struct {
	directory, name string
	tag             string
}

// files is where the files of a catalog lie. Each is written whole or not at all,
// durably.
type files interface {
	// list is the files of the three directories.
	list(ctx context.Context) ([]filed, error)
	// read is a file's content; the error wraps fs.ErrNotExist where it is gone.
	read(ctx context.Context, f filed) ([]byte, error)
	// write writes a file if it is still what f says: not there where its tag is
	// "", else of that tag. The error wraps errConflict where it is not.
	write(ctx context.Context, f filed, data []byte) error
	// remove deletes a file; a missing one is no error.
	remove(ctx context.Context, f filed) error
	// shared says whether others write these files too.
	shared() bool
}

// errConflict: somebody else changed the file meanwhile.
var errConflict = errors.New("another image server changed the catalog")

// onDisk are files below a directory that one process writes.
type onDisk struct{ path string }

func (onDisk) shared() bool { return false }

func (d onDisk) list(context.Context) ([]filed, error) {
	var all []filed
	for _, directory := range directories {
		names, err := os.ReadDir(filepath.Join(d.path, directory))
		if err != nil {
			return nil, fmt.Errorf("reading the catalog: %w", err)
		}
		for _, name := range names {
			switch {
			case strings.HasPrefix(name.Name(), newPrefix):
				// Left by a process that died before the rename.
				if err := os.Remove(filepath.Join(d.path, directory, name.Name())); err != nil {
					return nil, fmt.Errorf("cleaning up the catalog: %w", err)
				}
			case strings.HasSuffix(name.Name(), suffix) && name.Name()[0] != '.':
				all = append(all, filed{directory: directory, name: name.Name()})
			}
		}
	}
	return all, nil
}

func (d onDisk) file(f filed) string { return filepath.Join(d.path, f.directory, f.name) }

func (d onDisk) read(_ context.Context, f filed) ([]byte, error) { return os.ReadFile(d.file(f)) }

func (d onDisk) write(_ context.Context, f filed, data []byte) (err error) {
	directory := filepath.Dir(d.file(f))
	temporary, err := os.CreateTemp(directory, newPrefix+"*")
	if err != nil {
		return err
	}
	if _, err = temporary.Write(data); err == nil {
		err = temporary.Chmod(0o644)
	}
	if err == nil {
		err = temporary.Sync()
	}
	err = errors.Join(err, temporary.Close())
	if err == nil {
		err = os.Rename(temporary.Name(), d.file(f))
	}
	if err != nil {
		return errors.Join(err, os.Remove(temporary.Name()))
	}
	return syncDirectory(directory)
}

func (d onDisk) remove(_ context.Context, f filed) error {
	if err := os.Remove(d.file(f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDirectory(filepath.Dir(d.file(f)))
}

func syncDirectory(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// inBucket are objects of a bucket, below catalog/, that several servers write.
type inBucket struct{ objects *s3.Store }

const catalogBelow = "catalog/"

func (inBucket) shared() bool { return true }

func (b inBucket) list(ctx context.Context) ([]filed, error) {
	found, err := b.objects.Bucket().List(ctx, catalogBelow)
	if err != nil {
		return nil, err
	}
	var all []filed
	for _, e := range found {
		directory, name, ok := strings.Cut(strings.TrimPrefix(e.Key, catalogBelow), "/")
		if ok && strings.HasSuffix(name, suffix) {
			all = append(all, filed{directory, name, e.Tag})
		}
	}
	return all, nil
}

func (f filed) key() string { return catalogBelow + f.directory + "/" + f.name }

func (b inBucket) read(ctx context.Context, f filed) ([]byte, error) {
	data, err := b.objects.ReadNoted(ctx, s3.Entry{Key: f.key(), Tag: f.tag})
	if errors.Is(err, s3.ErrNoKey) {
		err = fmt.Errorf("%s: %w", f.key(), fs.ErrNotExist)
	}
	return data, err
}

func (b inBucket) write(ctx context.Context, f filed, data []byte) error {
	condition := f.tag
	if condition == "" {
		condition = s3.IfNew
	}
	_, err := b.objects.Bucket().Put(ctx, f.key(), data, condition)
	if errors.Is(err, s3.ErrConflict) || errors.Is(err, s3.ErrNoKey) {
		err = fmt.Errorf("%w: %w", errConflict, err)
	}
	return err
}

func (b inBucket) remove(ctx context.Context, f filed) error {
	return b.objects.Bucket().Remove(ctx, f.key())
}

// summed is a file's content, which carries the digest of the rest of it.
type summed interface {
	// take returns the digest that it carries and leaves it out.
	take() string
	put(check string)
}

// encode is a file's bytes: JSON, with the digest of the same JSON without it and
// without white space.
func encode(content summed) ([]byte, error) {
	content.take()
	plain, err := json.Marshal(content)
	if err != nil {
		return nil, err
	}
	content.put(object.Of(plain).String())
	data, err := json.MarshalIndent(content, "", "\t")
	return append(data, '\n'), err
}

// decode reads a file's bytes, strictly. A file of a format before sums may have no
// digest.
func decode(data []byte, content summed, format func() int, sums int) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(content); err != nil {
		return err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return errors.New("something follows it")
	}
	check := content.take()
	if check == "" && format() < sums {
		return nil
	}
	plain, err := json.Marshal(content)
	if err != nil {
		return err
	}
	if check != object.Of(plain).String() {
		return errors.New("it is damaged: its content is not what its check says")
	}
	return nil
}
