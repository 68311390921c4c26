package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/netutil"
	"google.golang.org/grpc"

	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/installer/plan"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/shell"
	"github.com/firstlight/firstlight/installer/status"
	"github.com/firstlight/firstlight/netconfig/dhcp"
	"github.com/firstlight/firstlight/proto/auth"
)

// published is what the status page may show: documents as JSON.
type published struct {
	plan, inventory atomic.Pointer[[]byte]
	text            atomic.Pointer[string]     // the plan's, for people
	lease           atomic.Pointer[dhcp.Lease] // nil where there is none
}

func (p *published) planText() string {
	if text := p.text.Load(); text != nil {
		return *text
	}
	return ""
}

// leaseText is the installer's own address, by interface.
func (p *published) leaseText() map[string]string {
	lease := p.lease.Load()
	if lease == nil {
		return nil
	}
	text := lease.Address.String()
	switch {
	case lease.Duration == dhcp.Infinite && !lease.Server.IsValid():
		text += ", fixed"
	case lease.Server.IsValid():
		text += ", leased by " + lease.Server.String()
		if lease.Duration != dhcp.Infinite && !lease.Obtained.IsZero() {
			text += " at " + lease.Obtained.UTC().Format("15:04:05") + " UTC"
		}
	}
	return map[string]string{lease.Interface: text}
}

func (p *published) get(which *atomic.Pointer[[]byte]) func() []byte {
	return func() []byte {
		if data := which.Load(); data != nil {
			return *data
		}
		return nil
	}
}

func (i *installation) publishPlan(p plan.Plan) {
	data, err := p.JSON()
	if err != nil {
		i.model.Warn(progress.Plan, err.Error())
		return
	}
	text := p.Text()
	i.published.text.Store(&text)
	i.published.plan.Store(&data)
}

// inventoryNow is the inventory with what was heard of switches since.
func (i *installation) inventoryNow() []byte {
	data := i.published.get(&i.published.inventory)()
	if data == nil {
		return nil
	}
	found, err := inventory.Parse(data)
	if err != nil {
		return data
	}
	i.switches.beside(found.NICs)
	if now, err := found.JSON(); err == nil {
		return now
	}
	return data
}

func (i *installation) publishInventory(d inventory.Document) {
	data, err := d.JSON()
	if err != nil {
		i.model.Warn(progress.Inventory, err.Error())
		return
	}
	i.published.inventory.Store(&data)
}

// maxPageConnections bounds what slow or idle readers can take.
const maxPageConnections = 128

// openPage serves the status page, plainly and over TLS, and operators, over
// TLS only, until closePage is called, which may be done twice. Where the site
// cannot say who its operators are, every call is refused. cancelAll ends
// the installation.
func (i *installation) openPage(ctx context.Context, cancelAll context.CancelCauseFunc) (closePage func(), err error) {
	listener, err := net.Listen("tcp", fmt.Sprintf(":%d", i.opt.port))
	if err != nil {
		return func() {}, err
	}
	i.pagePort = listener.Addr().(*net.TCPAddr).Port
	certificate, err := i.pageTLS()
	if err != nil {
		i.model.Warn(progress.Clock, fmt.Sprintf("port %d speaks no TLS: %v", i.pagePort, err))
	}
	if certificate != nil {
		i.certificate = certificate.Certificates[0]
	}
	mux := &auth.Mux{
		TLS: certificate,
		RPC: i.calls(certificate, cancelAll),
		Pages: status.Handler(status.Options{
			Model:           i.model,
			Plan:            i.published.get(&i.published.plan),
			PlanText:        i.published.planText,
			Inventory:       i.inventoryNow,
			Earlier:         i.earlier.String,
			NICs:            i.currentNICs,
			Leases:          i.published.leaseText,
			Memory:          i.meter.memory,
			NetworkReceived: i.meter.networkReceived,
			DiskWritten:     i.meter.diskWritten,
			MemoryPeak:      i.meter.memoryPeak.Load,
		}),
		Log: i.model.Logger(progress.Clock),
	}
	ctx, cancel := context.WithCancel(ctx)
	var serving sync.WaitGroup
	serving.Go(func() { i.meter.watch(ctx, i.model.Sample) })
	serving.Go(func() { i.showPanel(ctx) })
	serving.Go(func() {
		if err := mux.Serve(ctx, netutil.LimitListener(listener, maxPageConnections)); err != nil && ctx.Err() == nil {
			i.model.Warn(progress.Clock, fmt.Sprintf("the status page ended: %v", err))
		}
	})
	return sync.OnceFunc(func() {
		if i.shells != nil {
			i.shells.Close("the installer ends")
		}
		cancel()
		serving.Wait()
	}), nil
}

// calls is the server for operators, or one that refuses everyone and says on
// the page why.
func (i *installation) calls(certificate *tls.Config, cancelAll context.CancelCauseFunc) *grpc.Server {
	refused := ""
	switch {
	case certificate == nil:
		refused = "this port speaks no TLS"
	case certificate.ClientCAs == nil:
		refused = "there is no " + i.env.trust.ca + " that says who the operators are"
	}
	if refused != "" {
		i.model.Warn(progress.Clock, fmt.Sprintf("installer-shell is refused on port %d: %s", i.pagePort, refused))
		return auth.NewClosedServer(refused)
	}
	server := auth.NewServer(shell.Policy(), false)
	i.shells = i.newShells(cancelAll)
	i.shells.Register(server)
	return server
}

// defaultWaitAfterFailure is how long a failed installation keeps its page
// before the machine reboots.
const defaultWaitAfterFailure = 5 * time.Minute

func (i *installation) waitAfterFailure() time.Duration {
	if seconds := i.config.Install.WaitAfterFailureSeconds; seconds != nil {
		return time.Duration(*seconds) * time.Second
	}
	return defaultWaitAfterFailure
}
