package fetch

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pin/tftp/v3"

	"github.com/firstlight/firstlight/netconfig"
	"github.com/firstlight/firstlight/storage/tool"
)

var testMAC = netconfig.MAC{0x52, 0x54, 0, 0, 0, 1}

const testSerial = "SN 42"

func code(err error) string {
	var coded *Error
	if errors.As(err, &coded) {
		return coded.Code()
	}
	return ""
}

// hurried is a patience that tests can wait for.
func hurried() patience { return patience{deadline: 2 * time.Second, first: 10 * time.Millisecond} }

// conformance is what every source promises; put makes a file of it.
func conformance(t *testing.T, source Source, put func(name string, data []byte)) {
	t.Helper()
	put(ConfigJSON, []byte("{}\n"))
	put(ToolsImageName, nil)
	put(RandomSeed, bytes.Repeat([]byte{0, 1, 2, 0xff}, blockSize/2)) // two whole blocks
	put(SiteServer, make([]byte, MaxFileBytes+1))
	put(StorageLayoutJSON, make([]byte, MaxFileBytes))
	for name, want := range map[string][]byte{
		ConfigJSON: []byte("{}\n"), ToolsImageName: {}, StorageLayoutJSON: make([]byte, MaxFileBytes),
		RandomSeed: bytes.Repeat([]byte{0, 1, 2, 0xff}, blockSize/2),
	} {
		got, err := source.Get(t.Context(), name)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, len(want))
		}
	}
	if _, err := source.Get(t.Context(), SiteServer); code(err) != "CFG-104" {
		t.Errorf("a file too large: %v", err)
	}
	if _, err := source.Get(t.Context(), ImageName); !errors.Is(err, ErrAbsent) || !strings.Contains(err.Error(), ImageName) {
		t.Errorf("an absent file: %v", err)
	}
	if _, err := All(t.Context(), source); err == nil || errors.Is(err, ErrAbsent) && code(err) != "CFG-101" {
		t.Errorf("All without imagename: %v", err)
	}
	var some sync.WaitGroup
	for range 4 {
		some.Go(func() {
			if got, err := source.Get(t.Context(), ConfigJSON); err != nil || string(got) != "{}\n" {
				t.Errorf("at once: %q, %v", got, err)
			}
		})
	}
	some.Wait()
}

