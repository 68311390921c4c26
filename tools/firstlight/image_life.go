package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/object"
)

// promoted is the result of image promote.
type promoted struct {
	Alias    string       `json:"alias"`
	Image    client.Image `json:"image"`
	Previous string       `json:"previous,omitempty"`
}

func (c *common) imagePromote() *cobra.Command {
	return &cobra.Command{
		Use: "promote NAME ALIAS", Short: "Let ALIAS mean an image from now on, in one step", Args: arguments(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.connected(cmd.Context(), func(ctx context.Context, connection *client.Client) error {
				one, previous, err := connection.Promote(ctx, args[0], args[1])
				if err != nil {
					return err
				}
				result := promoted{args[1], one, previous}
				return c.print(result, func(w io.Writer) {
					fmt.Fprintf(w, "alias\t%s\nimage\t%s\ndigest\t%s\n", result.Alias, one.Name, one.Digest)
					if previous != "" && previous != one.Name {
						fmt.Fprintf(w, "before\t%s\n", previous)
					}
				})
			})
		},
	}
}

// retained is the result of image expire --keep.
type retained struct {
	Stream string       `json:"stream"`
	Keep   uint32       `json:"keep"` // 0: all
	Due    []client.Due `json:"due"`  // what goes by it
}

func (c *common) imageExpire() *cobra.Command {
	var in, at string
	var never, yes bool
	var keep uint32
	cmd := &cobra.Command{
		Use:   "expire NAME (--in TIME | --at TIME | --never) | expire STREAM --keep N",
		Short: "Set when an image goes, or how many images of a stream stay",
		Long: `Set when an image goes: in a time (30d, 12h), at one (2026-12-24,
2026-12-24T18:00:00Z), or never. Or set how many of the newest images directly
below a stream stay (--keep 0: all). The server deletes what is due within a
minute; an image that an alias means stays.`,
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			given := 0
			for _, name := range []string{"in", "at", "never", "keep"} {
				if cmd.Flags().Changed(name) {
					given++
				}
			}
			if given != 1 {
				return &usageError{"give one of --in TIME, --at TIME, --never and --keep N"}
			}
			if cmd.Flags().Changed("keep") {
				return c.retain(cmd.Context(), args[0], keep, yes)
			}
			expires, err := expiry(in, at, time.Now())
			if err != nil {
				return err
			}
			return c.expire(cmd.Context(), args[0], expires, yes)
		},
	}
	cmd.Flags().StringVar(&in, "in", "", "`time` from now: 30d, 2w, 12h")
	cmd.Flags().StringVar(&at, "at", "", "`time`: 2026-12-24 or 2026-12-24T18:00:00Z")
	cmd.Flags().BoolVar(&never, "never", false, "the image stays")
	cmd.Flags().Uint32Var(&keep, "keep", 0, "how `many` of the newest images of the stream stay; 0: all")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// expiry reads --in and --at; both empty is never.
