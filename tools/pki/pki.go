// Package pki is the site's certificate authority: it makes the CA, the
// servers' certificates, and the certificates by which people and programmes
// show their role.
//
// A site keeps its keys in one directory, DIR/secrets (mode 0700; DIR is the
// site's directory, ~/.config/firstlight where none is given):
//
//	CA.pem                the site CA's certificate; public: it goes into boot media
//	ca-key.pem            its private key (0600); needed only to issue
//	imageserver.pem       the image server's certificate (+ imageserver-key.pem, 0600)
//	admin.pem             a client certificate of role admin (+ admin-key.pem, 0600)
//	NAME.pem              what "keys issue" made (+ NAME-key.pem, 0600)
//
// The role stands in the certificate as a URI, urn:firstlight:role:operator.
// Keys are ECDSA P-256. Certificates are valid from a day before they were
// made, because a machine's clock may be behind. No key that is there is ever
// overwritten: running Init again adds what is missing, and issues again what
// lacks an address or is about to end.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The names of files in a site's secrets directory.
const (
	CAFile             = "CA.pem"
	CAKeyFile          = "ca-key.pem"
	ImageserverFile    = "imageserver.pem"
	ImageserverKeyFile = "imageserver-key.pem"
	AdminFile          = "admin.pem"
	AdminKeyFile       = "admin-key.pem"
)

// Valid for: ten years for the CA, 825 days (the longest that common TLS
// libraries accept) for the others.
const (
	caLifetime   = 10 * 365 * 24 * time.Hour
	leafLifetime = 825 * 24 * time.Hour
	clockSkew    = 24 * time.Hour
)

// Directory is the secrets directory of a site: DIR/secrets.
func Directory(site string) string { return filepath.Join(site, "secrets") }

// Error is a failure that a user can meet.
type Error struct {
	code string
	text string
	err  error
}

// Error is the text, with the cause where there is one.
func (e *Error) Error() string {
	if e.err != nil {
		return e.text + ": " + e.err.Error()
	}
	return e.text
}

// Code is the stable code, TRU-….
func (e *Error) Code() string { return e.code }

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.err }

// The codes of this package; docs/errors.md explains each.
const (
	CodeNoCA    = "TRU-010" // no CA, or one without its key
	CodeExists  = "TRU-011" // a certificate of that name is there
	CodeRequest = "TRU-012" // what is asked for makes no sense
	// CodeNoSigner: there is no such signer, or its key cannot be used.
	CodeNoSigner = "TRU-013"
)

// Clock says what time it is; time.Now in production.
type Clock func() time.Time

// Authority is a site's CA, opened with its key.
type Authority struct {
	dir         string
	clock       Clock
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// Issued are the files of one certificate.
type Issued struct {
	Name string `json:"name"`
	Cert string `json:"cert"` // path
	Key  string `json:"key"`  // path
	New  bool   `json:"new"`  // made by this call
	// Why says what was wrong with the certificate that was there before, empty
	// where there was none.
	Why string `json:"why,omitempty"`
}

// Options say what Init makes.
type Options struct {
	Name      string   // of the site, in the CA's subject; "" is "site"
	Addresses []string // host names and IP addresses that the image server's certificate must have, besides localhost
	Also      []string // such as it gets when it is made now, and may lack when it is there already
}

// Init makes what is missing in the secrets directory dir: the CA, the image
// server's certificate and an admin's certificate. The CA is never replaced, and
// one without its key is an error. A certificate of that CA that lacks one of the
// addresses, or ends within a month, is issued again for the same key.
func Init(dir string, clock Clock, options Options) ([]Issued, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the secrets directory: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the secrets directory private: %w", err)
	}
	made, err := initCA(dir, clock, options.Name)
	if err != nil {
		return nil, err
	}
	authority, err := Open(dir, clock)
	if err != nil {
		return nil, err
	}
	issued := []Issued{{Name: "CA", Cert: filepath.Join(dir, CAFile), Key: filepath.Join(dir, CAKeyFile), New: made}}
	for _, request := range []Request{
		{Name: "imageserver", Server: true, Addresses: slices.Concat([]string{"localhost", "127.0.0.1", "::1"}, options.Addresses)},
		{Name: "admin", Role: &url.URL{Scheme: "urn", Opaque: "firstlight:role:admin"}},
	} {
		one, err := authority.initOne(request, options.Also)
		if err != nil {
			return nil, err
		}
		issued = append(issued, one)
	}
	return issued, nil
}

// initOne issues what is not there, for a server with the addresses also as
// well. What is there is issued again, for the same key, where an address is new
// or its end is near; a server keeps the addresses that it was valid for.
func (a *Authority) initOne(request Request, also []string) (Issued, error) {
	one := a.files(request.Name)
	there, err := exists(one.Cert)
	if err != nil {
		return one, err
	}
	if !there {
		if request.Server {
			request.Addresses = slices.Concat(request.Addresses, also)
		}
		return a.Issue(request)
	}
	pair, err := tls.LoadX509KeyPair(one.Cert, one.Key)
	if err != nil {
		return one, &Error{code: CodeExists, text: fmt.Sprintf("%s is there and cannot be used; move it away to have a new one made", one.Cert), err: err}
	}
	if request.Server {
		request.Addresses = append(request.Addresses, addressesOf(pair.Leaf)...)
	}
	one, one.Why, err = a.renew(request)
	return one, err
}