func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	conformance(t, Directory(dir), func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	if err := os.Mkdir(filepath.Join(dir, ImageName), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Directory(dir).Get(t.Context(), ImageName); code(err) != "CFG-107" || errors.Is(err, ErrAbsent) {
		t.Errorf("a directory in place of a file: %v", err)
	}
}

// memory is a source for All itself.
type memory map[string]string

func (m memory) String() string { return "memory" }

func (m memory) Get(_ context.Context, name string) ([]byte, error) {
	switch data, ok := m[name]; {
	case data == "broken":
		return nil, errors.New("broken")
	case ok:
		return []byte(data), nil
	}
	return nil, fmt.Errorf("%s: %w", name, ErrAbsent)
}

func TestAll(t *testing.T) {
	got, err := All(t.Context(), memory{ConfigJSON: "{}", ImageName: "debian/12", "other": "x"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Files{ConfigJSON: []byte("{}"), ImageName: []byte("debian/12")}, got); diff != "" {
		t.Error(diff)
	}
	if _, err := All(t.Context(), memory{ImageName: "x"}); code(err) != "CFG-101" || !strings.HasPrefix(err.Error(), ConfigJSON+" is missing from memory") {
		t.Errorf("got %v", err)
	}
	if got, err := All(t.Context(), memory{ConfigJSON: "{}"}); err != nil || len(got) != 1 {
		t.Errorf("a machine that is wiped has no imagename: %v, %v", got, err)
	}
	if got, err := All(t.Context(), memory{ConfigJSON: "{}", ImageName: "x", StorageLayoutJSON: "broken"}); err == nil {
		t.Errorf("a failure was taken for absence: %v", got)
	}
}

// recorder is a tool.Runner that notes and writes.
type recorder struct {
	got tool.Cmd
	err error
}

func (r *recorder) Run(_ context.Context, c tool.Cmd) (tool.Output, error) {
	r.got = c
	if r.err == nil {
		r.err = os.WriteFile(filepath.Join(c.Args[0], ConfigJSON), []byte("{}"), 0o600)
	}
	return tool.Output{}, r.err
}

func TestProgramme(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	var runner recorder
	source, err := Programme(t.Context(), &runner, "/bin/loader", dir, "eth3")
	if err != nil {
		t.Fatal(err)
	}
	if runner.got.Name != "/bin/loader" || !slices.Equal(runner.got.Args, []string{dir, "eth3"}) {
		t.Errorf("ran %s", runner.got)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode() != fs.ModeDir|0o700 {
		t.Errorf("directory: %v, %v", info.Mode(), err)
	}
	if got, err := source.Get(t.Context(), ConfigJSON); err != nil || string(got) != "{}" {
		t.Errorf("%q, %v", got, err)
	}
	runner.err = errors.New("exit status 3")
	if _, err := Programme(t.Context(), &runner, "/bin/loader", dir, "eth3"); code(err) != "CFG-106" || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v", err)
	}
}

func TestProgrammeForReal(t *testing.T) {
	dir := t.TempDir()
	loader := filepath.Join(dir, "loader")
	script := "#!/bin/sh\n[ $# = 2 ] || exit 3\nprintf '{}' >\"$1/config.json\"\nprintf %s \"$2\" >\"$1/imagename\"\n"
	if err := os.WriteFile(loader, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	source, err := Programme(t.Context(), tool.Exec{}, loader, filepath.Join(dir, "out"), "eth0")
	if err != nil {
		t.Fatal(err)
	}
	files, err := All(t.Context(), source)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Files{ConfigJSON: []byte("{}"), ImageName: []byte("eth0")}, files); diff != "" {
		t.Error(diff)
	}
}

func TestHTTP(t *testing.T) {
	var mu sync.Mutex
	files := map[string][]byte{}
	var query atomic.Value
	mux := http.NewServeMux()
	mux.HandleFunc("GET /base/{name}", func(w http.ResponseWriter, r *http.Request) {
		query.Store(r.URL.RawQuery)
		mu.Lock()
		data, ok := files[r.PathValue("name")]
		mu.Unlock()
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(data) // the client sees when it is cut off
	})
	server := httptest.NewUnstartedServer(mux)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // of the refused handshakes below
	server.StartTLS()
	defer server.Close()
	source, err := HTTP(server.URL+"/base/?token=s3cret", testMAC, testSerial)
	if err != nil {
		t.Fatal(err)
	}
	source.Client = server.Client()
	source.patience = hurried()
	conformance(t, source, func(name string, data []byte) {
		mu.Lock()
		defer mu.Unlock()
		files[name] = data
	})
	if got, want := query.Load(), "mac=52%3A54%3A00%3A00%3A00%3A01&serial_number=SN+42&token=s3cret"; got != want {
		t.Errorf("query %s, want %s", got, want)
	}
	if strings.Contains(source.String(), "s3cret") {
		t.Errorf("%s shows the query", source)
	}
	source.Client = http.DefaultClient // which does not trust the server
	if _, err := source.Get(t.Context(), ImageName); code(err) != "CFG-102" || errors.Is(err, ErrAbsent) || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("an untrusted server: %v", err)
	}
}

func TestHTTPTrouble(t *testing.T) {
	var asked atomic.Int32
	answer := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	cut := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "cut off") // on purpose
	}
	tests := []struct {
		name    string
		handler http.HandlerFunc
		code    string
		again   bool // is it tried more than once?
	}{
		{"forbidden", answer(http.StatusForbidden), "CFG-103", false},
		{"gone", answer(http.StatusGone), "CFG-103", false},
		{"unavailable", answer(http.StatusServiceUnavailable), "CFG-102", true},
		{"cut off", cut, "CFG-102", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			asked.Store(0)
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				test.handler(w, r)
			}))
			defer server.Close()
			source, err := HTTP(server.URL, testMAC, testSerial)
			if err != nil {
				t.Fatal(err)
			}
			source.patience = patience{deadline: 300 * time.Millisecond, first: 10 * time.Millisecond}
			_, err = source.Get(t.Context(), ConfigJSON)
			if code(err) != test.code || errors.Is(err, ErrAbsent) || test.again != (asked.Load() > 1) {
				t.Errorf("after %d requests: %v", asked.Load(), err)
			}
		})
	}
	t.Run("comes up late", func(t *testing.T) {
		asked.Store(0)
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if asked.Add(1) < 3 {
				w.WriteHeader(http.StatusBadGateway)
				return
			}
			_, _ = io.WriteString(w, "here") // the client sees when it is cut off
		}))
		defer server.Close()
		source, err := HTTP(server.URL, testMAC, testSerial)
		if err != nil {
			t.Fatal(err)
		}
		source.patience = hurried()
		if got, err := source.Get(t.Context(), ConfigJSON); err != nil || string(got) != "here" {
			t.Errorf("%q, %v", got, err)
		}
	})
	for _, bad := range []string{"", "ftp://a/b", "boot.example.com", "http://", "http://a b/"} {
		if _, err := HTTP(bad, testMAC, testSerial); code(err) != "CFG-105" {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// tftpServer is a real server on the loopback interface.
func tftpServer(t *testing.T, files func(path string) ([]byte, bool)) string {
	t.Helper()
	server := tftp.NewServer(func(path string, rf io.ReaderFrom) error {
		data, ok := files(path)
		if !ok {
			return fs.ErrNotExist // sent as error 1
		}
		_, err := rf.ReadFrom(bytes.NewReader(data))
		return err
	}, nil)
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(conn) }()
	t.Cleanup(func() {
		server.Shutdown()
		if err := <-done; err != nil {
			t.Errorf("TFTP server: %v", err)
		}
	})
	return conn.LocalAddr().String()
}

func hurriedTFTP(server string) *TFTPSource {
	source := TFTP(server, testMAC, testSerial)
	source.patience, source.answer = hurried(), 100*time.Millisecond
	return source
}

func TestTFTP(t *testing.T) {
	for _, dir := range []string{"52-54-00-00-00-01/", "SN 42/", ""} {
		t.Run("in "+dir, func(t *testing.T) {
			var mu sync.Mutex
			files := map[string][]byte{}
			server := tftpServer(t, func(path string) ([]byte, bool) {
				mu.Lock()
				defer mu.Unlock()
				data, ok := files[path]
				return data, ok
			})
			source := hurriedTFTP(server)
			source.patience.deadline = 20 * time.Second
			conformance(t, source, func(name string, data []byte) {
				mu.Lock()
				defer mu.Unlock()
				files[dir+name] = data
			})
		})
	}
}

func TestTFTPTakesEachFileFromTheFirstDirectoryThatHasIt(t *testing.T) {
	files := map[string]string{
		"52-54-00-00-00-01/config.json": "mac", "SN 42/config.json": "serial", "config.json": "root",
		"SN 42/imagename": "serial", "imagename": "root",
		"imageserver": "root",
	}
	server := tftpServer(t, func(path string) ([]byte, bool) {
		data, ok := files[path]
		return []byte(data), ok
	})
	got, err := All(t.Context(), hurriedTFTP(server))
	if err != nil {
		t.Fatal(err)
	}
	want := Files{ConfigJSON: []byte("mac"), ImageName: []byte("serial"), ImageServer: []byte("root")}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	without := tftpServer(t, func(path string) ([]byte, bool) {
		data, ok := files[path]
		return []byte(data), ok && !strings.HasSuffix(path, ConfigJSON)
	})
	_, err = All(t.Context(), hurriedTFTP(without))
	if code(err) != "CFG-101" || !strings.Contains(err.Error(), "52-54-00-00-00-01/, SN 42/ and the root") {
		t.Errorf("got %v", err)
	}
}

// rawTFTP answers each packet as answer says: the bytes to send back, or nil
// to be silent. It sends from the one port.
func rawTFTP(t *testing.T, answer func(packet []byte) []byte) string {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() }) // ends the loop
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFromUDP(buf)
			if err != nil {
				return
			}
			if out := answer(slices.Clone(buf[:n])); out != nil {
				_, _ = conn.WriteToUDP(out, from) // a lost packet is what is being tested
			}
		}
	}()
	return conn.LocalAddr().String()
}

