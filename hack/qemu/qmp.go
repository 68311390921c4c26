package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"time"
)

// control is a connection to QEMU's machine protocol (QMP, see
// docs/interop/qmp-spec.txt of QEMU).
type control struct {
	mu   sync.Mutex
	conn net.Conn
	r    *bufio.Reader
}

func newControl(ctx context.Context, conn net.Conn) (*control, error) {
	c := &control{conn: conn, r: bufio.NewReader(conn)}
	c.deadline(ctx)
	if _, err := c.r.ReadBytes('\n'); err != nil { // the greeting
		return nil, fmt.Errorf("reading the greeting of QMP: %w", err)
	}
	return c, c.execute(ctx, "qmp_capabilities", nil, nil)
}

func (c *control) deadline(ctx context.Context) {
	d, ok := ctx.Deadline()
	if !ok {
		d = time.Now().Add(30 * time.Second)
	}
	// It can only fail on a closed connection, which the next read reports.
	_ = c.conn.SetDeadline(d)
}

// execute runs one command and decodes what it returns into result, unless
// that is nil. Events that arrive meanwhile are dropped.
func (c *control) execute(ctx context.Context, command string, arguments, result any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline(ctx)
	request, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}
	if _, err := c.conn.Write(append(request, '\n')); err != nil {
		return fmt.Errorf("QMP %s: %w", command, err)
	}
	for {
		line, err := c.r.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("QMP %s: %w", command, err)
		}
		var answer struct {
			Return json.RawMessage `json:"return"`
			Error  *struct {
				Desc string `json:"desc"`
			} `json:"error"`
		}
		if err := json.Unmarshal(line, &answer); err != nil {
			return fmt.Errorf("QMP %s: %w", command, err)
		}
		switch {
		case answer.Error != nil:
			return fmt.Errorf("QMP %s: %s", command, answer.Error.Desc)
		case answer.Return == nil:
			continue // an event
		case result == nil:
			return nil
		}
		return json.Unmarshal(answer.Return, result)
	}
}
