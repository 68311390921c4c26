package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/firstlight/firstlight/installer/watchdog"
)

// options are the flags, with the names of the model where it has them, and
// the command with its arguments.
type options struct {
	completionNotifier   string
	configurationBaseURL string
	configurationLoader  string
	driveSelector        string
	dryRun               bool
	generateMissingCert  bool
	imageServerHostname  string
	imageServerPatience  time.Duration
	kexecPatience        time.Duration
	imageServerPort      uint
	logDebugLevel        int
	logServer            string
	mountPoint           string
	networkConfigurator  string
	port                 uint
	procDirectory        string
	shellCommand         string
	siteServer           string
	skipNetwork          bool
	skipStorage          bool
	sysfsDirectory       string
	tftpDirectory        string
	tftpServerHostname   string
	tmpRoot              string
	volumePatience       time.Duration

	command []string
	help    bool
	kernel  kernelArguments
}

// usageError is a mistake in the command line: exit status 2.
type usageError struct{ text string }

func (e usageError) Error() string { return e.text }

// flagSet declares every flag with its default; values go to opt.
func flagSet(opt *options) *flag.FlagSet {
	fs := flag.NewFlagSet("installer", flag.ContinueOnError)
	fs.StringVar(&opt.completionNotifier, "completionNotifier", "", "`programme` run after the storage is unmounted: <config dir> <interface>")
	fs.StringVar(&opt.configurationBaseURL, "configurationBaseUrl", "", "`URL` below which the configuration files lie (HTTP or HTTPS)")
	fs.StringVar(&opt.configurationLoader, "configurationLoader", "", "`programme` that writes the configuration files: <config dir> <interface>")
	fs.StringVar(&opt.driveSelector, "driveSelector", "", "`programme` that chooses the disks: <disk>…, answers one a line")
	fs.BoolVar(&opt.dryRun, "dryRun", os.Geteuid() != 0, "print the plan and change nothing")
	fs.BoolVar(&opt.generateMissingCert, "generateMissingWebcert", true, "make a certificate for port 6978 where none is given")
	fs.StringVar(&opt.imageServerHostname, "imageServerHostname", "", "`host` of the image server, or several with commas between, instead of the file imageserver")
	fs.DurationVar(&opt.kexecPatience, "kexecPatience", watchdog.Patience, "how long a kernel that was started by kexec may take until the hardware watchdog resets the machine")
	fs.DurationVar(&opt.imageServerPatience, "imageServerPatience", 10*time.Minute, "how long the image server may be away in the middle of a download")
	fs.UintVar(&opt.imageServerPort, "imageServerPortNum", 6971, "`port` of the image server where none is named")
	fs.IntVar(&opt.logDebugLevel, "logDebugLevel", -1, "show debug log lines up to `level`: 0 for what was found and chosen, -1 for none")
	fs.StringVar(&opt.logServer, "logServer", "", "`URL` that the log is sent to while it is written: syslog://HOST, syslog+tcp://HOST, syslog+tls://HOST, or http(s)://HOST:19532 of a systemd-journal-remote")
	fs.StringVar(&opt.mountPoint, "mountPoint", "/mnt", "`directory` where the new root is mounted")
	fs.StringVar(&opt.networkConfigurator, "networkConfigurator", "", "`programme` that configures the new system's network: <config dir> <root> <interface> <tmpRoot>")
	fs.UintVar(&opt.port, "portNum", 6978, "`port` of the status page")
	fs.StringVar(&opt.procDirectory, "procDirectory", "/proc", "`directory` where procfs is mounted")
	fs.StringVar(&opt.shellCommand, "shellCommand", "/bin/sh", "`programme` for shells in the installer's environment")
	fs.StringVar(&opt.siteServer, "siteServer", "", "`URL` of the site server")
	fs.BoolVar(&opt.skipNetwork, "skipNetwork", false, "leave the network configuration of the new system alone")
	fs.BoolVar(&opt.skipStorage, "skipStorage", false, "leave the disks alone: write into the tree at -mountPoint as it is, and do not hand over")
	fs.StringVar(&opt.sysfsDirectory, "sysfsDirectory", "/sys", "`directory` where sysfs is mounted")
	fs.StringVar(&opt.tftpDirectory, "tftpDirectory", "/tftpdata", "`directory` of configuration files; where it holds config.json, no DHCP packet is sent")
	fs.StringVar(&opt.tftpServerHostname, "tftpServerHostname", "", "`host` of the TFTP server, instead of the one DHCP names")
	fs.DurationVar(&opt.volumePatience, "volumePatience", 0, "how long a volume labelled FIRSTLIGHT is waited for where none is there; USB sticks are found late")
	fs.StringVar(&opt.tmpRoot, "tmpRoot", "/tmproot", "`directory` where the tools image is unpacked")
	return fs
}

// parseOptions reads flags in rising order of precedence: the defaults,
// installer.<flag>=<value> of the kernel's command line, args.
func parseOptions(args []string, kernel kernelArguments, stdout io.Writer) (options, error) {
	opt := options{kernel: kernel}
	fs := flagSet(&opt)
	fs.SetOutput(io.Discard)
	for _, argument := range kernel {
		name, isFlag := strings.CutPrefix(argument.name, "installer.")
		if !isFlag {
			continue
		}
		if err := setFlag(fs, name, argument.value, argument.hasValue); err != nil {
			return opt, usageError{fmt.Sprintf("kernel command line: %s: %v", argument.name, err)}
		}
	}
	err := fs.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		opt.help = true
		printHelp(stdout, fs)
		return opt, nil
	}
	if err != nil {
		return opt, usageError{err.Error() + " (installer -h lists the flags)"}
	}
	opt.command = fs.Args()
	for name, port := range map[string]uint{"imageServerPortNum": opt.imageServerPort, "portNum": opt.port} {
		if port > 65535 {
			return opt, usageError{fmt.Sprintf("-%s: %d is no port: at most 65535", name, port)}
		}
	}
	return opt, nil
}

// setFlag sets the flag called name; a boolean flag needs no value.
func setFlag(fs *flag.FlagSet, name, value string, hasValue bool) error {
	f := fs.Lookup(name)
	if f == nil {
		return errors.New("there is no such flag (installer -h lists them)")
	}
	if boolean, ok := f.Value.(interface{ IsBoolFlag() bool }); ok && boolean.IsBoolFlag() && !hasValue {
		value = "true"
	}
	return fs.Set(name, value)
}

func printHelp(w io.Writer, fs *flag.FlagSet) {
	fmt.Fprint(w, "Usage: installer [flags…] [command [arguments…]]\n\nWith no command the machine is installed.\n\nCommands:\n")
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-36s %s\n", c.name+" "+c.arguments, c.summary)
	}
	fmt.Fprint(w, "\nFlags (also installer.<flag>=<value> on the kernel command line):\n")
	fs.SetOutput(w)
	fs.PrintDefaults()
}