func expiry(in, at string, now time.Time) (time.Time, error) {
	if in != "" {
		d, err := parseDuration(in)
		if err != nil || d < 0 {
			return time.Time{}, &usageError{fmt.Sprintf("--in %q: write a time such as 30d, 2w or 12h", in)}
		}
		return now.Add(d), nil
	}
	if at == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly, time.DateTime} {
		if t, err := time.ParseInLocation(layout, at, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, &usageError{fmt.Sprintf("--at %q: write a time such as 2026-12-24 or 2026-12-24T18:00:00Z", at)}
}

// parseDuration is time.ParseDuration with days and weeks.
func parseDuration(text string) (time.Duration, error) {
	for suffix, unit := range map[string]time.Duration{"d": 24 * time.Hour, "w": 7 * 24 * time.Hour} {
		if number, is := strings.CutSuffix(text, suffix); is {
			n, err := strconv.ParseUint(number, 10, 16)
			return time.Duration(n) * unit, err
		}
	}
	return time.ParseDuration(text)
}

func (c *common) expire(ctx context.Context, name string, expires time.Time, yes bool) error {
	return c.connected(ctx, func(ctx context.Context, connection *client.Client) error {
		one, err := connection.Find(ctx, name)
		if err != nil {
			return err
		}
		if one.Name != name {
			return &usageError{fmt.Sprintf("%s is no image of its own; name one image, such as %s", name, one.Name)}
		}
		if !expires.IsZero() && !expires.After(time.Now()) {
			if err := c.confirm(yes, fmt.Sprintf("delete image %s (%s) within a minute", one.Name, one.Digest)); err != nil {
				return err
			}
		}
		one, err = connection.Expire(ctx, one.Name, one.Digest, expires)
		if err != nil {
			return err
		}
		return c.print(one, func(w io.Writer) { fmt.Fprintf(w, "image\t%s\nexpires\t%s\n", one.Name, expiryText(one.Expires)) })
	})
}

// expiryText is a time of expiry for people.
func expiryText(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Local().Format(time.DateTime)
}

func (c *common) retain(ctx context.Context, stream string, keep uint32, yes bool) error {
	return c.connected(ctx, func(ctx context.Context, connection *client.Client) error {
		due, err := connection.Retain(ctx, stream, keep, true)
		if err != nil {
			return err
		}
		if len(due) > 0 {
			var names []string
			for _, one := range due {
				names = append(names, one.Name)
			}
			if err := c.confirm(yes, fmt.Sprintf("delete %d images: %s", len(due), strings.Join(names, ", "))); err != nil {
				return err
			}
		}
		if due, err = connection.Retain(ctx, stream, keep, false); err != nil {
			return err
		}
		return c.print(retained{stream, keep, due}, func(w io.Writer) {
			if keep == 0 {
				fmt.Fprintf(w, "stream\t%s keeps all images\n", stream)
			} else {
				fmt.Fprintf(w, "stream\t%s keeps the newest %d images\n", stream, keep)
			}
			printDue(w, due)
		})
	})
}

func printDue(w io.Writer, due []client.Due) {
	for _, one := range due {
		fmt.Fprintf(w, "image\t%s\t%s\n", one.Name, one.Reason)
	}
}

// deleted is the result of image delete.
type deleted struct {
	client.Image
	Alias string `json:"alias,omitempty"` // only this name was taken away
}

func (c *common) imageDelete() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Delete an image by its exact name, or an alias; files stay until image gc", Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.connected(cmd.Context(), func(ctx context.Context, connection *client.Client) error {
				one, err := connection.Find(ctx, args[0])
				if err != nil {
					return err
				}
				alias := slices.Contains(one.Aliases, args[0])
				what := fmt.Sprintf("delete image %s (%s, added %s)", one.Name, one.Digest, one.Added.Format(time.DateTime))
				digest := one.Digest // only what was shown is deleted
				switch {
				case alias:
					what, digest = fmt.Sprintf("delete alias %s; image %s stays", args[0], one.Name), object.Digest{}
				case one.Name != args[0]:
					return &usageError{fmt.Sprintf("%s is a stream; name one image, such as %s", args[0], one.Name)}
				}
				if err := c.confirm(yes, what); err != nil {
					return err
				}
				gone, err := connection.Delete(ctx, args[0], digest)
				if err != nil {
					return err
				}
				result := deleted{Image: gone}
				if alias {
					result.Alias = args[0]
				}
				return c.print(result, func(w io.Writer) { fmt.Fprintf(w, "deleted\t%s\n", args[0]) })
			})
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// collected is the result of image gc.
type collected struct {
	client.Garbage
	DryRun bool `json:"dryRun"`
}

func (c *common) imageGC() *cobra.Command {
	var dryRun, yes bool
	var grace string
	cmd := &cobra.Command{
		Use: "gc", Short: "Delete images that are due, and files that no image needs", Args: arguments(0, 0),
		Long: `Delete images whose time has come or that their stream does not keep, then the
files that no image needs. Files that were sent or asked for within --grace stay,
and so does all that belongs to an upload that runs, so it may be run at any time.
What happened before the server's last start counts as having happened then.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			wait := time.Duration(-1)
			if grace != "" {
				var err error
				if wait, err = parseDuration(grace); err != nil || wait < 0 {
					return &usageError{fmt.Sprintf("--grace %q: write a time such as 1h or 7d", grace)}
				}
			}
			return c.connected(cmd.Context(), func(ctx context.Context, connection *client.Client) error {
				return c.collect(ctx, connection, wait, dryRun, yes)
			})
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would go")
	cmd.Flags().StringVar(&grace, "grace", "", "`time` for which files stay that were sent or asked for (default 1h)")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

func (c *common) collect(ctx context.Context, connection *client.Client, grace time.Duration, dryRun, yes bool) error {
	report := func(g client.Garbage) {
		c.note("gc: %d files looked at, %d to go, %s", g.Checked, g.Objects, size(g.Bytes))
	}
	garbage, err := connection.CollectGarbage(ctx, grace, true, report)
	if err != nil {
		return err
	}
	if !dryRun && (garbage.Objects > 0 || len(garbage.Images) > 0) {
		var names []string
		for _, one := range garbage.Images {
			names = append(names, one.Name)
		}
		what := fmt.Sprintf("delete %d files that no image needs (%s)", garbage.Objects, size(garbage.Bytes))
		if len(names) > 0 {
			what = fmt.Sprintf("delete the images %s and %d files (%s)", strings.Join(names, ", "), garbage.Objects, size(garbage.Bytes))
		}
		if err := c.confirm(yes, what); err != nil {
			return err
		}
		if garbage, err = connection.CollectGarbage(ctx, grace, false, report); err != nil {
			return err
		}
	}
	return c.print(collected{garbage, dryRun}, func(w io.Writer) {
		verb := "deleted"
		if dryRun {
			verb = "would delete"
		}
		printDue(w, garbage.Images)
		fmt.Fprintf(w, "%s\t%d images, %d files, %s\n", verb, len(garbage.Images), garbage.Objects, size(garbage.Bytes))
		fmt.Fprintf(w, "too young\t%d files that no image needs stay for now\n", garbage.Recent)
		fmt.Fprintf(w, "looked at\t%d files\n", garbage.Checked)
	})
}
