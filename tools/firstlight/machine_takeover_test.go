package main

import (
	"strings"
	"testing"
	"time"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/tools/site"
	"github.com/firstlight/firstlight/tools/site/takeover"
)

// TestMayTakeOver: a host is taken over only as one machine of the site, with
// somebody's word for it.
func TestMayTakeOver(t *testing.T) {
	l := newLab(t)
	s, err := site.Open(l.site, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	login := takeover.Login{User: "root", Host: "web1"}
	who := site.Identity{MACs: []netconfig.MAC{{0x52, 0x54, 0, 0, 0, 1}}}
	refused := func(says string) {
		t.Helper()
		m, err := s.Find(who)
		if err != nil {
			t.Fatal(err)
		}
		if err := mayTakeOver(m, login, who); exitCode(err) != exitRefused || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	refused("no machine of this site")
	l.waits(t, 1, nil)
	refused("no machine of this site") // nobody has named it
	l.write(t, "machines/web1/config.json", `{"Machine": {"Hostname": "web1", "HostMacAddress": "52:54:00:00:00:01"}}`)
	refused("whose configuration is wrong")
	l.write(t, "machines/web1/imagename", "debian/12\n")
	refused("which is waiting")
	if err := s.Wipe("web1", "me", "discard"); err != nil {
		t.Fatal(err)
	}
	refused("to be wiped")
	if err := s.Approve("web1", "me", false); err != nil {
		t.Fatal(err)
	}
	if m, err := s.Find(who); err != nil || mayTakeOver(m, login, who) != nil {
		t.Errorf("%v, %v", mayTakeOver(m, login, who), err)
	}
	for args, want := range map[string]int{
		"machine takeover web1":                                 exitUsage,
		"machine takeover root@127.0.0.1:1 --identity /no/file": exitUsage,
	} {
		if _, stderr, code := l.run(t, strings.Fields(args)...); code != want {
			t.Errorf("%s: exit %d: %s", args, code, stderr)
		}
	}
}

// TestFilesOnBoard: what a machine takes along names the servers that it will
// reach.
func TestFilesOnBoard(t *testing.T) {
	l := newLab(t)
	s, err := site.Open(l.site, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	l.write(t, "machines/web1/config.json", `{"Machine": {"Hostname": "web1", "HostMacAddress": "52:54:00:00:00:01"}, "Install": {"Steps": [{"Programme": "hello", "Before": "storage"}]}}`)
	l.write(t, "machines/web1/imagename", "debian/12\n")
	l.write(t, "machines/web1/steps/hello", "#!/bin/sh\n")
	m, err := s.Machine("web1")
	if err != nil {
		t.Fatal(err)
	}
	c := &common{imageserver: "images:7000"}
	got, err := c.filesOnBoard(s, m, addr("192.0.2.1:50000"), takeoverFlags{})
	if err != nil {
		t.Fatal(err)
	}
	if string(got["imageserver"]) != "192.0.2.1:6971\n" || string(got["siteserver"]) != "https://192.0.2.1:8080\n" || string(got["steps/hello"]) != "#!/bin/sh\n" || got["config.json"] == nil {
		t.Errorf("%q", got)
	}
	if got, err = c.filesOnBoard(s, m, addr("192.0.2.1:50000"), takeoverFlags{imageServer: true, noReport: true}); err != nil || string(got["imageserver"]) != "images:7000\n" || got["siteserver"] != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// addr is an address in words.
type addr string

func (addr) Network() string  { return "tcp" }
func (a addr) String() string { return string(a) }
