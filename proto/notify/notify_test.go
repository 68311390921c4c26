package notify

import (
	"net"
	"path/filepath"
	"testing"
)

func TestReady(t *testing.T) {
	if err := Ready(""); err != nil {
		t.Errorf("without a service manager: %v", err)
	}
	for _, socket := range []string{filepath.Join(t.TempDir(), "s"), "@firstlight-notify-test"} {
		name := socket
		if name[0] == '@' {
			name = "\x00" + name[1:]
		}
		manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer manager.Close()
		if err := Ready(socket); err != nil {
			t.Fatal(err)
		}
		said := make([]byte, 64)
		n, err := manager.Read(said)
		if err != nil || string(said[:n]) != "READY=1\n" {
			t.Errorf("%s: it was told %q, %v", socket, said[:n], err)
		}
	}
	if Ready(filepath.Join(t.TempDir(), "nobody")) == nil {
		t.Error("nobody listens, and that was no error")
	}
}
