package main

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/netconfig"
)

// Each server is asked once, in the order of preference, and all of their
// failures are told.
func TestImageServersAreAskedInTurn(t *testing.T) {
	var addresses, asked, said []string
	for range 3 {
		// Where nobody listens any more.
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addresses = append(addresses, l.Addr().String())
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	servers := newImageServers(addresses, func(text string) { said = append(said, text) },
		func(ctx context.Context, address string) (*client.Client, error) {
			asked = append(asked, address)
			return client.Dial(ctx, client.Options{Address: address, ConnectTimeout: 5 * time.Second})
		})
	err := servers.connect(t.Context())
	if progress.Code(err) != client.CodeUnreachable {
		t.Errorf("got %v", err)
	}
	for _, address := range addresses {
		if err == nil || !strings.Contains(err.Error(), address) {
			t.Errorf("nothing is said of %s: %v", address, err)
		}
	}
	if strings.Join(asked, " ") != strings.Join(addresses, " ") || len(said) != 2 {
		t.Errorf("asked %q, said %q", asked, said)
	}
	if len(servers.fetchers()) != 3 || servers.address() != addresses[0] {
		t.Errorf("%d fetchers; first %s", len(servers.fetchers()), servers.address())
	}
	if err := servers.Close(); err != nil {
		t.Error(err)
	}
}

// -imageServerHostname may name several servers, and goes before the file.
func TestImageServerAddresses(t *testing.T) {
	i := &installation{}
	i.config.ImageServers = []string{"file:6971"}
	for flag, want := range map[string]string{
		"": "file:6971", "one": "one:6971", "one, two:7000,[2001:db8::1]": "one:6971 two:7000 [2001:db8::1]:6971",
	} {
		i.opt.imageServerHostname, i.opt.imageServerPort = flag, 6971
		if got := strings.Join(i.imageServerAddresses(), " "); got != want {
			t.Errorf("%q: %s, want %s", flag, got, want)
		}
	}
}

// What one server says of a name they all say; one that lies, or breaks off, is
// alone with that.
func TestAnotherServerMayDoBetter(t *testing.T) {
	for code, want := range map[string]bool{
		client.CodeWrongAnswer: true, client.CodeLost: true, client.CodeUntrusted: true,
		client.CodeNoImage: false, client.CodeBadName: false,
	} {
		if got := another(netconfig.NewError(code, "said")); got != want {
			t.Errorf("%s: %v", code, got)
		}
	}
}
