// Package media makes what machines boot from. It begins with the initramfs:
// the shared part that `make initramfs` builds, followed by further archives
// with kernel modules, the site's certificates and a machine's configuration,
// which the kernel unpacks one after the other. It needs no Go tool chain, no
// root and no other program, and never puts a private key into a medium
// unless it is asked to.
package media

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/firstlight/firstlight/installer/trust"
)

// Options say what goes into an initramfs.
type Options struct {
	// Base is the file that `make initramfs` built.
	Base string
	// KernelDir holds vmlinuz and the kernel's modules with depmod's files,
	// under lib/modules/<release> or modules/<release>. It may be empty with
	// SetNone.
	KernelDir string
	// Arch is the architecture of the machines, in Go's words; empty means
	// this program's own.
	Arch string
	// Modules is the set of modules; empty means SetCommon.
	Modules Set
	// For is a file with the inventory of the machine that the medium is for:
	// the modules that it loaded, instead of Modules. Empty: none.
	For string
	// Firmware is a directory with firmware files, such as /lib/firmware: those
	// that the chosen modules name go in. Empty: none.
	Firmware string
	// Files is a directory with the machine's configuration, which goes to
	// /tftpdata; the installer then asks no server for it. Empty: none.
	Files string
	// CA is the site's certificate authority (PEM), for /etc/ssl/CA.pem.
	// Empty: none, and the installer speaks plain text, loudly.
	CA string
	// Trust are files of Ed25519 public keys (PEM), for /etc/installer/trust:
	// with any, the installer believes nothing that their owners have not
	// signed. Threshold is how many must have signed, 0 for one.
	Trust     []string
	Threshold int
	// Cert and Key are the installer's own certificate and its private key
	// (PEM). They are taken only together with WithIdentity: whoever can read
	// the medium can then pass for the machine.
	Cert, Key    string
	WithIdentity bool
	// Out is the file to write, whole or not at all.
	Out string

	options string // for the installer: what the medium's command line says, too
}

// Part is one archive of an initramfs.
type Part struct {
	Name  string `json:"name"`  // base, modules, site
	Bytes int64  `json:"bytes"` // as it lies in the file
}

// Report says what came out.
type Report struct {
	Parts   []Part `json:"parts"`
	Kernel  string `json:"kernel"`  // path of the kernel that belongs to it; "" with SetNone
	Release string `json:"release"` // its release, as uname -r prints it
	Modules int    `json:"modules"` // how many modules went in
	// Firmware is how many firmware files went in, MissingFirmware those that
	// modules name and that are not there: for devices that the machines may not
	// have.
	Firmware        int      `json:"firmware"`
	MissingFirmware []string `json:"missingFirmware,omitempty"`
	Bytes           int64    `json:"bytes"` // of the whole file
}

// Initramfs writes an initramfs. Mistakes in the options and files that are
// not what they should be are of type *Error; nothing is written then.
func Initramfs(ctx context.Context, options Options) (Report, error) {
	parts, report, err := assemble(ctx, options)
	if err != nil {
		return Report{}, err
	}
	if err := writeWhole(options.Out, options.mode(), parts...); err != nil {
		return Report{}, fmt.Errorf("writing %s: %w", options.Out, err)
	}
	return report, nil
}

// mode is that of the file that is made: a private key is nobody else's.
func (o Options) mode() os.FileMode {
	if o.WithIdentity {
		return 0o600
	}
	return 0o644
}

func (o Options) arch() string {
	if o.Arch == "" {
		return runtime.GOARCH
	}
	return o.Arch
}

// part adds a part to the report.
func (r *Report) part(name string, bytes int64) {
	r.Parts = append(r.Parts, Part{name, bytes})
	r.Bytes += bytes
}

// assemble makes the archives of an initramfs.
func assemble(ctx context.Context, options Options) (parts [][]byte, report Report, err error) {
	if !slices.Contains(Architectures(), options.arch()) {
		return nil, Report{}, &Error{code: codeUsage, text: fmt.Sprintf("there is no architecture %q here: use one of %v", options.Arch, Architectures())}
	}
	wanted, err := options.wanted()
	if err != nil {
		return nil, Report{}, err
	}
	base, built, err := readBase(options.Base)
	if err != nil {
		return nil, Report{}, err
	}
	parts = append(parts, base)
	report.part("base", int64(len(base)))

	if options.Modules != SetNone || options.For != "" {
		kernel, err := openKernel(options.KernelDir)
		if err != nil {
			return nil, Report{}, err
		}
		files, named, err := kernel.subset(ctx, wanted)
		if err != nil {
			return nil, Report{}, err
		}
		count := len(named)
		if options.Firmware != "" {
			if report.Firmware, report.MissingFirmware, err = addFirmware(files, options.Firmware, named); err != nil {
				return nil, Report{}, err
			}
		}
		packed, err := archived(files, built, nil)
		if err != nil {
			return nil, Report{}, err
		}
		parts = append(parts, packed)
		report.part("modules", int64(len(packed)))
		report.Kernel, report.Release, report.Modules = kernel.image, kernel.release, count
	}

	site, err := siteFiles(options)
	if err != nil {
		return nil, Report{}, err
	}
	if len(site) > 0 {
		packed, err := archived(site, built, map[string]uint64{"tftpdata": 0o700, "etc/ssl/installer": 0o700})
		if err != nil {
			return nil, Report{}, err
		}
		parts = append(parts, packed)
		report.part("site", int64(len(packed)))
	}
	return parts, report, ctx.Err()
}

