package main

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"time"

	"github.com/firstlight/firstlight/installer/forward"
	"github.com/firstlight/firstlight/installer/progress"
)

// lastLines is how long the last lines may hold up a hand-over.
const lastLines = 5 * time.Second

// forwardLog sends the log to -logServer, from now on. Only an address that makes
// no sense is an error.
func (i *installation) forwardLog() error {
	if i.opt.logServer == "" || i.opt.dryRun {
		return nil
	}
	certificates, err := i.clientTLS()
	if err != nil {
		return err
	}
	boot, err := fs.ReadFile(i.env.proc, "sys/kernel/random/boot_id")
	if err != nil {
		boot = nil // then the log server cannot tell boots apart
	}
	sender, err := forward.New(i.opt.logServer, forward.Options{
		Start: func() time.Time { return i.env.now().Add(-i.model.Elapsed()) },
		Host: func() string {
			if name := i.model.Snapshot().Facts.Machine; name != "" {
				return name
			}
			return cmp.Or(i.serial(), "installer")
		},
		Boot: strings.ReplaceAll(strings.TrimSpace(string(boot)), "-", ""), TLS: certificates,
	})
	if err != nil {
		return usageError{"-logServer: " + err.Error()}
	}
	i.model.AddSink(sender)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		sender.Run(ctx, func(err error) {
			// Not by the sink that this goroutine empties: Warn may wait for others.
			go i.model.Warn(progress.Config, fmt.Sprintf("%v; it is tried again", err))
		})
	}()
	i.forwarded = sync.OnceFunc(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(lastLines):
		}
	})
	return nil
}
