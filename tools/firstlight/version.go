package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// versionInfo says what was built.
type versionInfo struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Go      string `json:"go"`
	Arch    string `json:"arch"`
}

func (c *common) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Show the version", Args: arguments(0, 0),
		RunE: func(*cobra.Command, []string) error {
			v := buildVersion()
			return c.print(v, func(w io.Writer) {
				fmt.Fprintf(w, "firstlight\t%s\n", v.Version)
				if v.Commit != "" {
					fmt.Fprintf(w, "commit\t%s\n", v.Commit)
				}
				fmt.Fprintf(w, "built with\t%s for %s\n", v.Go, v.Arch)
			})
		},
	}
}

// buildVersion is what this program was built from.
func buildVersion() versionInfo {
	v := versionInfo{Version: "devel", Go: runtime.Version(), Arch: runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		if main := info.Main.Version; main != "" && main != "(devel)" {
			v.Version = main
		}
		for _, setting := range info.Settings {
			if setting.Key == "vcs.revision" {
				v.Commit = setting.Value
			}
		}
	}
	return v
}

// version is the version in one word: the module's, or the commit's.
func version() string {
	v := buildVersion()
	if v.Version == "devel" && v.Commit != "" {
		return v.Commit[:min(12, len(v.Commit))]
	}
	return v.Version
}
