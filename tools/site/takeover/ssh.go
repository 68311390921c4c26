// Package takeover starts the installer on a machine that runs Linux already,
// without its firmware, its BMC or somebody's hands: over ssh the installer's
// kernel and initramfs are copied into the machine's memory and started by kexec.
//
// Until the very last step nothing on the machine changes but files in its
// memory, and these are taken away again when a step fails. It never decides
// whether the machine may be installed.
package takeover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"
)

// The codes of this package; docs/errors.md explains each.
const (
	CodeUnreachable = "SRV-078" // nobody answers there, or the connection is lost
	CodeHostKey     = "TRU-052" // the host's key is not known, or another one
	CodeLogin       = "TRU-053" // the host does not let us in
	CodeUnable      = "SRV-079" // the host cannot be taken over
	CodeFailed      = "SRV-080" // a step on the host failed
)

// Error is a take-over that did not happen.
type Error struct {
	code, text string
	err        error
}

func (e *Error) Error() string {
	if e.err == nil {
		return e.text
	}
	return e.text + ": " + e.err.Error()
}

// Code is one of the codes of this package.
func (e *Error) Code() string { return e.code }

// Unwrap is the cause, which may be nil.
func (e *Error) Unwrap() error { return e.err }

func fail(code string, err error, format string, args ...any) error {
	return &Error{code, fmt.Sprintf(format, args...), err}
}

// Login is how to get into a host.
type Login struct {
	User, Host string // Host may have a port
	// Known are files as known_hosts(5); those that are not there are left out.
	Known []string
	// Keys are files of private keys without passphrase; those that are not there
	// are left out. Agent is the socket of an agent (SSH_AUTH_SOCK), or empty.
	Keys  []string
	Agent string
}

// ParseLogin reads user@host, with a port where it is not 22.
func ParseLogin(text string) (Login, error) {
	user, host, ok := strings.Cut(text, "@")
	if !ok || user == "" || host == "" || strings.ContainsAny(host, "@/ ") {
		return Login{}, fail(CodeUnreachable, nil, "%q is not USER@HOST", text)
	}
	return Login{User: user, Host: host}, nil
}

// address is host:port.
func (l Login) address() string {
	if _, _, err := net.SplitHostPort(l.Host); err == nil {
		return l.Host
	}
	return net.JoinHostPort(strings.Trim(l.Host, "[]"), "22")
}

// Remote is a connection to a host.
type Remote struct {
	client *ssh.Client
	login  Login
}

// dialLimit bounds the way into a host.
const dialLimit = 30 * time.Second

// Dial logs in. A host whose key is not known is refused, with what to type.
func Dial(ctx context.Context, l Login) (*Remote, error) {
	check, algorithms, err := hostKeys(l)
	if err != nil {
		return nil, err
	}
	methods, closeAgent, err := authentication(l)
	if err != nil {
		return nil, err
	}
	defer closeAgent()
	ctx, cancel := context.WithTimeout(ctx, dialLimit)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", l.address())
	if err != nil {
		return nil, fail(CodeUnreachable, err, "connecting to %s", l.address())
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // ends the handshake
	config := &ssh.ClientConfig{User: l.User, Auth: methods, HostKeyCallback: check, HostKeyAlgorithms: algorithms}
	connection, channels, requests, err := ssh.NewClientConn(conn, l.address(), config)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close() // the error that counts is the other
		return nil, l.explain(ctx, err)
	}
	return &Remote{ssh.NewClient(connection, channels, requests), l}, nil
}

// Close ends the connection; it may be gone already.
func (r *Remote) Close() { _ = r.client.Close() }

// Local is the address of this machine that the host sees us by.
func (r *Remote) Local() net.Addr { return r.client.LocalAddr() }

func (l Login) explain(ctx context.Context, err error) error {
	var ours *Error
	switch {
	case errors.As(err, &ours):
		return ours
	case ctx.Err() != nil:
		return fail(CodeUnreachable, context.Cause(ctx), "logging in to %s", l.address())
	case strings.Contains(err.Error(), "unable to authenticate"):
		return fail(CodeLogin, nil, "%s does not let %s in with the keys of the agent or of %s", l.address(), l.User, strings.Join(l.Keys, ", "))
	}
	return fail(CodeUnreachable, err, "logging in to %s", l.address())
}

// hostKeys are how the host's key is checked, and which kinds of keys of it are
// known: it shall show one of those.
func hostKeys(l Login) (ssh.HostKeyCallback, []string, error) {
	var there []string
	for _, file := range l.Known {
		if _, err := os.Stat(file); err == nil {
			there = append(there, file)
		}
	}
	known, err := knownhosts.New(there...)
	if err != nil {
		return nil, nil, fail(CodeHostKey, err, "reading known hosts")
	}
	check := func(name string, remote net.Addr, key ssh.PublicKey) error {
		err := known(name, remote, key)
		var wrong *knownhosts.KeyError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &wrong) && len(wrong.Want) > 0:
			return fail(CodeHostKey, nil, "%s shows another host key (%s %s) than the one in %s:%d: somebody else may answer there, or the machine was installed again", l.Host, key.Type(), ssh.FingerprintSHA256(key), wrong.Want[0].Filename, wrong.Want[0].Line)
		case errors.As(err, &wrong):
			line := knownhosts.Line([]string{knownhosts.Normalize(l.address())}, key)
			return fail(CodeHostKey, nil, "the host key of %s is not known; if %s %s is its own (ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub shows it there), type:  echo '%s' >> ~/.ssh/known_hosts", l.Host, key.Type(), ssh.FingerprintSHA256(key), line)
		}
		return fail(CodeHostKey, err, "the host key of %s", l.Host)
	}
	return check, algorithmsOf(known, l.address()), nil
}