// The packets of RFC 1350.
func errorPacket(code uint16, text string) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{0, 5}, code), text+"\x00"...)
}
func dataPacket(block uint16, data string) []byte {
	return append(binary.BigEndian.AppendUint16([]byte{0, 3}, block), data...)
}
func opcode(packet []byte) uint16 { return binary.BigEndian.Uint16(packet) }

const readRequest, acknowledge = 1, 4

func TestTFTPServerThatRefusesOptions(t *testing.T) {
	for _, refusal := range []uint16{8, 0, 4} { // RFC 2347; older servers say "undefined" or "illegal operation"
		server := rawTFTP(t, func(p []byte) []byte {
			switch {
			case opcode(p) == readRequest && bytes.Contains(p, []byte("blksize")):
				return errorPacket(refusal, "no options please")
			case opcode(p) == readRequest:
				return dataPacket(1, "plain")
			}
			return nil
		})
		if got, err := hurriedTFTP(server).Get(t.Context(), ConfigJSON); err != nil || string(got) != "plain" {
			t.Errorf("refused with %d: %q, %v", refusal, got, err)
		}
	}
}

func TestTFTPServerThatKnowsNoOptions(t *testing.T) {
	long := strings.Repeat("x", 512)
	server := rawTFTP(t, func(p []byte) []byte {
		switch {
		case opcode(p) == readRequest:
			return dataPacket(1, long)
		case opcode(p) == acknowledge && p[3] == 1:
			return dataPacket(2, "end")
		}
		return nil
	})
	if got, err := hurriedTFTP(server).Get(t.Context(), ConfigJSON); err != nil || string(got) != long+"end" {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestTFTPSurvivesLostPackets(t *testing.T) {
	var n atomic.Int32
	long := strings.Repeat("x", 512)
	server := rawTFTP(t, func(p []byte) []byte {
		if n.Add(1)%3 != 0 { // two of three are lost
			return nil
		}
		switch {
		case opcode(p) == readRequest:
			return dataPacket(1, long)
		case opcode(p) == acknowledge && p[3] < 4:
			return dataPacket(uint16(p[3])+1, long)
		case opcode(p) == acknowledge:
			return dataPacket(5, "")
		}
		return nil
	})
	source := hurriedTFTP(server)
	source.patience.deadline = 30 * time.Second
	if got, err := source.Get(t.Context(), ConfigJSON); err != nil || len(got) != 4*512 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestTFTPSilenceIsNotAbsence(t *testing.T) {
	// The server has the machine's config.json but is silent about its layout.
	server := rawTFTP(t, func(p []byte) []byte {
		switch {
		case opcode(p) != readRequest || bytes.Contains(p, []byte(StorageLayoutJSON)):
			return nil
		case bytes.Contains(p, []byte("/")):
			return dataPacket(1, "x")
		}
		return errorPacket(1, "File not found")
	})
	source := hurriedTFTP(server)
	source.patience.deadline = 500 * time.Millisecond
	files, err := All(t.Context(), source)
	if code(err) != "CFG-102" || errors.Is(err, ErrAbsent) || !strings.Contains(err.Error(), StorageLayoutJSON) {
		t.Errorf("got %v, %v", files, err)
	}
}

func TestTFTPErrorIsNotAbsence(t *testing.T) {
	server := rawTFTP(t, func(p []byte) []byte {
		if opcode(p) == readRequest {
			return errorPacket(2, "Access violation")
		}
		return nil
	})
	_, err := hurriedTFTP(server).Get(t.Context(), ConfigJSON)
	if code(err) != "CFG-103" || errors.Is(err, ErrAbsent) || !strings.Contains(err.Error(), "Access violation") {
		t.Errorf("got %v", err)
	}
}

func TestTFTPServerThatDiesInTheMiddle(t *testing.T) {
	server := rawTFTP(t, func(p []byte) []byte {
		if opcode(p) == readRequest {
			return dataPacket(1, strings.Repeat("x", 512))
		}
		return nil
	})
	source := hurriedTFTP(server)
	source.patience.deadline = time.Second
	if got, err := source.Get(t.Context(), ConfigJSON); code(err) != "CFG-102" {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestTFTPEndsWithItsContext(t *testing.T) {
	server := rawTFTP(t, func([]byte) []byte { return nil })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := TFTP(server, testMAC, testSerial).Get(ctx, ConfigJSON)
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > time.Second {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
}

func TestTFTPServerNames(t *testing.T) {
	source := hurriedTFTP("")
	for _, bad := range []string{"", "a/b", "tftp://a"} {
		source.server = bad
		if _, err := source.Get(t.Context(), ConfigJSON); code(err) != "CFG-105" {
			t.Errorf("%q: %v", bad, err)
		}
	}
	source.server = "no-such-host.invalid"
	source.patience.deadline = 300 * time.Millisecond
	if _, err := source.Get(t.Context(), ConfigJSON); code(err) != "CFG-102" {
		t.Errorf("got %v", err)
	}
	for server, want := range map[string]string{
		"10.0.0.1": "10.0.0.1:69", "10.0.0.1:6969": "10.0.0.1:6969", "2001:db8::1": "[2001:db8::1]:69", "[2001:db8::1]:70": "[2001:db8::1]:70",
	} {
		source.server = server
		if got, err := source.resolve(t.Context()); err != nil || got != want {
			t.Errorf("%s: %s, %v", server, got, err)
		}
	}
}

func TestTFTPDirectories(t *testing.T) {
	for serial, want := range map[string][]string{
		"S1": {"52-54-00-00-00-01/", "S1/", ""}, "": {"52-54-00-00-00-01/", ""}, "..": {"52-54-00-00-00-01/", ""},
		"../x": {"52-54-00-00-00-01/", ""}, "a\x00b": {"52-54-00-00-00-01/", ""},
	} {
		if diff := cmp.Diff(want, TFTP("h", testMAC, serial).dirs); diff != "" {
			t.Errorf("%q: %s", serial, diff)
		}
	}
	if diff := cmp.Diff([]string{""}, TFTP("h", netconfig.MAC{}, "").dirs); diff != "" {
		t.Error(diff)
	}
}
