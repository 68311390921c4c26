package plan

import (
	"errors"
	"fmt"
	"strings"
)

// Codes of this package's own refusals; others come from storage, netconfig and
// boot.
const (
	CodeArch         = "IMG-060" // the image is for another architecture
	CodeMemory       = "IMG-061" // the machine has too little memory
	CodeFileSystem   = "IMG-062" // the image does not know a file system of the layout
	CodeDamaged      = "IMG-063" // an attribute of the image names a file that is not there
	CodeNoProgram    = "IMG-064" // a program that the layout needs is nowhere
	CodeNoAssembler  = "IMG-065" // the image cannot find a RAID or a volume group
	CodeKernel       = "IMG-066" // the image's kernel lacks a module that the layout needs
	CodeESP          = "IMG-067" // kernels do not fit on the EFI system partition
	CodeNoCryptsetup = "LUK-020" // the image cannot open encrypted volumes
	CodeNoTPM        = "LUK-021" // the layout wants a TPM that is not there
	CodeSecureBoot   = "LUK-022" // Secure Boot is off
	CodeRootUnlock   = "LUK-023" // the image's initramfs cannot open the root
	CodeNoEscrow     = "LUK-024" // there is no site server for the recovery key
	CodeUnlock       = "LUK-025" // the image cannot open volumes by TPM
	CodeUnstablePCR  = "LUK-026" // a PCR that is another after the next start
	CodeNoRenderer   = "CNF-020" // the image does not have the network programs
	CodeNotEnabled   = "CNF-021" // the image does not start the network programs
	CodeNoClient     = "CNF-022" // the image cannot ask for a lease
	CodeNoDriver     = "CNF-023" // the image's kernel lacks a module that the network needs
)

// Error is one refusal of this package.
type Error struct {
	ID   string // one of the Code constants
	Text string
}

// Error is the text without the code.
func (e *Error) Error() string { return e.Text }

// Code is the stable code, as in docs/errors.md.
func (e *Error) Code() string { return e.ID }

// Refusals are all that speaks against an installation. There is at least one.
type Refusals []error

// Error has one line for each refusal; from the second on they bear their codes.
func (r Refusals) Error() string {
	var b strings.Builder
	for i, err := range r {
		if i > 0 {
			b.WriteString("\n")
			if code := codeOf(err); code != "" {
				fmt.Fprintf(&b, "%s: ", code)
			}
		}
		b.WriteString(err.Error())
	}
	return b.String()
}

// Code is the code of the first refusal that has one.
func (r Refusals) Code() string {
	for _, err := range r {
		if code := codeOf(err); code != "" {
			return code
		}
	}
	return ""
}

// Unwrap returns each refusal.
func (r Refusals) Unwrap() []error { return r }

// add takes err, or the errors that it joins when it has no code of its own.
func (r *Refusals) add(err error) {
	if _, coded := err.(interface{ Code() string }); !coded {
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			for _, one := range joined.Unwrap() {
				r.add(one)
			}
			return
		}
	}
	*r = append(*r, err)
}

func codeOf(err error) string {
	var coded interface{ Code() string }
	if errors.As(err, &coded) {
		return coded.Code()
	}
	return ""
}
