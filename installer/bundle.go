package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/installer/fetch"
	"github.com/firstlight/firstlight/installer/inventory"
	"github.com/firstlight/firstlight/installer/inventory/probe"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/trust"
)

// filesFrom gets the configuration from a source. Where the boot medium says
// whom to trust, it is what they have signed, and nothing else.
func (i *installation) filesFrom(ctx context.Context, source fetch.Source) (fetch.Files, error) {
	policy, err := trust.ReadPolicy(os.DirFS(i.env.trust.keys))
	if err != nil {
		return nil, err
	}
	if policy.Signed() {
		return i.signedFiles(ctx, policy, source)
	}
	if !i.saidUnsigned {
		i.saidUnsigned = true
		i.model.Describe(func(f *progress.Facts) { f.Signed = "not signed, and believed all the same" })
		i.model.Warn(progress.Config, "there is no trust key in "+i.env.trust.keys+" of the boot medium: the configuration is believed unsigned, whoever sends it")
	}
	files, err := fetch.All(ctx, source)
	if err != nil {
		return nil, err
	}
	return files, fetchSteps(ctx, source, files)
}

// fetchSteps adds the programmes that config.json names. One that is missing is
// told with all other mistakes.
func fetchSteps(ctx context.Context, source fetch.Source, files fetch.Files) error {
	for _, name := range config.StepFiles(files) {
		data, err := source.Get(ctx, name)
		switch {
		case err == nil:
			files[name] = data
		case !errors.Is(err, fetch.ErrAbsent):
			return err
		}
	}
	return nil
}

// signedFiles gets the bundle, and makes of it the files that a boot server
// without one would have. It is verified before it is parsed.
func (i *installation) signedFiles(ctx context.Context, policy trust.Policy, source fetch.Source) (fetch.Files, error) {
	raw, err := signedFile(ctx, source, trust.BundleFile)
	if err != nil {
		return nil, err
	}
	sig, err := signedFile(ctx, source, trust.SignatureFile)
	if err != nil {
		return nil, err
	}
	signers, err := policy.Verify(raw, sig)
	if err != nil {
		return nil, err
	}
	bundle, err := trust.Parse(raw)
	if err != nil {
		return nil, err
	}
	// This machine's clock may be behind; what the signers knew of the time is
	// as certain as the rest of what they say. A time server is not signed: it
	// cannot bring back a bundle that has expired by the machine's own clock.
	own := i.started.Add(time.Since(i.begun))
	if err := policy.Admit(bundle, i.self(ctx, bundle.Binding), latest(own, latest(i.env.now(), bundle.Signed))); err != nil {
		return nil, err
	}
	if i.env.inMemory {
		moved, err := advanceClock(i.env.now(), bundle.Signed, i.env.setClock)
		if err != nil {
			return nil, err
		}
		if moved > 0 {
			i.model.Logf(progress.Config, "the clock was %s behind the time at which the bundle was signed", moved.Round(time.Second))
		}
	}
	var names []string
	for _, s := range signers {
		names = append(names, s.Short())
	}
	i.model.Describe(func(f *progress.Facts) {
		f.Signed = fmt.Sprintf("signed by %s; sequence %d, until %s", strings.Join(names, " and "), bundle.Sequence, bundle.Expires.UTC().Format(time.DateOnly))
	})
	i.model.Logf(progress.Config, "the bundle of %s, sequence %d, is signed by %s", bundle.Name, bundle.Sequence, strings.Join(names, " and "))
	return bundleFiles(bundle), nil
}

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func signedFile(ctx context.Context, source fetch.Source, name string) ([]byte, error) {
	data, err := source.Get(ctx, name)
	if errors.Is(err, fetch.ErrAbsent) {
		return nil, refuse(trust.CodeUnsigned, "%s is missing from %s, and this boot medium believes nothing that is not signed", name, source)
	}
	return data, err
}

// bundleFiles are a bundle's parts as the files that they stand for.
func bundleFiles(b trust.Bundle) fetch.Files {
	files := fetch.Files{fetch.ImageName: []byte(b.Image.String() + "\n")}
	for name, data := range b.Files {
		files[name] = data
	}
	if b.Tools != nil {
		files[fetch.ToolsImageName] = []byte(b.Tools.String() + "\n")
	}
	if len(b.ImageServers) > 0 {
		files[fetch.ImageServer] = []byte(strings.Join(b.ImageServers, "\n") + "\n")
	}
	if b.SiteServer != "" {
		files[fetch.SiteServer] = []byte(b.SiteServer + "\n")
	}
	return files
}

// self are the marks of this machine. What cannot be read is not there, and a
// bundle that is bound to it is refused. The TPM is asked only where it matters.
func (i *installation) self(ctx context.Context, binding trust.Binding) trust.Machine {
	found, err := inventory.Read(i.env.sys)
	if err != nil {
		i.model.Warn(progress.Config, fmt.Sprintf("looking at what machine this is: %v", err))
		return trust.Machine{}
	}
	m := trust.Machine{Serial: found.DMI.Serial, UUID: found.DMI.UUID}
	for _, nic := range found.NICs {
		m.MACs = append(m.MACs, nic.MAC.String(), nic.PermanentMAC.String())
	}
	if binding.EndorsementKey != "" {
		if m.EndorsementKey, err = probe.EndorsementKey(ctx, "/dev"); err != nil {
			i.model.Warn(progress.Config, fmt.Sprintf("asking which TPM this is: %v", err))
		}
	}
	return m
}
