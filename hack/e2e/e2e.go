// Package e2e holds the tests of the main job in virtual machines: a whole
// installation on the same way as the demo (hack/lab), and what happens when
// something is wrong. They want what `make build initramfs` and hack/setup
// prepare and fail, with the reason, where that is missing.
package e2e
