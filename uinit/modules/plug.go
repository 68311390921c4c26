package modules

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
)

// Insert puts one module file into the kernel. A module that is there already
// is no error.
type Insert func(file string) error

// Loader loads modules with all that they need, each once. It is safe for use
// by several goroutines.
type Loader struct {
	index  *Index
	insert Insert

	mu    sync.Mutex
	tried map[string]error
	order []string
}

// NewLoader returns a Loader that knows no module to be loaded yet.
func NewLoader(index *Index, insert Insert) *Loader {
	return &Loader{index: index, insert: insert, tried: map[string]error{}}
}

// Load loads a module by its name or by one of its aliases, dependencies
// first. What is part of the kernel counts as loaded; what failed once fails
// again without another try. An unknown name wraps fs.ErrNotExist.
func (l *Loader) Load(name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.index.Builtin(name) {
		return nil
	}
	names := l.index.Match(name)
	if len(names) == 0 {
		return fmt.Errorf("module %s: %w", name, fs.ErrNotExist)
	}
	// Several modules may offer the same (crypto-xts: a generic one and one
	// for this CPU); one that works is enough.
	var failures []error
	for _, name := range names {
		if err := l.load(name); err != nil {
			failures = append(failures, err)
		}
	}
	if len(failures) == len(names) {
		return errors.Join(failures...)
	}
	return nil
}

func (l *Loader) load(name string) error {
	if err, done := l.tried[name]; done {
		return err
	}
	steps, err := l.index.Order(name)
	if err != nil {
		l.tried[name] = err
		return err
	}
	for _, step := range steps {
		err, done := l.tried[step.Name]
		if !done {
			if err = l.insert(step.File); err != nil {
				err = fmt.Errorf("loading %s: %w", step.Name, err)
			} else {
				l.order = append(l.order, step.Name)
			}
			l.tried[step.Name] = err
		}
		if err != nil && !step.Optional {
			l.tried[name] = err
			return err
		}
	}
	return nil
}

// Loaded returns the names of the modules that were loaded, in that order.
func (l *Loader) Loaded() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.order)
}

// Device loads what a device with this modalias asks for. That nothing is
// known for it is no error; nor is it a device's fault that the CPU asks for
// modules by the hundred (`cpu:` aliases), so these are left alone.
func (l *Loader) Device(modalias string) error {
	if modalias == "" || strings.HasPrefix(modalias, "cpu:") {
		return nil
	}
	var failures []error
	for _, name := range l.index.Match(modalias) {
		l.mu.Lock()
		err := l.load(name)
		l.mu.Unlock()
		if err != nil {
			failures = append(failures, err)
		}
	}
	return errors.Join(failures...)
}

// Coldplug loads modules for the devices in sys (the tree at /sys), again and
// again until a walk finds no alias that was not there before: a bus appears
// when its controller's module is loaded. What cannot be loaded is returned
// when everything was tried; it seldom matters.
func Coldplug(ctx context.Context, sys fs.FS, l *Loader) error {
	var failures []error
	seen := map[string]bool{}
	for {
		aliases, err := modaliases(ctx, sys)
		if err != nil {
			return err
		}
		fresh := false
		for _, modalias := range aliases {
			if seen[modalias] {
				continue
			}
			seen[modalias], fresh = true, true
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := l.Device(modalias); err != nil {
				failures = append(failures, fmt.Errorf("%s: %w", modalias, err))
			}
		}
		if !fresh {
			return errors.Join(failures...)
		}
	}
}

// modaliases lists the aliases of all devices, in the order of their paths. A
// device that goes away meanwhile is not one.
func modaliases(ctx context.Context, sys fs.FS) ([]string, error) {
	var aliases []string
	err := fs.WalkDir(sys, "devices", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist) && name != "devices":
			return nil
		case err != nil:
			return err
		case entry.IsDir() && (name == "devices/system/cpu" || entry.Name() == "power"):
			return fs.SkipDir // hundreds of files, no devices
		case entry.IsDir() || entry.Name() != "modalias":
			return nil
		}
		text, err := fs.ReadFile(sys, name)
		if err != nil {
			return nil // gone again, or it has none: some drivers answer ENODEV
		}
		if alias := strings.TrimSpace(string(text)); alias != "" {
			aliases = append(aliases, alias)
		}
		return nil
	})
	return aliases, err
}
