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
