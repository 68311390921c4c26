package main

import (
	"context"
	"errors"
	"io"
)

func superviseInstallation(ctx context.Context, opt options, stdout io.Writer) error {
	return errors.New("no phases yet")
}