// archived encodes, compresses and pads.
func archived(files archive, built time.Time, private map[string]uint64) ([]byte, error) {
	raw, err := files.encode(built, private)
	if err != nil {
		return nil, err
	}
	packed, err := compress(raw)
	return padded(packed), err
}

// readBase reads the shared part. Times in the other archives are its own.
func readBase(name string) ([]byte, time.Time, error) {
	if name == "" {
		return nil, time.Time{}, &Error{code: codeUsage, text: "no base initramfs given: `make initramfs` builds it"}
	}
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, time.Time{}, &Error{code: codeUsage, text: "the base initramfs is not there: `make initramfs` builds it", err: err}
	}
	if err != nil {
		return nil, time.Time{}, err
	}
	zstdMagic, cpioMagic, gzipMagic, xzMagic := "\x28\xb5\x2f\xfd", "070701", "\x1f\x8b", "\xfd7zXZ\x00"
	known := slices.ContainsFunc([]string{zstdMagic, cpioMagic, gzipMagic, xzMagic}, func(magic string) bool {
		return strings.HasPrefix(string(data[:min(len(data), 8)]), magic)
	})
	if !known {
		return nil, time.Time{}, &Error{code: codeUsage, text: name + " is no initramfs: neither a cpio archive nor a compressed one"}
	}
	// A fixed time: the kernel shows it to nobody, and the same files shall
	// make the same bytes.
	return padded(data), time.Unix(0, 0), nil
}

// siteFiles collects configuration and certificates.
func siteFiles(options Options) (archive, error) {
	files := archive{}
	if options.Files != "" {
		found, err := configuration(options.Files)
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			files[path.Join("tftpdata", f.path)] = archiveFile{f.data, 0o600}
		}
	}
	if options.CA != "" {
		data, err := os.ReadFile(options.CA)
		if err != nil {
			return nil, &Error{code: codeUsage, text: "the certificate authority cannot be read", err: err}
		}
		if strings.Contains(string(data), "PRIVATE KEY") {
			return nil, &Error{code: CodeSecret, text: options.CA + " has a private key in it; give the certificate alone"}
		}
		if !x509.NewCertPool().AppendCertsFromPEM(data) {
			return nil, &Error{code: codeUsage, text: options.CA + " holds no certificate in PEM form"}
		}
		files["etc/ssl/CA.pem"] = archiveFile{data, 0o644}
	}
	if options.options != "" {
		files["etc/installer/options"] = archiveFile{[]byte(options.options + "\n"), 0o644}
	}
	if err := addTrust(files, options.Trust, options.Threshold); err != nil {
		return nil, err
	}
	switch {
	case options.WithIdentity && (options.Cert == "" || options.Key == ""):
		return nil, &Error{code: codeUsage, text: "an identity needs both a certificate and its key"}
	case !options.WithIdentity && (options.Cert != "" || options.Key != ""):
		return nil, &Error{code: CodeSecret, text: "a private key goes into a medium only with --with-identity: whoever reads the medium can use it"}
	case options.WithIdentity:
		if _, err := tls.LoadX509KeyPair(options.Cert, options.Key); err != nil {
			return nil, &Error{code: codeUsage, text: "certificate and key do not belong together", err: err}
		}
		for name, file := range map[string]string{"cert.pem": options.Cert, "key.pem": options.Key} {
			data, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			files["etc/ssl/installer/"+name] = archiveFile{data, 0o600}
		}
	}
	return files, nil
}

// trustDirectory is where the installer looks for whom it trusts.
const trustDirectory = "etc/installer/trust/"

// addTrust takes the signers' public keys, if the installer will be able to use
// them.
func addTrust(files archive, keys []string, threshold int) error {
	if len(keys) == 0 && threshold == 0 {
		return nil
	}
	policy := make(map[string][]byte)
	for _, file := range keys {
		data, err := os.ReadFile(file)
		if err != nil {
			return &Error{code: codeUsage, text: "a trust key cannot be read", err: err}
		}
		if strings.Contains(string(data), "PRIVATE KEY") {
			return &Error{code: CodeSecret, text: file + " is a private key; give the public one, NAME.pub"}
		}
		name := strings.TrimSuffix(filepath.Base(file), ".pub") + ".pub"
		if _, taken := policy[name]; taken {
			return &Error{code: codeUsage, text: fmt.Sprintf("two trust keys are called %s", name)}
		}
		policy[name] = data
	}
	if threshold != 0 {
		policy[trust.ThresholdFile] = []byte(strconv.Itoa(threshold) + "\n")
	}
	if _, err := trust.NewPolicy(policy); err != nil {
		return err
	}
	for name, data := range policy {
		files[trustDirectory+name] = archiveFile{data, 0o644}
	}
	return nil
}

// configuration is every regular file of a directory.
func configuration(dir string) ([]volumeFile, error) {
	var files []volumeFile
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return nil
		}
		info, err := os.Stat(name) // a link in a site directory stands for its file
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return nil
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if strings.Contains(string(data), "PRIVATE KEY-----") {
			return &Error{code: CodeSecret, text: name + " is a private key; it does not belong among the configuration files"}
		}
		below, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		files = append(files, volumeFile{path: filepath.ToSlash(below), data: data})
		return nil
	})
	var coded *Error
	if errors.As(err, &coded) {
		return nil, err
	}
	if err != nil {
		return nil, &Error{code: codeUsage, text: "the configuration files cannot be read", err: err}
	}
	if len(files) == 0 {
		return nil, &Error{code: codeUsage, text: dir + " has no configuration files"}
	}
	return files, nil
}