// addressesOf are the names and addresses that a certificate is valid for.
func addressesOf(leaf *x509.Certificate) []string {
	all := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		all = append(all, ip.String())
	}
	return all
}

// initCA makes the CA unless it is there. It reports whether it was made.
func initCA(dir string, clock Clock, name string) (bool, error) {
	cert, key := filepath.Join(dir, CAFile), filepath.Join(dir, CAKeyFile)
	haveCert, err := exists(cert)
	if err != nil {
		return false, err
	}
	haveKey, err := exists(key)
	if err != nil {
		return false, err
	}
	switch {
	case haveCert && haveKey:
		return false, nil
	case haveCert || haveKey:
		return false, &Error{code: CodeNoCA, text: fmt.Sprintf("%s holds half a CA: %s and %s belong together; bring the other one back", dir, CAFile, CAKeyFile)}
	}
	if name == "" {
		name = "site"
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return false, err
	}
	serial, err := newSerial()
	if err != nil {
		return false, err
	}
	now := clock()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"Firstlight"}, CommonName: "Firstlight CA of " + name},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return false, fmt.Errorf("making the CA: %w", err)
	}
	// The key first: a certificate without its key could never be completed.
	if err := writeKey(key, private); err != nil {
		return false, err
	}
	return true, writePEM(cert, 0o644, "CERTIFICATE", der)
}

// Open reads the CA of a secrets directory. The error is an *Error where there
// is none.
func Open(dir string, clock Clock) (*Authority, error) {
	certificate, err := os.ReadFile(filepath.Join(dir, CAFile))
	if err != nil {
		return nil, &Error{code: CodeNoCA, text: "no CA; make one: firstlight keys init", err: err}
	}
	key, err := os.ReadFile(filepath.Join(dir, CAKeyFile))
	if err != nil {
		return nil, &Error{code: CodeNoCA, text: "the CA's key is needed to issue certificates", err: err}
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, &Error{code: CodeNoCA, text: "reading the CA in " + dir, err: err}
	}
	private, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || !pair.Leaf.IsCA {
		return nil, &Error{code: CodeNoCA, text: filepath.Join(dir, CAFile) + " is not a CA with an ECDSA key"}
	}
	return &Authority{dir: dir, clock: clock, certificate: pair.Leaf, key: private}, nil
}

// Request is what a certificate is asked for.
type Request struct {
	Name string // of the file and in the subject: letters, digits, '.', '_', '-', '@'
	// Role is the URI of a role for a client certificate, nil for none.
	Role *url.URL
	// Server asks for a server certificate; Addresses are its host names and
	// IP addresses.
	Server    bool
	Addresses []string
}

// Issue makes a certificate and its key, NAME.pem and NAME-key.pem. The error
// is an *Error where the name is taken.
func (a *Authority) Issue(request Request) (Issued, error) {
	files := a.files(request.Name)
	if err := checkRequest(request); err != nil {
		return files, err
	}
	for _, file := range []string{files.Cert, files.Key} {
		there, err := exists(file)
		if err != nil {
			return files, err
		}
		if there {
			return files, &Error{code: CodeExists, text: file + " is there already and is never overwritten; move it away or choose another name"}
		}
	}
	template, err := a.template(request)
	if err != nil {
		return files, err
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return files, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, private.Public(), a.key)
	if err != nil {
		return files, fmt.Errorf("issuing %s: %w", request.Name, err)
	}
	if err := writeKey(files.Key, private); err != nil {
		return files, err
	}
	if err := writePEM(files.Cert, 0o644, "CERTIFICATE", der); err != nil {
		return files, errors.Join(err, os.Remove(files.Key))
	}
	files.New = true
	return files, nil
}

func (a *Authority) template(request Request) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := a.clock()
	end := now.Add(leafLifetime)
	if end.After(a.certificate.NotAfter) {
		end = a.certificate.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"Firstlight"}, CommonName: request.Name},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if request.Role != nil {
		template.URIs = []*url.URL{request.Role}
	}
	if request.Server {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	for _, address := range slices.Compact(slices.Sorted(slices.Values(request.Addresses))) {
		if ip := net.ParseIP(address); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, address)
		}
	}
	return template, nil
}

