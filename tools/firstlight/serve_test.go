package main

import (
	"net"
	"os"
	"testing"
)

func TestPageURL(t *testing.T) {
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]string{
		"[::]:8080":       "http://" + name + ":8080/",
		"0.0.0.0:80":      "http://" + name + ":80/",
		"127.0.0.1:8080":  "http://127.0.0.1:8080/",
		"[fd00::1]:18080": "http://[fd00::1]:18080/",
	} {
		listens, err := net.ResolveTCPAddr("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if got := pageURL(listens); got != want {
			t.Errorf("%s is shown as %s, want %s", address, got, want)
		}
	}
}
