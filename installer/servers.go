package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/stage"
)

// imageServers are the site's image servers, by preference. The one that
// answered last is asked; where it cannot be reached or falls silent, the next.
// What comes is verified, so it does not matter from which it comes.
type imageServers struct {
	servers []*imageServer
	log     func(text string)

	mu sync.Mutex
	at int // the one that answered last
}

// imageServer is one of them, connected when it is first asked.
type imageServer struct {
	address string // host:port
	dial    func(ctx context.Context, address string) (*client.Client, error)

	mu     sync.Mutex // also held while it is dialled
	client *client.Client
}

func newImageServers(addresses []string, log func(text string), dial func(ctx context.Context, address string) (*client.Client, error)) *imageServers {
	s := &imageServers{log: log}
	for _, address := range addresses {
		s.servers = append(s.servers, &imageServer{address: address, dial: dial})
	}
	return s
}

func (s *imageServer) connect(ctx context.Context) (*client.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == nil {
		connected, err := s.dial(ctx, s.address)
		if err != nil {
			return nil, err
		}
		s.client = connected
	}
	return s.client, nil
}

// Fetch implements stage.Fetcher.
func (s *imageServer) Fetch(ctx context.Context, digests []object.Digest, piece func(object.Piece) error) error {
	c, err := s.connect(ctx)
	if err != nil {
		return err
	}
	return c.Fetch(ctx, digests, piece)
}

// call lets do ask a server, and the next where that one is of no use.
func (s *imageServers) call(ctx context.Context, do func(*client.Client) error) error {
	if len(s.servers) == 0 {
		return refuse("CFG-020", "no image server is named: add the file imageserver to the configuration or use -imageServerHostname")
	}
	var failed error
	for n, server := range s.fromLast() {
		c, err := server.connect(ctx)
		if err == nil {
			err = do(c)
		}
		switch {
		case err == nil:
			s.mu.Lock()
			s.at = (s.at + n) % len(s.servers)
			s.mu.Unlock()
			return nil
		case ctx.Err() != nil || !another(err):
			return err
		case failed == nil:
			failed = err
		default:
			failed = fmt.Errorf("%w; %w", failed, err)
		}
		if n+1 < len(s.servers) {
			s.log(fmt.Sprintf("%v; asking the next image server", err))
		}
	}
	return failed
}

// another says whether another server may do better: this one is not there, or
// not to be trusted, or too busy. What one server says of a name, they all say.
func another(err error) bool {
	code := progress.Code(err)
	switch code {
	case client.CodeUnreachable, client.CodeLost, client.CodeServer, client.CodeBusy, client.CodeOtherVersion, client.CodeWrongAnswer:
		return true
	}
	return strings.HasPrefix(code, "TRU-")
}

// fromLast are the servers, the one that answered last first.
func (s *imageServers) fromLast() []*imageServer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append(append([]*imageServer{}, s.servers[s.at:]...), s.servers[:s.at]...)
}

// address is that of the server that answered last; empty where there is none.
func (s *imageServers) address() string {
	if len(s.servers) == 0 {
		return ""
	}
	return s.fromLast()[0].address
}

// connect waits until one of them has answered.
func (s *imageServers) connect(ctx context.Context) error {
	return s.call(ctx, func(*client.Client) error { return nil })
}

// Close gives up all connections.
func (s *imageServers) Close() error {
	var all []error
	for _, server := range s.servers {
		server.mu.Lock()
		if server.client != nil {
			all = append(all, server.client.Close())
			server.client = nil
		}
		server.mu.Unlock()
	}
	return errors.Join(all...)
}

// fetchers are the servers as package stage asks them.
func (s *imageServers) fetchers() []stage.Fetcher {
	var fetchers []stage.Fetcher
	for _, server := range s.fromLast() {
		fetchers = append(fetchers, server)
	}
	return fetchers
}

func (s *imageServers) manifest(ctx context.Context, name string) (found client.Found, err error) {
	err = s.call(ctx, func(c *client.Client) (err error) {
		found, err = c.Manifest(ctx, name)
		return err
	})
	return found, err
}

func (s *imageServers) list(ctx context.Context) (images []client.Image, err error) {
	err = s.call(ctx, func(c *client.Client) (err error) {
		images, err = c.List(ctx, "")
		return err
	})
	return images, err
}

func (s *imageServers) have(ctx context.Context, digests []object.Digest) (have []bool, err error) {
	err = s.call(ctx, func(c *client.Client) (err error) {
		have, err = c.Have(ctx, digests)
		return err
	})
	return have, err
}

func (s *imageServers) open(ctx context.Context, digest object.Digest) (content io.ReadCloser, err error) {
	err = s.call(ctx, func(c *client.Client) (err error) {
		content, err = c.Open(ctx, digest)
		return err
	})
	return content, err
}
