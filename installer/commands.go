package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/firstlight/firstlight/installer/fetch"
	"github.com/firstlight/firstlight/installer/plan"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/storage"
)

// command is one that custom workflows and people use instead of installing.
type command struct {
	name, arguments, summary string
	args                     int
	run                      func(ctx context.Context, s *session, args []string) error
}

// session is what a command works with: an installation that runs only the
// phases the command needs, and the streams.
type session struct {
	*installation
	stdin  io.Reader
	stdout io.Writer
}

func commands() []command {
	return []command{
		{"decode-base64", "", "decode standard input to standard output", 0, decodeBase64},
		{"dhcp-request", "", "ask for a DHCP lease and show it; nothing is changed", 0, dhcpRequest},
		{"generate-random", "", "write pseudo-random bytes (not for keys) until the reader stops", 0, generateRandom},
		{"kexec-image", "NAME", "start the kernel of an image in memory; no disk is touched", 1, kexecImage},
		{"list-drives", "", "list the disks and what is on them", 0, listDrives},
		{"list-images", "", "list the images of the image server", 0, listImages},
		{"load-configuration-from-tftp", "", "fetch the configuration files into -tftpDirectory", 0, loadConfigurationFromTFTP},
		{"load-image", "NAME DIR", "unpack an image into a directory that one can chroot into", 2, loadImage},
		{"plan", "", "print the plan as JSON and stop", 0, printPlan},
	}
}

// runCommand runs the command that opt names. Its log goes to standard error:
// standard output is the command's result.
func runCommand(ctx context.Context, opt options, stdin io.Reader, stdout io.Writer) error {
	for _, c := range commands() {
		if c.name != opt.command[0] {
			continue
		}
		args := opt.command[1:]
		if len(args) != c.args {
			return usageError{fmt.Sprintf("use: installer %s %s", c.name, c.arguments)}
		}
		i, closeAll, err := newSession(ctx, opt)
		if err != nil {
			return err
		}
		defer closeAll()
		return c.run(ctx, &session{installation: i, stdin: stdin, stdout: stdout}, args)
	}
	return usageError{fmt.Sprintf("there is no command %q (installer -h lists them)", opt.command[0])}
}

func newSession(ctx context.Context, opt options) (*installation, func(), error) {
	opt.dryRun = true // no command installs: none uses an approval up, or restarts the machine
	directory, err := os.MkdirTemp("", "installer-")
	if err != nil {
		return nil, nil, err
	}
	i := newInstallation(opt, progress.New(time.Now, progress.LineWriter(os.Stderr)), directory)
	return i, func() {
		i.opened.unwind(i.model)
		if err := os.RemoveAll(directory); err != nil {
			i.model.Warn(progress.Finish, err.Error())
		}
	}, nil
}

func decodeBase64(_ context.Context, s *session, _ []string) error {
	_, err := io.Copy(s.stdout, base64.NewDecoder(base64.StdEncoding, s.stdin))
	if err != nil {
		return fmt.Errorf("decoding standard input: %w", err)
	}
	return nil
}

// generateRandom writes until its reader goes away; the generator is ChaCha8,
// seeded by the kernel once, and never reseeded.
func generateRandom(ctx context.Context, s *session, _ []string) error {
	var seed [32]byte
	if _, err := io.ReadFull(s.env.random, seed[:]); err != nil {
		return err
	}
	source := rand.NewChaCha8(seed)
	out := bufio.NewWriterSize(s.stdout, 1<<20)
	block := make([]byte, 64<<10)
	for ctx.Err() == nil {
		// ChaCha8's Read never fails.
		_, _ = source.Read(block)
		if _, err := out.Write(block); err != nil {
			return readerGone(err)
		}
	}
	return context.Cause(ctx)
}

// readerGone turns the broken pipe of a reader that has had enough into
// success.
func readerGone(err error) error {
	if errors.Is(err, syscall.EPIPE) {
		return nil
	}
	return err
}

