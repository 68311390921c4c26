package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// manCommand writes the manual pages, one for each command, from the tree of
// commands itself. It is for whoever makes packages, and stands in no list.
func (c *common) manCommand() *cobra.Command {
	var directory string
	var date int64
	cmd := &cobra.Command{
		Use: "man --out DIR", Short: "Write the manual pages", Hidden: true, Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if directory == "" {
				return &usageError{"--out DIR is needed"}
			}
			if err := os.MkdirAll(directory, 0o755); err != nil {
				return err
			}
			root := cmd.Root()
			root.DisableAutoGenTag = true // a line with today's date
			made := time.Unix(date, 0).UTC()
			if err := doc.GenManTree(root, &doc.GenManHeader{Section: "1", Source: "Firstlight", Manual: "Firstlight", Date: &made}, directory); err != nil {
				return fmt.Errorf("writing manual pages: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&directory, "out", "", "`directory` to write to")
	cmd.Flags().Int64Var(&date, "date", 0, "`seconds` since 1970 that the pages are dated")
	return cmd
}
