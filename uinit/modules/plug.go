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
// by several goroutines; none of them waits for another one's modules, unless
// it needs the same.
type Loader struct {
	index  *Index
	insert Insert

	mu    sync.Mutex
	tried map[string]*insertion
	order []string
}

// insertion is the one try at a module; done is closed when err is known.
type insertion struct {
	done chan struct{}
	err  error
}

// NewLoader returns a Loader that knows no module to be loaded yet.
func NewLoader(index *Index, insert Insert) *Loader {
	return &Loader{index: index, insert: insert, tried: map[string]*insertion{}}
}

// Load loads a module by its name or by one of its aliases, dependencies
// first. What is part of the kernel counts as loaded; what failed once fails
// again without another try. An unknown name wraps fs.ErrNotExist.
func (l *Loader) Load(name string) error {
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

// load loads one module by its own name.
func (l *Loader) load(name string) error {
	steps, err := l.index.Order(name)
	if err != nil {
		return err
	}
	for _, step := range steps {
		if err := l.once(step); err != nil && !step.Optional {
			return err
		}
	}
	return nil
}

// once puts one module into the kernel, or waits for whoever is doing it.
func (l *Loader) once(step Step) error {
	l.mu.Lock()
	try, begun := l.tried[step.Name]
	if !begun {
		try = &insertion{done: make(chan struct{})}
		l.tried[step.Name] = try
	}
	l.mu.Unlock()
	if begun {
		<-try.done
		return try.err
	}
	defer close(try.done)
	if err := l.insert(step.File); err != nil {
		try.err = fmt.Errorf("loading %s: %w", step.Name, err)
		return try.err
	}
	l.mu.Lock()
	l.order = append(l.order, step.Name)
	l.mu.Unlock()
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
		if err := l.load(name); err != nil {
			failures = append(failures, err)
		}
	}
	return errors.Join(failures...)
}

// Coldplug loads modules for the devices that are in sys (the tree at /sys)
// now. Devices that appear because of them are heard by a Watch that was
// opened before. What cannot be loaded is returned when everything was tried;
// it seldom matters.
func Coldplug(ctx context.Context, sys fs.FS, l *Loader) error {
	aliases, err := modaliases(ctx, sys)
	if err != nil {
		return err
	}
	var failures []error
	for _, modalias := range aliases {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.Device(modalias); err != nil {
			failures = append(failures, fmt.Errorf("%s: %w", modalias, err))
		}
	}
	return errors.Join(failures...)
}

// modaliases lists the aliases of all devices, each once, in the order of
// their paths. A device that goes away meanwhile is not one.
func modaliases(ctx context.Context, sys fs.FS) ([]string, error) {
	var aliases []string
	seen := map[string]bool{}
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
		if alias := strings.TrimSpace(string(text)); alias != "" && !seen[alias] {
			seen[alias] = true
			aliases = append(aliases, alias)
		}
		return nil
	})
	return aliases, err
}