func dhcpRequest(ctx context.Context, s *session, _ []string) error {
	lease, err := s.askForLease(ctx)
	if err != nil {
		return err
	}
	return s.print(lease)
}

func listDrives(ctx context.Context, s *session, _ []string) error {
	if err := s.takeInventory(ctx); err != nil {
		return err
	}
	for _, disk := range s.inventory.Disks {
		fmt.Fprintf(s.stdout, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", disk.Path, storage.Bytes(disk.Size), disk.Model, disk.Serial, disk.Transport, disk.WWN, disk.ByPath)
		if ok, why := disk.Usable(); !ok {
			fmt.Fprintf(s.stdout, "\tnever used: %s\n", why)
		}
		for _, content := range disk.Contents {
			fmt.Fprintf(s.stdout, "\t%s\t%s\t%s\t%s\n", content.Where, content.Kind, storage.Bytes(content.Size), content.Label)
		}
	}
	return nil
}

func listImages(ctx context.Context, s *session, _ []string) error {
	if err := s.reachServer(ctx); err != nil {
		return err
	}
	images, err := s.servers.list(ctx)
	if err != nil {
		return err
	}
	for _, image := range images {
		fmt.Fprintln(s.stdout, image.Name)
	}
	return nil
}

func loadConfigurationFromTFTP(ctx context.Context, s *session, _ []string) error {
	var files fetch.Files
	err := s.configure(ctx, func(ctx context.Context, attempt attempt) (err error) {
		files, err = s.filesFromTFTP(ctx, attempt)
		return err
	})
	if err != nil {
		return err
	}
	if err := writeConfigDir(s.opt.tftpDirectory, files); err != nil {
		return err
	}
	for name := range files {
		fmt.Fprintln(s.stdout, filepath.Join(s.opt.tftpDirectory, name))
	}
	return nil
}

// loadImage unpacks an image and mounts what a chroot needs into it. The
// mounts stay: the tree is there to be used.
func loadImage(ctx context.Context, s *session, args []string) error {
	if err := s.reachServer(ctx); err != nil {
		return err
	}
	found, err := s.findImage(ctx, args[0])
	if err != nil {
		return err
	}
	return s.unpackForChroot(ctx, found, args[1])
}

// kexecImage starts an image's kernel and initrd with the running kernel's
// command line.
func kexecImage(ctx context.Context, s *session, args []string) error {
	if err := s.reachServer(ctx); err != nil {
		return err
	}
	found, err := s.findImage(ctx, args[0])
	if err != nil {
		return err
	}
	if err := s.loadKernelOf(ctx, found); err != nil {
		return err
	}
	s.opened.unwind(s.model)
	return s.env.startNext()
}

// printPlan computes the plan and prints nothing else on standard output.
func printPlan(ctx context.Context, s *session, _ []string) error {
	for _, run := range []func(context.Context) error{s.raiseLinks, s.readConfig, s.takeInventory} {
		if err := run(ctx); err != nil {
			return err
		}
	}
	p, err := s.planAsked(ctx)
	if err != nil {
		return err
	}
	data, err := p.JSON()
	if err != nil {
		return err
	}
	_, err = s.stdout.Write(data)
	return err
}

// planAsked is the plan of what the configuration asks for.
func (s *session) planAsked(ctx context.Context) (plan.Plan, error) {
	switch {
	case s.config.Install.Rescue:
		return plan.Plan{}, usageError{"the configuration asks for a rescue: nothing is planned"}
	case s.config.Install.Wipe != "":
		return plan.NewWipe(s.config, s.inventory)
	}
	if err := s.getManifest(ctx); err != nil {
		return plan.Plan{}, err
	}
	return plan.New(s.config, s.inventory, s.image, s.skipped()...)
}

func (s *session) print(value any) error {
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.stdout, "%s\n", data)
	return err
}