// algorithmsOf are the kinds of keys that are known of a host: asked for a key
// that nobody has, the list of known ones comes back.
func algorithmsOf(known ssh.HostKeyCallback, address string) (all []string) {
	var wrong *knownhosts.KeyError
	if err := known(address, &net.TCPAddr{}, nobodys{}); !errors.As(err, &wrong) {
		return nil
	}
	for _, want := range wrong.Want {
		kind := want.Key.Type()
		if kind == ssh.KeyAlgoRSA {
			// The same key by better signatures (RFC 8332).
			all = append(all, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
		}
		all = append(all, kind)
	}
	if len(all) == 0 {
		// Of a host that is not known the key to write down is the one that ssh(1)
		// would ask for.
		return []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	}
	return all
}

// nobodys is a key that no host has.
type nobodys struct{}

func (nobodys) Type() string                        { return "nobody's" }
func (nobodys) Marshal() []byte                     { return []byte("nobody's") }
func (nobodys) Verify([]byte, *ssh.Signature) error { return errors.New("nobody's key") }

// authentication offers the agent's keys, and then those in files.
func authentication(l Login) (methods []ssh.AuthMethod, closeAgent func(), err error) {
	closeAgent = func() {}
	var signers []ssh.Signer
	if l.Agent != "" {
		// An agent that is gone is no reason not to use the files.
		if conn, err := net.Dial("unix", l.Agent); err == nil {
			closeAgent = func() { _ = conn.Close() }
			if keys, err := agent.NewClient(conn).Signers(); err == nil {
				signers = append(signers, keys...)
			}
		}
	}
	var locked []string
	for _, file := range l.Keys {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var signer ssh.Signer
		if err == nil {
			signer, err = ssh.ParsePrivateKey(text)
		}
		var passphrase *ssh.PassphraseMissingError
		switch {
		case errors.As(err, &passphrase):
			locked = append(locked, file)
		case err != nil:
			closeAgent()
			return nil, nil, fail(CodeLogin, err, "reading the key %s", file)
		default:
			signers = append(signers, signer)
		}
	}
	if len(signers) == 0 {
		closeAgent()
		if len(locked) > 0 {
			return nil, nil, fail(CodeLogin, nil, "the key %s has a passphrase: type  ssh-add %s", locked[0], locked[0])
		}
		return nil, nil, fail(CodeLogin, nil, "there is no key to log in with: no agent, and none of %s", strings.Join(l.Keys, ", "))
	}
	return []ssh.AuthMethod{ssh.PublicKeys(signers...)}, closeAgent, nil
}

// StandardFiles are the files of known hosts and of private keys below a home
// directory, as ssh(1) has them.
func StandardFiles(home string) (known, keys []string) {
	known = []string{filepath.Join(home, ".ssh", "known_hosts"), "/etc/ssh/ssh_known_hosts"}
	for _, name := range []string{"id_ed25519", "id_ecdsa", "id_rsa"} {
		keys = append(keys, filepath.Join(home, ".ssh", name))
	}
	return known, keys
}

// mostSaid bounds what a command on the host may say, in bytes.
const mostSaid = 1 << 20

// run runs a command in the host's shell. Its standard output is returned; its
// standard error stands in the error.
func (r *Remote) run(ctx context.Context, command string, stdin io.Reader) (string, error) {
	session, err := r.client.NewSession()
	if err != nil {
		return "", fail(CodeUnreachable, err, "opening a session on %s", r.login.Host)
	}
	defer session.Close() // it has ended, or is ended by this
	stop := context.AfterFunc(ctx, func() { _ = session.Close() })
	defer stop()
	out, errs := &limited{}, &limited{}
	session.Stdin, session.Stdout, session.Stderr = stdin, out, errs
	err = session.Run(command)
	var status *ssh.ExitError
	switch {
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case errors.As(err, &status):
		said := strings.Join(strings.Fields(errs.String()), " ")
		return out.String(), fail(CodeFailed, nil, "exit status %d: %s", status.ExitStatus(), said)
	case err != nil:
		return "", fail(CodeUnreachable, err, "the connection to %s", r.login.Host)
	}
	return out.String(), nil
}

// limited keeps the beginning of what is written to it.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if room := mostSaid - l.Len(); room > 0 {
		_, _ = l.Buffer.Write(p[:min(room, len(p))]) // a Buffer takes all
	}
	return len(p), nil
}
