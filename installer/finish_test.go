package main

import (
	"bytes"
	"encoding/json"
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
