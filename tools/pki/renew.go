package pki

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// renewBefore is how long before its end a certificate is issued again.
const renewBefore = 30 * 24 * time.Hour

// Renew sees to it that the server's certificate NAME.pem is there and valid, by
// this CA, for every one of the addresses, for a month at least. Where it is not,
// another one is issued in its place, for the same key, and why says what was
// wrong with the old one; that stays beside it as NAME.pem.old. Addresses that the
// old one was valid for and that are not wanted any more are left out.
func (a *Authority) Renew(name string, addresses []string) (issued Issued, why string, err error) {
	return a.renew(Request{Name: name, Server: true, Addresses: slices.Concat([]string{"localhost", "127.0.0.1", "::1"}, addresses)})
}

// renew is Renew for any request: a client's certificate is issued again before
// it ends.
func (a *Authority) renew(request Request) (issued Issued, why string, err error) {
	if err := checkRequest(request); err != nil {
		return Issued{}, "", err
	}
	name := request.Name
	files := a.files(name)
	old, err := os.ReadFile(files.Cert)
	if errors.Is(err, fs.ErrNotExist) {
		issued, err = a.Issue(request)
		return issued, "there was none", err
	}
	if err != nil {
		return files, "", err
	}
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		return files, "", &Error{code: CodeExists, text: fmt.Sprintf("%s is there and cannot be used; move it away to have a new one made", files.Cert), err: err}
	}
	if why = a.unfit(pair.Leaf, request.Addresses); why == "" {
		return files, "", nil
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return files, "", &Error{code: CodeExists, text: files.Key + " is no ECDSA key; move it and its certificate away to have new ones made"}
	}
	template, err := a.template(request)
	if err != nil {
		return files, why, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		return files, why, fmt.Errorf("issuing %s: %w", name, err)
	}
	if err := replaceFile(files.Cert+".old", old); err != nil {
		return files, why, err
	}
	files.New = true
	return files, why, replaceFile(files.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// unfit says why a certificate has to be issued again; empty where it has not.
func (a *Authority) unfit(leaf *x509.Certificate, addresses []string) string {
	if leaf.CheckSignatureFrom(a.certificate) != nil {
		return "it was signed by another CA"
	}
	// A CA that ends sooner cannot be outlived.
	if end := leaf.NotAfter; a.clock().Add(renewBefore).After(end) && end.Before(a.certificate.NotAfter) {
		return "it ends on " + end.UTC().Format(time.DateOnly)
	}
	var missing []string
	for _, address := range addresses {
		if leaf.VerifyHostname(address) != nil {
			missing = append(missing, address)
		}
	}
	if len(missing) > 0 {
		return "it was not valid for " + strings.Join(missing, ", ")
	}
	return ""
}

// replaceFile writes a certificate so that readers find the old or the new one.
func replaceFile(name string, text []byte) (err error) {
	temporary, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temporary.Name()) // the error that counts is the first
		}
	}()
	_, err = temporary.Write(text)
	if err = errors.Join(err, temporary.Chmod(0o644), temporary.Sync(), temporary.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return os.Rename(temporary.Name(), name)
}
