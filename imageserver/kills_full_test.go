//go:build full

package main

import "testing"

// TestKilledOften kills the server 200 times under load.
func TestKilledOften(t *testing.T) { killOften(t, 200) }
