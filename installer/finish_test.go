package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/firstlight/firstlight/installer/fetch"
	"github.com/firstlight/firstlight/installer/plan"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/netconfig/dhcp"
)

func TestLogsHaveTheConfigurationAndNoSecret(t *testing.T) {
	i, _ := testInstallation(t)
	var err error
	if i.journal, err = openJournal(i.runDir); err != nil {
		t.Fatal(err)
	}
	defer i.journal.close()
	i.model = progress.New(i.env.now, progress.LineWriter(i.journal.log), progress.EventWriter(i.journal.events))
	i.model.Start(progress.Finish)
	i.model.Log(progress.Finish, "the end is near")
	i.by, i.lease = plan.Kexec, &dhcp.Lease{Interface: "eth0"}
	i.files = fetch.Files{
		fetch.ConfigJSON: []byte("{}"), fetch.StorageLayoutJSON: []byte("{}"), fetch.ImageName: []byte("debian/12\n"),
		fetch.ImageServer: []byte("images\n"), fetch.RandomSeed: []byte("very secret"),
	}
	files, err := i.logFiles()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]byte{}
	for _, file := range files {
		if bytes.Contains(file.Data, i.files[fetch.RandomSeed]) || file.Mode&0o007 != 0 {
			t.Errorf("%s, mode %o, is not for everyone, and the seed for nobody: %s", file.Path, file.Mode, file.Data)
		}
		if name, below := strings.CutPrefix(file.Path, logDirectory+"/"); below {
			found[name] = file.Data
		}
	}
	want := []string{"config.json", "dhcp/eth0.json", "events.jsonl", "imagename", "imageserver", "log", "plan.json", "storage-layout.json", "summary.json"}
	if got := slices.Sorted(maps.Keys(found)); !slices.Equal(got, want) {
		t.Errorf("left are %q, wanted %q", got, want)
	}
	for name, text := range map[string]string{"log": "finish: the end is near", "events.jsonl": `"event":"start"`, "summary.json": `"handOver": "kexec"`} {
		if !bytes.Contains(found[name], []byte(text)) {
			t.Errorf("%s lacks %q: %s", name, text, found[name])
		}
	}
	for name, data := range found {
		if path.Ext(name) == ".json" && !json.Valid(data) {
			t.Errorf("%s is no JSON: %s", name, data)
		}
	}
}

func TestNewSystemIsStartedByFirmwareWhereKexecFails(t *testing.T) {
	for name, test := range map[string]struct {
		by   string
		want []string
	}{
		"kexec fails": {plan.Kexec, []string{"closed", "kexec", "reboot"}},
		"reboot":      {plan.Reboot, []string{"closed", "reboot"}},
	} {
		t.Run(name, func(t *testing.T) {
			i, log := testInstallation(t)
			var done []string
			note := func(what string, err error) func() error {
				return func() error { done = append(done, what); return err }
			}
			i.by = test.by
			i.opened.push("everything", note("closed", nil))
			i.env.startNext, i.env.reboot = note("kexec", errors.New("no kernel is loaded")), note("reboot", nil)
			if err := i.startNewSystem(); err != nil || !slices.Equal(done, test.want) {
				t.Errorf("done was %q, %v; wanted %q", done, err, test.want)
			}
			if said := strings.Contains(log.String(), "no kernel is loaded; rebooting instead"); said != (test.by == plan.Kexec) {
				t.Errorf("the log says %q", log)
			}
		})
	}
}
