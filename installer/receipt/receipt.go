// Package receipt is the proof of an installation: what was installed on which
// disks by which plan, when, how the disks were erased, and what the installer
// wrote besides the image, signed by the installer. It lies on the disk and at
// the site server; an installed root can be compared with it later.
//
// The package reads and writes bytes only.
package receipt

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/firstlight/firstlight/installer/plan"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/storage"
)

// Format is the version of Receipt, and of the document that carries it.
const Format = 1

// File is where the receipt lies in the new system.
const File = "/var/log/installer/receipt.json"

// Receipt says what was done.
type Receipt struct {
	Format    int                     `json:"format"`
	Installer string                  `json:"installer"` // its version
	Machine   plan.Machine            `json:"machine"`
	Image     plan.ImageSummary       `json:"image"`
	Plan      string                  `json:"plan"`                 // its hash, sha256:…
	Signed    string                  `json:"signed,omitempty"`     // who signed the configuration
	Approved  string                  `json:"approvedBy,omitempty"` // who approved the plan, where that was asked for
	Objects   []progress.SourceStatus `json:"objects"`
	Disks     []Disk                  `json:"disks"`
	Steps     []plan.Step             `json:"steps,omitempty"`
	// Files are those that the installer wrote besides the image, sorted by path.
	Files    []Written `json:"files"`
	HandOver string    `json:"handOver"` // kexec or reboot
	Began    time.Time `json:"began"`
	Ended    time.Time `json:"ended"`
	// Phases have taken so many seconds.
	Phases map[progress.Phase]float64 `json:"phases"`
}

// Disk is a disk that was written to.
type Disk struct {
	Path   string `json:"path"` // at the time
	Model  string `json:"model,omitempty"`
	Serial string `json:"serial,omitempty"`
	WWN    string `json:"wwn,omitempty"`
	Bytes  uint64 `json:"bytes"`
	// Erase is how it was erased, and Result what came of it.
	Erase  storage.Erase `json:"erase"`
	Result string        `json:"result"`
	// Kept are the partitions that were not erased.
	Kept []string `json:"kept,omitempty"`
	// Volumes are what is on it now.
	Volumes []Volume `json:"volumes"`
}

// Volume is a partition of a Disk.
type Volume struct {
	Partition  string `json:"partition"`
	MountPoint string `json:"mountPoint,omitempty"`
	FileSystem string `json:"fileSystem,omitempty"`
	UUID       string `json:"uuid,omitempty"`     // of the file-system
	LUKS       string `json:"luksUUID,omitempty"` // empty: it is not encrypted
}

// Written is a file that the installer wrote.
type Written struct {
	Path   string `json:"path"`
	Mode   uint32 `json:"mode"`   // permission bits
	SHA256 string `json:"sha256"` // of its content; empty where that is secret
}

// WrittenFile is what a receipt says of a file. Of a secret one it keeps no sum:
// something short could be guessed from it.
func WrittenFile(path string, mode uint32, data []byte, secret bool) Written {
	w := Written{Path: path, Mode: mode}
	if !secret {
		sum := sha256.Sum256(data)
		w.SHA256 = hex.EncodeToString(sum[:])
	}
	return w
}

// Disks are those of a layout that was carried out.
func Disks(l storage.Layout) []Disk {
	disks := []Disk{}
	for _, d := range l.Disks {
		one := Disk{Path: d.Path, Model: strings.Join(strings.Fields(d.Model), " "), Serial: d.Serial, WWN: d.WWN, Bytes: d.Size,
			Erase: d.Erase, Result: result(d), Volumes: []Volume{}}
		for _, p := range d.Partitions {
			v := Volume{Partition: storage.PartitionName(d.Name, p.Number), MountPoint: p.MountPoint, FileSystem: string(p.FileSystem), UUID: p.FSUUID}
			if p.LUKS != nil {
				v.LUKS = p.LUKS.UUID
			}
			if p.Kept {
				one.Kept = append(one.Kept, v.Partition)
			}
			one.Volumes = append(one.Volumes, v)
		}
		disks = append(disks, one)
	}
	return disks
}

