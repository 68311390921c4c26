package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/report"
)

// siteServerURL is the first that is named: -siteServer, siteserver= on the
// kernel command line, the file siteserver; empty where none is.
func (i *installation) siteServerURL() string {
	for _, named := range []string{i.opt.siteServer, i.opt.kernel.value("siteserver"), i.config.SiteServer} {
		if named != "" {
			return named
		}
	}
	return ""
}

const (
	// reportInterval gathers events that come close together.
	reportInterval = time.Second
	// lastReports is how long the last reports may hold up a hand-over.
	lastReports = 10 * time.Second
)

// startReporting tells the site server, where there is one, how the
// installation goes, until it ends. A server that cannot be told is a warning.
func (i *installation) startReporting() {
	base := i.siteServerURL()
	if base == "" || i.opt.dryRun || i.site != nil && i.site.At(base, i.nic.MAC) {
		return
	}
	certificates, err := i.clientTLS()
	if err != nil {
		i.model.Warn(progress.Config, err.Error())
		return
	}
	site, err := report.New(base, i.nic.MAC, certificates)
	if err != nil {
		i.model.Warn(progress.Config, fmt.Sprintf("%s: %v", progress.Code(err), err))
		return
	}
	i.site = site
	i.model.Logf(progress.Config, "reporting to %s", site)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		r := &reporter{installation: i, site: site}
		r.follow(stop)
	}()
	i.opened.push("the reports to the site server", func() error {
		close(stop)
		<-done
		return nil
	})
}

// reporter posts what happens. The first report that does not arrive is a
// warning; later ones are tried without a word, for the server may come back.
type reporter struct {
	*installation
	site      *report.Site
	inventory []byte // as posted
	logged    int64  // bytes of the log that were posted
	logAt     time.Time
	warned    bool
}

func (r *reporter) follow(stop <-chan struct{}) {
	past, events, end := r.model.Events()
	defer end()
	waiting := past
	tick := time.NewTicker(reportInterval)
	defer tick.Stop()
	for {
		select {
		case event, ok := <-events:
			if !ok { // too slow: what is missing can be read on the page
				events = nil
				continue
			}
			waiting = append(waiting, event)
		case <-tick.C:
			if r.tell(context.Background(), waiting) {
				waiting = nil
			}
			r.tellLog(context.Background())
		case <-stop:
			ctx, cancel := context.WithTimeout(context.Background(), lastReports)
			defer cancel()
			r.tell(ctx, waiting)
			r.tellTheEnd(ctx)
			return
		}
	}
}

// tell posts what is new, and says whether all of it arrived.
func (r *reporter) tell(ctx context.Context, events []progress.Event) bool {
	if found := r.published.inventory.Load(); found != nil && !bytes.Equal(*found, r.inventory) {
		if !r.post(ctx, report.Inventory, *found) {
			return false
		}
		r.inventory = *found
	}
	if len(events) == 0 {
		return true
	}
	var lines bytes.Buffer
	encoder := json.NewEncoder(&lines)
	for _, event := range events {
		if err := encoder.Encode(event); err != nil {
			continue // only a time outside years 0 to 9999 can do that
		}
	}
	return r.post(ctx, report.Events, lines.Bytes()) && r.postState(ctx)
}

// logInterval is how old the server's copy of the log may be.
const logInterval = 10 * time.Second

// tellLog posts the log where it has grown, so that what a machine said is known
// even if it says nothing more.
func (r *reporter) tellLog(ctx context.Context) {
	if r.journal == nil || time.Since(r.logAt) < logInterval {
		return
	}
	info, err := os.Stat(r.journal.log.Name())
	if err != nil || info.Size() == r.logged {
		return
	}
	log, err := os.ReadFile(r.journal.log.Name())
	if err == nil && r.post(ctx, report.Log, log) {
		r.logged = int64(len(log))
	}
	r.logAt = time.Now()
}

// tellTheEnd posts the state and the log as they are when nothing follows.
func (r *reporter) tellTheEnd(ctx context.Context) {
	r.postState(ctx)
	if r.journal == nil {
		return
	}
	if log, err := os.ReadFile(r.journal.log.Name()); err == nil {
		r.post(ctx, report.Log, log)
	}
}

func (r *reporter) postState(ctx context.Context) bool {
	state, err := json.Marshal(r.model.Snapshot())
	return err == nil && r.post(ctx, report.State, state)
}

func (r *reporter) post(ctx context.Context, kind report.Kind, body []byte) bool {
	err := r.site.Post(ctx, kind, body)
	if err != nil && !r.warned {
		r.warned = true
		r.model.Warn(progress.Config, fmt.Sprintf("%s: %v; the installation goes on", progress.Code(err), err))
	}
	return err == nil
}
