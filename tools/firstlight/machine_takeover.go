package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/installer/trust"
	"github.com/firstlight/firstlight/storage"
	"github.com/firstlight/firstlight/tools/media"
	"github.com/firstlight/firstlight/tools/site"
	"github.com/firstlight/firstlight/tools/site/takeover"
)

// takeoverFlags are those of machine takeover.
type takeoverFlags struct {
	identities            []string
	known                 string
	kernel, initramfs     string
	imageServer           bool // --imageserver was given
	dryRun, yes, noReport bool
}

// takenOver is the result of machine takeover.
type takenOver struct {
	Machine string   `json:"machine"`
	Host    string   `json:"host"`
	System  string   `json:"system"` // that ran there
	Image   string   `json:"image"`
	Steps   []string `json:"steps,omitempty"`
	Done    bool     `json:"done"`
}

func (c *common) machineTakeover() *cobra.Command {
	var f takeoverFlags
	cmd := &cobra.Command{
		Use: "takeover USER@HOST", Args: arguments(1, 1),
		Short: "Start the installer on a machine that runs Linux already, over ssh and kexec",
		Long: `Start the installer on a machine that runs Linux already: its kernel and initramfs,
with the configuration of that machine inside, are copied into its memory and
started by kexec. The machine is recognised by its MAC addresses, serial number or
UUID, and must be approved; the take-over uses the approval up. Nothing is asked
for by DHCP: the address is that of config.json.

Without a known host key, with another machine's marks, or on a kernel that
forbids kexec, nothing is done. What runs on the host ends without being asked;
its disks are synced first.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			login, err := takeover.ParseLogin(args[0])
			if err != nil {
				return &usageError{err.Error()}
			}
			f.imageServer = cmd.Flags().Changed("imageserver")
			return c.takeOver(cmd.Context(), login, f)
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&f.identities, "identity", nil, "private key `file` to log in with (default: the agent's, and those in ~/.ssh)")
	flags.StringVar(&f.known, "known-hosts", "", "`file` of known host keys (default: ~/.ssh/known_hosts and /etc/ssh/ssh_known_hosts)")
	flags.StringVar(&f.kernel, "kernel", "", "the installer's kernel, a `file` (default: what firstlight serve has made)")
	flags.StringVar(&f.initramfs, "initramfs", "", "its initramfs with modules, a `file` (default: what firstlight serve has made)")
	flags.BoolVar(&f.noReport, "no-report", false, "do not have the machine report to this site's server")
	flags.BoolVar(&f.dryRun, "dry-run", false, "look at the host, say what would be done, and do nothing")
	flags.BoolVar(&f.yes, "yes", false, "do not ask")
	return cmd
}

func (c *common) takeOver(ctx context.Context, login takeover.Login, f takeoverFlags) error {
	s, err := c.openSite()
	if err != nil {
		return err
	}
	if err := c.sshFiles(&login, f); err != nil {
		return err
	}
	remote, err := takeover.Dial(ctx, login)
	if err != nil {
		return err
	}
	defer remote.Close()
	facts, err := remote.Look(ctx)
	if err != nil {
		return err
	}
	who := site.Identity{MACs: facts.MACs, Serial: facts.Serial, UUID: facts.UUID}
	m, err := s.Find(who.Clean())
	if err != nil {
		return err
	}
	if err := mayTakeOver(m, login, who); err != nil {
		return err
	}
	if m.Arch == "" {
		m.Arch = facts.Arch // config.json does not say; the plan holds it against the image
	}
	work, err := os.MkdirTemp("", "firstlight-takeover-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	next, err := c.nextFor(ctx, s, m, facts, remote.Local(), f, work)
	if err != nil {
		return err
	}
	copied := uint64(len(next.Kernel) + len(next.Initramfs))
	if facts.Program == "" {
		own, err := takeover.Kexec(next.Initramfs)
		if err != nil {
			return err
		}
		copied += own
	}
	if err := facts.Refuse(m.Arch, copied); err != nil {
		return fmt.Errorf("%s cannot be taken over: %w", login.Host, err)
	}
	result := takenOver{Machine: m.Name, Host: login.Host, System: facts.System, Image: m.Image}
	what := fmt.Sprintf("end %s on %s (%s, kernel %s) and install %s on it as %s, which erases its disks", orElse(facts.System, "what runs"), login.Host, facts.Hostname, facts.Kernel, m.Image, m.Name)
	if f.dryRun {
		c.note("would %s; %s would be copied; nothing was changed", what, storage.Bytes(copied))
		return c.print(result, func(w io.Writer) { fmt.Fprintf(w, "%s can be taken over as %s\n", login.Host, m.Name) })
	}
	if err := c.confirm(f.yes, what); err != nil {
		return err
	}
	tell := func(text string) {
		c.note("%s", text)
		result.Steps = append(result.Steps, text)
	}
	prepared, err := remote.Prepare(ctx, facts, next, tell)
	if err != nil {
		return err
	}
	// The approval is used up by the last step that can still be taken back.
	answer, err := s.Claim(who, "takeover "+facts.Boot, login.Host)
	if err == nil && (answer.State != site.Installing || answer.Action != site.Install) {
		err = &refusedError{fmt.Sprintf("%s is not approved any more: %s", m.Name, answer.Reason)}
	}
	if err != nil {
		return errors.Join(err, prepared.Forget())
	}
	if err := s.Note(site.Entry{Who: c.operator(), Verb: "takeover", Machine: m.Name, Detail: fmt.Sprintf("%s@%s, which ran %s", login.User, login.Host, facts.System)}); err != nil {
		return errors.Join(err, prepared.Forget())
	}
	tell("starting the installer on " + login.Host)
	if err := prepared.Go(ctx); err != nil {
		return err
	}
	result.Done = true
	return c.print(result, func(w io.Writer) {
		fmt.Fprintf(w, "%s is gone, and the installer starts on it; firstlight machine watch %s shows how it goes on\n", login.Host, m.Name)
	})
}

// mayTakeOver says whether the machine behind a host is one of the site's, with
// somebody's word that it may be installed.
func mayTakeOver(m *site.Machine, login takeover.Login, who site.Identity) error {
	switch {
	case m == nil || m.Pending:
		return &refusedError{fmt.Sprintf("%s is no machine of this site: nothing has its marks (%s)", login.Host, who.Clean())}
	case m.Mistake != "":
		return &refusedError{fmt.Sprintf("%s is %s, whose configuration is wrong: %s", login.Host, m.Name, m.Mistake)}
	case m.Status.State != site.Approved || m.Status.Approval == nil || m.Status.Approval.Action != site.Install:
		return &refusedError{fmt.Sprintf("%s is %s, which is %s: firstlight machine approve %s, or reinstall, says that it may be installed", login.Host, m.Name, m.Status.Headline(), m.Name)}
	}
	return nil
}

// sshFiles completes a login by what a person has.
func (c *common) sshFiles(login *takeover.Login, f takeoverFlags) error {
	login.Agent = c.getenv("SSH_AUTH_SOCK")
	home, err := os.UserHomeDir()
	if err == nil {
		login.Known, login.Keys = takeover.StandardFiles(home)
	}
	if f.known != "" {
		login.Known = []string{f.known}
	}
	if len(f.identities) > 0 {
		login.Keys, login.Agent = f.identities, ""
		for _, file := range f.identities {
			if _, err := os.Stat(file); err != nil {
				return &usageError{err.Error()}
			}
		}
	}
	return nil
}

// nextFor makes what is started on the host: the site's installer, with the
// machine's configuration on board.
func (c *common) nextFor(ctx context.Context, s *site.Site, m *site.Machine, facts takeover.Facts, local net.Addr, f takeoverFlags, work string) (takeover.Next, error) {
	boot := s.State("boot", m.Arch)
	kernel, base := orElse(f.kernel, filepath.Join(boot, "vmlinuz")), orElse(f.initramfs, filepath.Join(boot, "initramfs"))
	for _, file := range []string{kernel, base} {
		if _, err := os.Stat(file); err != nil {
			return takeover.Next{}, &usageError{fmt.Sprintf("the installer for %s is not there (%v): firstlight serve makes it, or --kernel and --initramfs name it", m.Arch, err)}
		}
	}
	files, err := c.filesOnBoard(s, m, local, f)
	if err != nil {
		return takeover.Next{}, err
	}
	onBoard := filepath.Join(work, "files")
	for name, data := range files {
		file := filepath.Join(onBoard, filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, data, 0o600)); err != nil {
			return takeover.Next{}, err
		}
	}
	out := filepath.Join(work, "initramfs")
	if _, err := media.Initramfs(ctx, media.Options{Base: base, Arch: m.Arch, Modules: media.SetNone, Files: onBoard, Out: out}); err != nil {
		return takeover.Next{}, err
	}
	settings, err := s.Settings()
	if err != nil {
		return takeover.Next{}, err
	}
	next := takeover.Next{CommandLine: strings.TrimSpace(strings.Join(append(facts.Consoles, settings.KernelOptions), " "))}
	if next.Kernel, err = os.ReadFile(kernel); err == nil {
		next.Initramfs, err = os.ReadFile(out)
	}
	return next, err
}

// filesOnBoard are the machine's files, with the servers at this machine's
// address where they name none.
func (c *common) filesOnBoard(s *site.Site, m *site.Machine, local net.Addr, f takeoverFlags) (map[string][]byte, error) {
	found, err := s.Files(m.Name)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte(found)
	for _, name := range config.StepFiles(files) {
		data, err := os.ReadFile(filepath.Join(s.Dir(), "machines", m.Name, filepath.FromSlash(name)))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err == nil {
			files[name] = data
		}
	}
	if _, signed := files[trust.BundleFile]; signed {
		return files, nil // what is not signed would not be believed
	}
	host, _, err := net.SplitHostPort(local.String())
	if err != nil {
		return nil, err
	}
	if files[config.ImageServerFile] == nil {
		server := net.JoinHostPort(host, fmt.Sprint(config.DefaultPort))
		if f.imageServer {
			server = c.imageserver
		}
		files[config.ImageServerFile] = []byte(server + "\n")
	}
	if files[config.SiteServerFile] == nil && !f.noReport {
		files[config.SiteServerFile] = fmt.Appendf(nil, "https://%s\n", net.JoinHostPort(host, fmt.Sprint(sitePort)))
	}
	return files, nil
}
