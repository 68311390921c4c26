// Package houserules holds the tests of what docs/architecture.md says about
// the house: which packages there are, what they may import, and that every
// error code is explained. go test caches its result, which depends on files
// that go does not see it read: run it with -count=1.
package houserules
