package serve

import (
	"errors"

	"github.com/firstlight/firstlight/docs"
)

// doAbout is what to do about an error with a code, as docs/errors.md has it.
func doAbout(err error) string {
	var coded interface{ Code() string }
	if !errors.As(err, &coded) {
		return ""
	}
	entry, _ := docs.Lookup(coded.Code())
	return entry.Do
}
