package main

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// plainInterval is the time between plain lines of progress.
const plainInterval = 2 * time.Second

// progress shows how far an upload is: a bar on a terminal, plain lines
// otherwise, nothing with --quiet.
type progress struct {
	read, found, sent atomic.Uint64 // bytes of the source, objects, bytes sent
	total             uint64        // bytes of the source, 0 where it is not known

	container *mpb.Progress
	bar       *mpb.Bar
	stop      chan struct{}
	stopped   chan struct{}
}

// startProgress begins to show it; end must be called. total is the number of
// bytes that reader will give, 0 where that is not known.
func (c *common) startProgress(title string, total int64) *progress {
	p := &progress{total: uint64(max(total, 0))}
	switch {
	case c.quiet:
	case terminal(c.err):
		p.container = mpb.New(mpb.WithOutput(c.err), mpb.WithWidth(60))
		p.bar = p.container.AddBar(total,
			mpb.PrependDecorators(decor.Name(title+" ")),
			mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return p.text() })))
	default:
		p.stop, p.stopped = make(chan struct{}), make(chan struct{})
		go p.lines(c.err, title)
	}
	return p
}

// lines writes a line now and then, until end.
func (p *progress) lines(w io.Writer, title string) {
	defer close(p.stopped)
	ticker := time.NewTicker(plainInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			// Progress is for people; a closed stderr is no reason to fail.
			_, _ = fmt.Fprintf(w, "%s: %s\n", title, p.text())
		case <-p.stop:
			return
		}
	}
}

func (p *progress) text() string {
	text := fmt.Sprintf("%d files, %s sent", p.found.Load(), size(p.sent.Load()))
	if p.total > 0 {
		text = fmt.Sprintf("%d %%, %s", 100*p.read.Load()/p.total, text)
	}
	return text
}

// objects counts objects that ingest has found and bytes that go to the server.
func (p *progress) objects(n, sent uint64) {
	p.found.Add(n)
	p.sent.Add(sent)
}

// done counts bytes that need no reader to be counted.
func (p *progress) done(n uint64) {
	p.read.Add(n)
	if p.bar != nil {
		p.bar.IncrInt64(int64(n))
	}
}

// reader counts what is read of the source.
func (p *progress) reader(r io.Reader) io.Reader { return &counting{r, p} }

type counting struct {
	io.Reader
	progress *progress
}

func (c *counting) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.progress.read.Add(uint64(n))
	if c.progress.bar != nil {
		c.progress.bar.IncrBy(n)
	}
	return n, err
}

// end takes the bar off, complete only when all went well.
func (p *progress) end(complete bool) {
	switch {
	case p.bar != nil && complete:
		p.bar.SetTotal(-1, true)
		p.container.Wait()
	case p.bar != nil:
		p.bar.Abort(false)
		p.container.Wait()
	case p.stop != nil:
		close(p.stop)
		<-p.stopped
	}
}
