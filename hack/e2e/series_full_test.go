//go:build full

package e2e

// As in the short series, and all of it.
const (
	bootsOfAState = 1 << 20
	sampledFaults = 100
	faultsAtOnce  = 1
)
