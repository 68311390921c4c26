package main

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

func TestFlagPrecedenceIsArgumentKernelDefault(t *testing.T) {
	kernel := splitKernelCommandLine(`console=ttyS0 installer.portNum=7000 installer.skipNetwork installer.tmpRoot="/a b" installer.mountPoint=/kernel quiet`)
	opt, err := parseOptions([]string{"-mountPoint=/argument", "load-image", "debian/12", "/x"}, kernel, nil)
	if err != nil {
		t.Fatal(err)
	}
	if opt.mountPoint != "/argument" {
		t.Errorf("mountPoint: got %q, the argument must win", opt.mountPoint)
	}
	if opt.port != 7000 || !opt.skipNetwork || opt.tmpRoot != "/a b" {
		t.Errorf("kernel command line: got port %d, skipNetwork %v, tmpRoot %q", opt.port, opt.skipNetwork, opt.tmpRoot)
	}
	if opt.imageServerPort != 6971 || !opt.generateMissingCert {
		t.Errorf("defaults: got port %d, generateMissingWebcert %v", opt.imageServerPort, opt.generateMissingCert)
	}
	if got := strings.Join(opt.command, " "); got != "load-image debian/12 /x" {
		t.Errorf("command: got %q", got)
	}
}

func TestUnknownFlagsAreUsageErrors(t *testing.T) {
	for _, test := range []struct {
		name, kernel string
		args         []string
	}{
		{"argument", "", []string{"-mountpiont=/x"}},
		{"kernel command line", "installer.mountpiont=/x", nil},
		{"value of the wrong type", "installer.portNum=many", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := parseOptions(test.args, splitKernelCommandLine(test.kernel), nil)
			if exitCode(err) != 2 {
				t.Errorf("exit code %d for %v, want 2", exitCode(err), err)
			}
		})
	}
}

func TestHelpNamesEveryCommandAndFlagOfTheModel(t *testing.T) {
	var help bytes.Buffer
	opt, err := parseOptions([]string{"-h"}, nil, &help)
	if err != nil || !opt.help {
		t.Fatalf("got help %v, %v", opt.help, err)
	}
	for _, word := range strings.Fields(`-completionNotifier -configurationBaseUrl -configurationLoader -driveSelector -dryRun
		-generateMissingWebcert -imageServerHostname -imageServerPortNum -logDebugLevel -mountPoint -networkConfigurator -portNum
		-procDirectory -shellCommand -skipNetwork -skipStorage -sysfsDirectory -tftpDirectory -tftpServerHostname -tmpRoot -siteServer
		decode-base64 dhcp-request generate-random kexec-image list-drives list-images load-configuration-from-tftp load-image plan`) {
		if !strings.Contains(help.String(), "  "+word+" ") && !strings.Contains(help.String(), "  "+word+"\n") {
			t.Errorf("help does not name %s", word)
		}
	}
}

// TestOptionsOfTheMedium: a loader that hands over another command line does not
// take away what the medium says; what is given at the loader counts more.
func TestOptionsOfTheMedium(t *testing.T) {
	for _, c := range []struct {
		medium, running string
		dryRun          bool
		patience        time.Duration
		words           int
	}{
		{"installer.dryRun installer.volumePatience=5s\n", "firstlight.efi", true, 5 * time.Second, 3},
		{"installer.dryRun\n", "console=tty0 installer.dryRun", true, 0, 2},
		{"installer.volumePatience=5s\n", "installer.volumePatience=1m", false, time.Minute, 2},
		{"", "installer.dryRun=false", false, 0, 1},
	} {
		words := withMedium(c.medium, c.running)
		opt, err := parseOptions([]string{}, words, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if os.Geteuid() == 0 && opt.dryRun != c.dryRun || opt.volumePatience != c.patience || len(words) != c.words {
			t.Errorf("%q, then %q: %v, %v, %v", c.medium, c.running, opt.dryRun, opt.volumePatience, words)
		}
	}
}
