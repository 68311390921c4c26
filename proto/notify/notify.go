// Package notify tells the service manager that started a program that it is
// ready (sd_notify(3)), so that what comes after it waits for its port and not
// for its process.
package notify

import (
	"errors"
	"fmt"
	"net"
)

// Ready says that the program is ready. socket is the value of NOTIFY_SOCKET;
// without one nobody is told, which is no error.
func Ready(socket string) error {
	if socket == "" {
		return nil
	}
	if socket[0] == '@' { // an abstract address (unix(7))
		socket = "\x00" + socket[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("telling the service manager: %w", err)
	}
	_, err = conn.Write([]byte("READY=1\n"))
	return errors.Join(err, conn.Close())
}