// result is what an erasure that ended without an error has done.
func result(d storage.DiskLayout) string {
	switch d.Erase {
	case storage.EraseDiscard:
		return "the disk was told that nothing on it is needed"
	case storage.EraseCrypto:
		return "the disk has forgotten its contents by " + d.CryptoErase
	case storage.EraseOverwrite:
		return "every sector was overwritten with zeroes and read back"
	}
	return "tables, signatures and key slots were erased, not what was in files"
}

// document is a receipt as it is kept and sent.
type document struct {
	Format int `json:"format"`
	// Receipt are the very bytes that are signed.
	Receipt     []byte `json:"receipt"`
	Certificate string `json:"certificate"` // PEM, of the key that signed
	Signature   []byte `json:"signature"`
}

// domain keeps a signature of a receipt from counting for anything else.
const domain = "firstlight receipt 1\x00"

// Sign writes the receipt, signed by the key of certificate (DER).
func (r Receipt) Sign(certificate []byte, key crypto.Signer) ([]byte, error) {
	r.Format = Format
	slices.SortFunc(r.Files, func(a, b Written) int { return strings.Compare(a.Path, b.Path) })
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("writing the receipt: %w", err)
	}
	d := document{Format: Format, Receipt: body, Certificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate}))}
	message := append([]byte(domain), body...)
	if _, pure := key.(ed25519.PrivateKey); pure {
		d.Signature, err = key.Sign(rand.Reader, message, crypto.Hash(0))
	} else {
		sum := sha256.Sum256(message)
		d.Signature, err = key.Sign(rand.Reader, sum[:], crypto.SHA256)
	}
	if err != nil {
		return nil, fmt.Errorf("signing the receipt: %w", err)
	}
	out, err := json.MarshalIndent(d, "", "  ")
	return append(out, '\n'), err
}

// Open checks a receipt's signature and returns it with the certificate of the
// key that made it. Whether that certificate can be trusted is the caller's
// question: it is the installer's own, of the site's CA or made for one start.
func Open(data []byte) (Receipt, *x509.Certificate, error) {
	var d document
	if err := strict(data, &d); err != nil {
		return Receipt{}, nil, refuse("it cannot be read: %w", err)
	}
	if d.Format != Format {
		return Receipt{}, nil, refuse("it has format %d, and %d is known here", d.Format, Format)
	}
	block, rest := pem.Decode([]byte(d.Certificate))
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return Receipt{}, nil, refuse("it carries no certificate")
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return Receipt{}, nil, refuse("its certificate cannot be read: %w", err)
	}
	var algorithm x509.SignatureAlgorithm
	switch certificate.PublicKey.(type) {
	case *ecdsa.PublicKey:
		algorithm = x509.ECDSAWithSHA256
	case ed25519.PublicKey:
		algorithm = x509.PureEd25519
	case *rsa.PublicKey:
		algorithm = x509.SHA256WithRSA
	}
	if err := certificate.CheckSignature(algorithm, append([]byte(domain), d.Receipt...), d.Signature); err != nil {
		return Receipt{}, nil, refuse("its signature is not one of what it says: %w", err)
	}
	var r Receipt
	if err := strict(d.Receipt, &r); err != nil {
		return Receipt{}, nil, refuse("it was signed and cannot be read: %w", err)
	}
	if r.Format != Format {
		return Receipt{}, nil, refuse("it has format %d, and %d is known here", r.Format, Format)
	}
	return r, certificate, nil
}

// Fingerprint is that of a certificate, as console and page show it.
func Fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return "SHA256:" + hex.EncodeToString(sum[:])
}

func strict(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return fmt.Errorf("there is something behind its end")
	}
	return nil
}

// CodeReceipt is the code of Error.
const CodeReceipt = "TRU-040"

// Error is a receipt that cannot be believed.
type Error struct{ err error }

// Untrusted is a receipt that cannot be believed for a reason of the caller's.
func Untrusted(format string, args ...any) error { return refuse(format, args...) }

func refuse(format string, args ...any) error {
	return &Error{fmt.Errorf("the receipt: "+format, args...)}
}

func (e *Error) Error() string { return e.err.Error() }

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.err }

// Code is CodeReceipt.
func (*Error) Code() string { return CodeReceipt }
