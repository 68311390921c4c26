package client

import (
	"errors"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// A connection that was kept for a while gives the server its full time again
// when the next request is sent; a silent one ends all the same.
func TestKeptConnectionIsPatientAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		defer here.Close()
		defer there.Close()
		kept := &impatient{Conn: here, silence: 30 * time.Second}
		read := make(chan error)
		go func() {
			for {
				_, err := kept.Read(make([]byte, 1))
				read <- err
				if err != nil {
					return
				}
			}
		}()
		time.Sleep(29 * time.Second) // nobody wants anything
		go kept.Write([]byte{1})
		if _, err := there.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second) // the server is busy
		go there.Write([]byte{2})
		if err := <-read; err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		if err := <-read; !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begun) > 30*time.Second {
			t.Errorf("a silent server: %v after %v", err, time.Since(begun))
		}
	})
}
