package main

import "github.com/firstlight/firstlight/installer/progress"

// debugf logs a detail that only somebody who looks for a mistake wants to
// read: -logDebugLevel=0 shows it.
func (i *installation) debugf(phase progress.Phase, format string, args ...any) {
	if i.opt.logDebugLevel >= 0 {
		i.model.Logf(phase, "debug: "+format, args...)
	}
}
