package dhcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"

	"github.com/firstlight/firstlight/netconfig"
)

func open4(name string, options ...nclient4.ClientOpt) (*nclient4.Client, netconfig.MAC, error) {
	_, mac, err := hardware(name)
	if err != nil {
		return nil, mac, err
	}
	client, err := nclient4.New(name, options...)
	if err != nil {
		return nil, mac, fmt.Errorf("opening %s: %w", name, err)
	}
	return client, mac, nil
}

// discover4 asks once and notes every server's offer until the window ends.
func (s *Search) discover4(ctx context.Context, name string, window time.Duration) error {
	client, mac, err := open4(name, nclient4.WithTimeout(window), nclient4.WithRetry(1))
	if err != nil {
		return err
	}
	defer client.Close() // a packet socket: nothing is lost when closing fails
	discover, err := dhcpv4.NewDiscovery(mac[:], s.options.modifiers()...)
	if err != nil {
		return fmt.Errorf("making a DHCP discover: %w", err)
	}
	limited, cancel := context.WithTimeout(ctx, window)
	defer cancel()
	heard := 0
	_, err = client.SendAndRead(limited, nclient4.DefaultServers, discover, func(m *dhcpv4.DHCPv4) bool {
		// A proxy server for PXE offers no address: not an offer to us.
		if m.MessageType() == dhcpv4.MessageTypeOffer && usable(m.YourIPAddr) && m.ServerIdentifier() != nil {
			heard++
			s.add(Offer{Interface: name, MAC: mac, Server: addr(m.ServerIdentifier()), Address: addr(m.YourIPAddr), v4: m})
		}
		return false // others may follow
	})
	if heard > 0 {
		return nil
	}
	if errors.Is(err, nclient4.ErrNoResponse) || errors.Is(err, context.DeadlineExceeded) {
		return errNoAnswer
	}
	return err
}

// take4 is the second half of the exchange of four messages, RFC 2131, 3.1.
func take4(ctx context.Context, offer Offer, o Options) (Lease, error) {
	const tries = 3
	client, mac, err := open4(offer.Interface, nclient4.WithTimeout(o.FirstWait), nclient4.WithRetry(tries))
	if err != nil {
		return Lease{}, err
	}
	defer client.Close() // as in discover4
	got, err := client.RequestFromOffer(ctx, offer.v4, o.modifiers()...)
	if err != nil {
		return Lease{}, fmt.Errorf("taking up the offer: %w", err)
	}
	lease, ok := newLease(offer.Interface, mac, got)
	if !ok {
		return Lease{}, errors.New("acknowledged without an address")
	}
	return lease, nil
}

func (o Options) modifiers() []dhcpv4.Modifier {
	modifiers := []dhcpv4.Modifier{
		dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(nclient4.MaxMessageSize)),
		dhcpv4.WithOption(dhcpv4.OptClassIdentifier(VendorClass)),
		dhcpv4.WithRequestedOptions(
			dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer,
			dhcpv4.OptionHostName, dhcpv4.OptionDomainName, dhcpv4.OptionInterfaceMTU,
			dhcpv4.OptionNTPServers, dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue,
			dhcpv4.OptionTFTPServerName, dhcpv4.OptionBootfileName,
			dhcpv4.OptionDNSDomainSearchList, dhcpv4.OptionClasslessStaticRoute,
			dhcpv4.OptionTFTPServerAddress),
	}
	if o.HostName != "" {
		modifiers = append(modifiers, dhcpv4.WithOption(dhcpv4.OptHostName(o.HostName)))
	}
	return modifiers
}

func release4(lease Lease) {
	client, _, err := open4(lease.Interface)
	if err != nil {
		return
	}
	defer client.Close()           // as in discover4
	_ = client.Release(lease.from) // see Release
}

// renew4 asks the server of the lease, or once the time to rebind has come any
// server, for more of it (RFC 2131, 4.4.5): the one from the address that it
// gave, the others with broadcasts, which get through where the way to that one
// is lost.
func renew4(ctx context.Context, lease Lease, o Options) (Lease, error) {
	options := []nclient4.ClientOpt{nclient4.WithTimeout(o.FirstWait), nclient4.WithRetry(1)}
	rebind := !time.Now().Before(lease.Obtained.Add(lease.Rebind.Duration()))
	if !rebind && lease.Server.IsValid() {
		options = append(options, nclient4.WithUnicast(&net.UDPAddr{IP: lease.Address.Addr().AsSlice(), Port: nclient4.ClientPort}),
			nclient4.WithServerAddr(&net.UDPAddr{IP: lease.Server.AsSlice(), Port: nclient4.ServerPort}))
	}
	client, mac, err := open4(lease.Interface, options...)
	if err != nil {
		return Lease{}, err
	}
	defer client.Close() // as in discover4
	var got *nclient4.Lease
	if rebind {
		got, err = rebind4(ctx, client, lease.from, o)
	} else {
		got, err = client.Renew(ctx, lease.from, o.modifiers()...)
	}
	var refused *nclient4.ErrNak
	if errors.As(err, &refused) {
		return Lease{}, fmt.Errorf("%w: %w", errRefused, err)
	}
	if err != nil {
		return Lease{}, err
	}
	next, ok := newLease(lease.Interface, mac, got)
	if !ok {
		return Lease{}, errors.New("acknowledged without an address")
	}
	return next.fill(lease), nil
}

func rebind4(ctx context.Context, client *nclient4.Client, lease *nclient4.Lease, o Options) (*nclient4.Lease, error) {
	request, err := dhcpv4.NewRenewFromAck(lease.ACK, o.modifiers()...)
	if err != nil {
		return nil, err
	}
	answer, err := client.SendAndRead(ctx, nclient4.DefaultServers, request, nclient4.IsMessageType(dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak))
	if err != nil {
		return nil, err
	}
	if answer.MessageType() == dhcpv4.MessageTypeNak {
		return nil, &nclient4.ErrNak{Offer: lease.Offer, Nak: answer}
	}
	return &nclient4.Lease{Offer: answer, ACK: answer, CreationTime: time.Now()}, nil
}
