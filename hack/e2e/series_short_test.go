//go:build !full

package e2e

// How much of each long series `make test` runs; `make test-full` runs all.
const (
	// bootsOfAState is how many power cuts are booted while what the firmware
	// starts stays the same.
	bootsOfAState = 1
	// sampledFaults is how many places of a disk fail, one in each
	// installation.
	sampledFaults = 1
	// faultsAtOnce is how many sectors fail in one installation.
	faultsAtOnce = 12
)