func checkRequest(request Request) error {
	valid := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-@", r)
	}
	switch {
	case request.Name == "" || request.Name[0] == '.' || request.Name[0] == '-' || strings.ContainsFunc(request.Name, func(r rune) bool { return !valid(r) }):
		return &Error{code: CodeRequest, text: fmt.Sprintf("%q cannot name a certificate: letters, digits, '.', '_', '-' and '@'", request.Name)}
	case strings.EqualFold(request.Name, "ca") || strings.HasSuffix(request.Name, "-key"):
		return &Error{code: CodeRequest, text: fmt.Sprintf("%q is kept for the CA's and the keys' files", request.Name)}
	case request.Server && len(request.Addresses) == 0:
		return &Error{code: CodeRequest, text: "a server's certificate needs at least one --address"}
	case request.Server && request.Role != nil:
		return &Error{code: CodeRequest, text: "a certificate is for a server or for a client with a role, not both"}
	}
	for _, address := range request.Addresses {
		if address == "" || strings.ContainsAny(address, " \t/,") || net.ParseIP(address) == nil && strings.Contains(address, ":") {
			return &Error{code: CodeRequest, text: fmt.Sprintf("%q is neither a host name nor an IP address (no port, no scheme)", address)}
		}
	}
	return nil
}

func (a *Authority) files(name string) Issued {
	return Issued{Name: name, Cert: filepath.Join(a.dir, name+".pem"), Key: filepath.Join(a.dir, name+"-key.pem")}
}

// LocalAddresses are the machine's host name and the addresses of its
// interfaces, without link-local ones.
func LocalAddresses() ([]string, error) {
	var addresses []string
	if name, err := os.Hostname(); err == nil && name != "" {
		addresses = append(addresses, name)
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("listing the machine's addresses: %w", err)
	}
	for _, one := range all {
		if network, ok := one.(*net.IPNet); ok && !network.IP.IsLinkLocalUnicast() {
			addresses = append(addresses, network.IP.String())
		}
	}
	return addresses, nil
}

// Shown is what a certificate file says.
type Shown struct {
	File        string    `json:"file"`
	Subject     string    `json:"subject"`
	Kind        string    `json:"kind"` // ca, server or client
	Role        string    `json:"role,omitempty"`
	Addresses   []string  `json:"addresses,omitempty"`
	NotBefore   time.Time `json:"notBefore"`
	NotAfter    time.Time `json:"notAfter"`
	Fingerprint string    `json:"fingerprint"` // SHA256:<hex> of the DER bytes
	HasKey      bool      `json:"hasKey"`
}

// Show reads every certificate of a secrets directory, sorted by file name.
func Show(dir string) ([]Shown, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.pem"))
	if err != nil {
		return nil, err
	}
	var all []Shown
	for _, file := range files {
		if strings.HasSuffix(file, "-key.pem") {
			continue
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		certificate, err := parseCertificate(data)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", file, err)
		}
		keyFile := strings.TrimSuffix(file, ".pem") + "-key.pem"
		if filepath.Base(file) == CAFile {
			keyFile = filepath.Join(dir, CAKeyFile)
		}
		hasKey, err := exists(keyFile)
		if err != nil {
			return nil, err
		}
		all = append(all, shown(file, certificate, hasKey))
	}
	return all, nil
}

func shown(file string, certificate *x509.Certificate, hasKey bool) Shown {
	fingerprint := sha256.Sum256(certificate.Raw)
	one := Shown{
		File: file, Subject: certificate.Subject.CommonName, Kind: "client", HasKey: hasKey,
		NotBefore: certificate.NotBefore.UTC(), NotAfter: certificate.NotAfter.UTC(),
		Fingerprint: "SHA256:" + hex.EncodeToString(fingerprint[:]),
		Addresses:   slices.Clone(certificate.DNSNames),
	}
	for _, ip := range certificate.IPAddresses {
		one.Addresses = append(one.Addresses, ip.String())
	}
	for _, uri := range certificate.URIs {
		if role, ok := strings.CutPrefix(uri.String(), "urn:firstlight:role:"); ok {
			one.Role = role
		}
	}
	switch {
	case certificate.IsCA:
		one.Kind = "ca"
	case slices.Contains(certificate.ExtKeyUsage, x509.ExtKeyUsageServerAuth):
		one.Kind = "server"
	}
	return one
}

func parseCertificate(data []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no PEM certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}

func newSerial() (*big.Int, error) {
	// At most 20 octets and positive (RFC 5280, 4.1.2.2).
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

func writeKey(file string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	return writePEM(file, 0o600, "PRIVATE KEY", der)
}

func writePEM(file string, mode fs.FileMode, kind string, der []byte) error {
	return writeNew(file, mode, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// writeNew writes a file whole, or not at all, and never over another: the
// temporary file is linked to its name, which fails where the name is taken.
func writeNew(file string, mode fs.FileMode, text []byte) (err error) {
	temporary, err := os.CreateTemp(filepath.Dir(file), ".new-*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	defer func() {
		err = errors.Join(err, os.Remove(temporary.Name()))
	}()
	if _, err = temporary.Write(text); err == nil {
		err = temporary.Chmod(mode)
	}
	if err == nil {
		err = temporary.Sync()
	}
	if err = errors.Join(err, temporary.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	if err := os.Link(temporary.Name(), file); err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	directory, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	return errors.Join(directory.Sync(), directory.Close())
}

func exists(file string) (bool, error) {
	_, err := os.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
