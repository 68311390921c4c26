package main

import (
	"context"
	"io"
)

type command struct {
	name, arguments, summary string
	run                      func(ctx context.Context, opt options, stdin io.Reader, stdout io.Writer) error
}

func commands() []command { return nil }

func runCommand(ctx context.Context, opt options, stdin io.Reader, stdout io.Writer) error {
	return usageError{"unknown command " + opt.command[0]}
}
