package media

import "fmt"

// Codes of this package's errors; docs/errors.md says what to do about each. Those
// that others know by name are refusals, rather than mistakes.
const (
	codeUsage  = "BOO-040" // an input of the medium is missing or no such thing
	codeKernel = "BOO-041" // the kernel directory is not complete
	CodeSecret = "BOO-042" // a private key would go into the medium

	codeBootFile = "BOO-043" // one of Debian's boot files is missing or of no use
	CodeArch     = "BOO-044" // kernel, image and medium are of different architectures
	CodeTarget   = "BOO-046" // the disk to write to is not one to write to
)

// Error is a medium that cannot be made, and why.
type Error struct {
	code string
	text string
	err  error // may be nil
}

func (e *Error) Error() string {
	if e.err != nil {
		return fmt.Sprintf("%s: %v", e.text, e.err)
	}
	return e.text
}

// Code is the stable code of the error, such as BOO-041.
func (e *Error) Code() string { return e.code }

// Unwrap returns what was behind it.
func (e *Error) Unwrap() error { return e.err }
