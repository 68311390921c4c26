package rules

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
)

// comparison is ">= 40" or ">= 500GB"; of several, all must hold.
type comparison struct {
	op    string
	value float64
	sized bool // the value has a unit of bytes
	text  string
}

// units of sizes in bytes, by their lower-case names.
func unit(name string) (factor float64, ok bool) {
	switch strings.ToLower(name) {
	case "b":
		return 1, true
	case "kb":
		return 1e3, true
	case "mb":
		return 1e6, true
	case "gb":
		return 1e9, true
	case "tb":
		return 1e12, true
	case "pb":
		return 1e15, true
	case "kib":
		return 1 << 10, true
	case "mib":
		return 1 << 20, true
	case "gib":
		return 1 << 30, true
	case "tib":
		return 1 << 40, true
	case "pib":
		return 1 << 50, true
	}
	return 0, false
}

// parseComparisons reads one comparison, or several with commas between; a
// number alone is an equality.
func parseComparisons(text string) (all []comparison, err error) {
	for part := range strings.SplitSeq(text, ",") {
		c, err := parseComparison(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

func parseComparison(text string) (comparison, error) {
	c := comparison{op: "==", text: text}
	rest := text
	for _, op := range []string{">=", "<=", "==", "!=", ">", "<", "="} {
		if after, found := strings.CutPrefix(rest, op); found {
			c.op, rest = op, strings.TrimSpace(after)
			break
		}
	}
	if c.op == "=" {
		c.op = "=="
	}
	digits := strings.IndexFunc(rest, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	number, name := rest, ""
	if digits >= 0 {
		number, name = rest[:digits], strings.TrimSpace(rest[digits:])
	}
	value, err := strconv.ParseFloat(number, 64)
	if err != nil || math.IsInf(value, 0) {
		return c, fmt.Errorf("%q is no comparison such as \">= 40\" or \">= 500GB\"", text)
	}
	if name != "" {
		factor, ok := unit(name)
		if !ok {
			return c, fmt.Errorf("%q: there is no unit %q: sizes are in KB, MB, GB, TB (thousands) or KiB, MiB, GiB, TiB", text, name)
		}
		value, c.sized = value*factor, true
	}
	c.value = value
	return c, nil
}

func (c comparison) holds(n float64) bool {
	switch c.op {
	case ">=":
		return n >= c.value
	case "<=":
		return n <= c.value
	case ">":
		return n > c.value
	case "<":
		return n < c.value
	case "!=":
		return n != c.value
	}
	return n == c.value
}

func allHold(all []comparison, n float64) bool {
	for _, c := range all {
		if !c.holds(n) {
			return false
		}
	}
	return true
}

// glob is a text with * for any run of characters and ? for one, or a regular
// expression between slashes (RE2). Case does not count.
type glob struct {
	text string
	re   *regexp.Regexp
}

func parseGlob(text string) (glob, error) {
	g := glob{text: text}
	pattern := ""
	if len(text) > 1 && text[0] == '/' && text[len(text)-1] == '/' {
		pattern = text[1 : len(text)-1]
	} else {
		var b strings.Builder
		for _, r := range text {
			switch r {
			case '*':
				b.WriteString(".*")
			case '?':
				b.WriteString(".")
			default:
				b.WriteString(regexp.QuoteMeta(string(r)))
			}
		}
		pattern = "^" + b.String() + "$"
	}
	var err error
	if g.re, err = regexp.Compile("(?is)" + pattern); err != nil {
		return g, fmt.Errorf("%q is no regular expression: %v", text, err)
	}
	return g, nil
}

func (g glob) holds(text string) bool { return g.re.MatchString(strings.TrimSpace(text)) }
