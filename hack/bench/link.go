package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

const (
	linkRate   = "200mbit"
	linkBytes  = 200e6 / 8 // bytes a second
	linkServer = "198.18.0.1"
	linkClient = "198.18.0.2" // RFC 2544 has them for benchmarks
)

// linkPart installs over a slow link: two network namespaces and a cable
// between them, shaped on the server's side.
func linkPart(ctx context.Context, g *ground) (rows []row, err error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	l := link{server: fmt.Sprintf("bench-s-%d", os.Getpid()), client: fmt.Sprintf("bench-c-%d", os.Getpid())}
	defer func() { err = errors.Join(err, l.cut(context.WithoutCancel(ctx))) }()
	if err := l.lay(ctx); err != nil {
		return nil, err
	}
	address := linkServer + ":6971"
	in := func(namespace string, args ...string) []string {
		return append([]string{"ip", "netns", "exec", namespace}, args...)
	}
	reach := func() error {
		args := in(l.client, program, taskArgument, "reach", address)
		return command(ctx, args[0], args[1:]...)
	}
	server, err := g.imageserverAt(ctx, address, g.path("store"), true, in(l.server), reach)
	if err != nil {
		return nil, err
	}
	defer server.stop()
	for _, way := range []struct {
		name string
		args func(root string) []string
	}{
		{"streaming", func(root string) []string { return []string{"stream", address, "", serverImage, root} }},
		{"staged", func(root string) []string { return []string{"staged", address, "", serverImage, g.path("pack"), root} }},
	} {
		g.say("over a link of %s/s: %s", linkRate, way.name)
		var ratios []float64
		var costs []cost
		for range min(g.runs, 3) {
			before, err := l.sent(ctx)
			if err != nil {
				return nil, err
			}
			took, err := g.withVolume(ctx, func(root string) (cost, error) {
				args := in(l.client, append([]string{program, taskArgument}, way.args(root)...)...)
				return timed(ctx, args[0], args[1:]...)
			})
			if err != nil {
				return nil, err
			}
			after, err := l.sent(ctx)
			if err != nil {
				return nil, err
			}
			costs = append(costs, took)
			ratios = append(ratios, took.wall.Seconds()/((after-before)/linkBytes))
		}
		rows = append(rows, row{what: way.name + " installation over 200 Mbit/s", ours: middle(costs).String(),
			beside: "bytes on the wire / rate", value: median(ratios), unit: "×", bound: 1.10})
	}
	return rows, nil
}

// link is a cable between two network namespaces.
type link struct{ server, client string }

func (l link) lay(ctx context.Context) error {
	for _, line := range []string{
		"ip netns add " + l.server,
		"ip netns add " + l.client,
		"ip -n " + l.server + " link add bench0 type veth peer name bench0 netns " + l.client,
		"ip -n " + l.server + " address add " + linkServer + "/30 dev bench0",
		"ip -n " + l.client + " address add " + linkClient + "/30 dev bench0",
		"ip -n " + l.server + " link set bench0 up",
		"ip -n " + l.client + " link set bench0 up",
		"tc -n " + l.server + " qdisc add dev bench0 root tbf rate " + linkRate + " burst 256kb latency 50ms",
	} {
		args := strings.Fields(line)
		if err := command(ctx, args[0], args[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// cut removes the namespaces, and with them the cable.
func (l link) cut(ctx context.Context) error {
	return errors.Join(command(ctx, "ip", "netns", "delete", l.server), command(ctx, "ip", "netns", "delete", l.client))
}

// sent is how many bytes, headers included, the shaper has let through.
func (l link) sent(ctx context.Context) (float64, error) {
	out, err := exec.CommandContext(ctx, "tc", "-n", l.server, "-s", "-j", "qdisc", "show", "dev", "bench0").Output()
	if err != nil {
		return 0, fmt.Errorf("asking the shaper: %w", err)
	}
	var shapers []struct {
		Kind  string
		Bytes float64
	}
	if err := json.Unmarshal(out, &shapers); err != nil {
		return 0, fmt.Errorf("asking the shaper: %w", err)
	}
	for _, s := range shapers {
		if s.Kind == "tbf" {
			return s.Bytes, nil
		}
	}
	return 0, fmt.Errorf("no shaper in %s", out)
}
