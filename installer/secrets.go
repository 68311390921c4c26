package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/report"
	"github.com/firstlight/firstlight/installer/target"
	"github.com/firstlight/firstlight/storage/tpm2"
)

// codeSecrets: what the site server gives to this machine alone is not to be had.
const codeSecrets = "TRU-041"

// secretMode is that of the files: root's alone.
const secretMode = 0o600

// fetchSecrets gets what the site server gives to this machine's TPM and nobody
// else, while no disk has been touched: the machine is of no use without it.
func (i *installation) fetchSecrets(ctx context.Context) (err error) {
	want := i.plan.Secrets
	if len(want) == 0 || i.opt.skipStorage {
		return nil
	}
	if i.site == nil {
		return refuse(codeSecrets, "Install.Secrets names %s, and there is no site server to give it", strings.Join(want, ", "))
	}
	// Whoever is on the way reads nothing, but could put something else in its place.
	if certificates, err := i.clientTLS(); err != nil {
		return err
	} else if certificates != nil && !strings.HasPrefix(i.site.String(), "https:") {
		return refuse(codeSecrets, "there is a CA in the boot medium, and %s could be anybody: name the site server by https", i.site)
	}
	tpm, err := tpm2.Open(i.env.tpm)
	if err != nil {
		return refuse(codeSecrets, "the site server gives secrets to a TPM only: %w", err)
	}
	defer func() { err = errors.Join(err, tpm.Close()) }()
	i.model.Wait(progress.Commit, "the site server, which has this machine's TPM prove who it is")
	defer i.model.Wait(progress.Commit, "")
	files, err := i.askForSecrets(ctx, tpm, want)
	if err != nil {
		return refuse(codeSecrets, "asking for %s: %w", strings.Join(want, ", "), err)
	}
	var missing []string
	for _, name := range want {
		data, there := files[name]
		if !there {
			missing = append(missing, name)
			continue
		}
		i.secrets = append(i.secrets, target.File{Path: name, Mode: secretMode, Data: data})
	}
	if len(missing) > 0 {
		return refuse(codeSecrets, "the site server has no %s for this machine", strings.Join(missing, ", "))
	}
	i.opened.push("secrets", func() error {
		for _, file := range i.secrets {
			clear(file.Data)
		}
		return nil
	})
	i.model.Log(progress.Commit, fmt.Sprintf("the site server gave %d secret files to this machine's TPM", len(want)))
	return nil
}

// askForSecrets asks as often as for a recovery key to be kept, where the server
// is silent: its restart must not cost an installation, and with it an approval.
// What the server has said, it will say again.
func (i *installation) askForSecrets(ctx context.Context, tpm report.Prover, want []string) (files map[string][]byte, err error) {
	for try := range depositTries {
		if try > 0 {
			select {
			case <-time.After(depositPause):
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		if files, err = i.site.SecretFiles(ctx, tpm, want); !errors.As(err, new(*url.Error)) {
			return files, err
		}
	}
	return nil, err
}

var _ report.Prover = (*tpm2.TPM)(nil)
