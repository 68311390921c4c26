package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/dir"
)

// manyClients is how many fetch at once, to compare with one.
const manyClients = 32

// servePart compares what serving costs.
func servePart(ctx context.Context, g *ground) ([]row, error) {
	if err := missing("nginx"); err != nil {
		return nil, err
	}
	files := g.path("objects")
	list, err := g.objectsAsFiles(ctx, files)
	if err != nil {
		return nil, err
	}
	plain, err1 := freeAddress()
	secure, err2 := freeAddress()
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	www, err := g.nginx(ctx, plain, secure, files)
	if err != nil {
		return nil, err
	}
	defer www.stop()
	workers, err := children(www.PID())
	if err != nil {
		return nil, err
	}
	server, err := g.imageserver(ctx, g.path("store"), true)
	if err != nil {
		return nil, err
	}
	defer server.stop()
	ours := func(clients int) (cost, []drained, error) {
		var seen []drained
		begin := time.Now()
		cpu, err := used(func() (err error) {
			seen, err = g.drained(ctx, server, clients)
			return err
		}, server.PID())
		return cost{time.Since(begin), cpu}, seen, err
	}
	g.say("serving, beside nginx")
	p, err := beside(g.runs,
		func() (cost, error) { c, _, err := ours(1); return c, err },
		func() (cost, error) {
			begin := time.Now()
			cpu, err := used(func() error { _, err := g.task(ctx, "gets", plain, list); return err }, append(workers, www.PID())...)
			return cost{time.Since(begin), cpu}, err
		})
	if err != nil {
		return nil, err
	}
	rows := []row{p.row("serving an installation, the server's CPU", "nginx, an object a request", cpuOf, 0.45)}

	g.say("serving %d clients, beside one", manyClients)
	var spread []float64
	p, err = beside(min(g.runs, 3),
		func() (cost, error) {
			c, seen, err := ours(manyClients)
			c.cpu /= manyClients
			slowest, fastest := 0.0, 1e9
			for _, s := range seen {
				slowest, fastest = max(slowest, s.Seconds), min(fastest, s.Seconds)
			}
			spread = append(spread, slowest/fastest)
			return c, err
		},
		func() (cost, error) { c, _, err := ours(1); return c, err })
	if err != nil {
		return nil, err
	}
	return append(rows, p.row(fmt.Sprintf("serving %d at once, the server's CPU for each", manyClients), "one alone", cpuOf, 1.10),
		row{what: fmt.Sprintf("of %d at once, the slowest", manyClients), beside: "the fastest", value: median(spread[1:]), unit: "×", bound: 1.25}), nil
}

// drained lets so many processes fetch the image at once.
func (g *ground) drained(ctx context.Context, server *imageserver, clients int) ([]drained, error) {
	all := make([]drained, clients)
	group, ctx := errgroup.WithContext(ctx)
	for i := range all {
		group.Go(func() error { return g.answer(ctx, &all[i], "drain", server.address, g.authority(server), serverImage) })
	}
	return all, group.Wait()
}

// children are the processes that a process has started.
func children(pid int) (pids []int, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil, err
	}
	for _, field := range strings.Fields(string(text)) {
		child, err := strconv.Atoi(field)
		if err != nil {
			return nil, err
		}
		pids = append(pids, child)
	}
	return pids, nil
}

// objectsAsFiles writes each object of the store, compressed as it is there, to
// a file of its own, and returns a file with their names.
func (g *ground) objectsAsFiles(ctx context.Context, directory string) (list string, err error) {
	list = g.path("objects.list")
	store, err := dir.Open(g.path("store"))
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	var names bytes.Buffer
	for i := range 256 {
		if err := os.MkdirAll(fmt.Sprintf("%s/%02x", directory, i), 0o755); err != nil {
			return "", err
		}
	}
	err = store.List(ctx, func(info object.Info) error {
		stored, err := store.OpenStored(ctx, info.Digest)
		if err != nil {
			return err
		}
		defer stored.Close() // only read from
		name := info.Digest.Hex()[:2] + "/" + info.Digest.Hex()
		fmt.Fprintln(&names, name)
		data, err := io.ReadAll(stored)
		if err != nil {
			return err
		}
		return os.WriteFile(directory+"/"+name, data, 0o644)
	})
	if err != nil {
		return "", err
	}
	return list, os.WriteFile(list, names.Bytes(), 0o644)
}

// gets asks for every file of a list, one after the other, over one connection.
func gets(ctx context.Context, address, list string) error {
	in, err := os.Open(list)
	if err != nil {
		return err
	}
	defer in.Close() // only read from
	for lines := bufio.NewScanner(in); lines.Scan(); {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/"+lines.Text(), nil)
		if err != nil {
			return err
		}
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, answer.Body)
		if err := errors.Join(err, answer.Body.Close()); err != nil {
			return err
		}
		if answer.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", lines.Text(), answer.Status)
		}
	}
	return nil
}
