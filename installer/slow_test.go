package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/firstlight/firstlight/installer/progress"
)

// TestAThousandSlowConnections: those who say little, or take what is sent to
// them slowly, cost a bounded number of goroutines, files and bytes, an
// installation goes on as without them, and when they are gone the page answers.
func TestAThousandSlowConnections(t *testing.T) {
	i, address := servePage(t)
	for range 4000 { // a log as long as is kept
		i.model.Log(progress.Stage, "a line of the log of some length, as lines of a log are, with a path and a number or two")
	}
	files := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	memory := func() uint64 {
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.HeapInuse + stats.StackInuse
	}
	goroutines, opened, bytes := runtime.NumGoroutine(), files(), memory()

	const many = 1000
	says := []string{"", "G", "GET / HT", "GET /log?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n", "GET /api/v1/events HTTP/1.1\r\nHost: x\r\n\r\n", "\x16\x03\x01", "GET / HTTP/1.1\r\nHost: x\r\nX: ", "PRI * HTTP/2.0\r\n\r\n"}
	var connections []net.Conn
	for n := range many {
		connection, err := net.DialTimeout("tcp", address, 10*time.Second)
		if err != nil {
			t.Fatalf("connection %d: %v", n, err)
		}
		connections = append(connections, connection)
		if _, err := io.WriteString(connection, says[n%len(says)]); err != nil {
			t.Fatal(err)
		}
	}
	// The installation goes on meanwhile.
	var working sync.WaitGroup
	begin := time.Now()
	working.Go(func() {
		for n := range uint64(2000) {
			i.model.Update(progress.Stage, n, 2000)
			i.model.Logf(progress.Stage, "object %d", n)
		}
	})
	working.Wait()
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("2,000 steps took %s", took)
	}
	time.Sleep(time.Second)
	if n := runtime.NumGoroutine() - goroutines; n > 6*maxPageConnections {
		t.Errorf("%d goroutines for %d connections", n, many)
	}
	if n := files() - opened - many; n > maxPageConnections+8 {
		t.Errorf("%d open files for %d connections", n, many)
	}
	if n := int64(memory()) - int64(bytes); n > 48<<20 {
		t.Errorf("%d bytes for %d connections", n, many)
	}
	for _, connection := range connections {
		connection.Close()
	}
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{}}
	answer, err := client.Get(fmt.Sprintf("http://%s/healthz", address))
	if err != nil {
		t.Fatalf("afterwards: %v", err)
	}
	answer.Body.Close()
}
