package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// kind is the type of a JSON value, in words for people.
type kind string

const (
	kindNull   kind = "null"
	kindBool   kind = "true or false"
	kindNumber kind = "a number"
	kindString kind = "a string"
	kindArray  kind = "a list"
	kindObject kind = "an object"
)

// node is a JSON value that knows its line. encoding/json alone loses lines and
// duplicated keys.
type node struct {
	kind    kind
	line    int
	text    string // of a string; the literal of a number
	truth   bool
	items   []*node
	members []member
}

// member is one key of an object.
type member struct {
	name  string
	line  int
	value *node
}

// describe is the value for an error message.
func (n *node) describe() string {
	switch n.kind {
	case kindNumber:
		return n.text
	case kindString:
		return fmt.Sprintf("%.60q", n.text)
	case kindBool:
		return fmt.Sprint(n.truth)
	}
	return string(n.kind)
}

// maxFileBytes bounds what we are willing to parse: a fleet's config.json has
// some kilobytes.
const maxFileBytes = 16 << 20

// parseTree reads a JSON document in which lines that begin with #, // or ! are
// comments.
func (r *reader) parseTree(file string, data []byte) (*node, bool) {
	if len(data) > maxFileBytes {
		r.mistake(CodeSyntax, file, 0, "the file has %d bytes: at most %d are read", len(data), maxFileBytes)
		return nil, false
	}
	data = blankComments(data)
	lineAt := func(offset int64) int {
		return 1 + bytes.Count(data[:min(max(offset, 0), int64(len(data)))], []byte("\n"))
	}
	if !utf8.Valid(data) {
		valid := bytes.ToValidUTF8(data, nil)
		at := 0
		for at < len(valid) && valid[at] == data[at] {
			at++
		}
		r.mistake(CodeSyntax, file, lineAt(int64(at)), "not UTF-8 text")
		return nil, false
	}
	if len(bytes.TrimSpace(data)) == 0 {
		r.mistake(CodeSyntax, file, 0, "the file is empty")
		return nil, false
	}
	var whole json.RawMessage
	if err := json.Unmarshal(data, &whole); err != nil {
		line := 0
		if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
			line = lineAt(syntax.Offset - 1)
		}
		r.mistake(CodeSyntax, file, line, "%s", explainSyntax(err))
		return nil, false
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	return readNode(d, lineAt), true
}

// readNode reads one value of a document that is known to be well-formed.
func readNode(d *json.Decoder, lineAt func(int64) int) *node {
	token, err := d.Token()
	if err != nil {
		return &node{kind: kindNull} // cannot be: the document was checked
	}
	n := &node{line: lineAt(d.InputOffset())}
	switch t := token.(type) {
	case nil:
		n.kind = kindNull
	case bool:
		n.kind, n.truth = kindBool, t
	case json.Number:
		n.kind, n.text = kindNumber, t.String()
	case string:
		n.kind, n.text = kindString, t
	case json.Delim:
		if t == '[' {
			n.kind = kindArray
			for d.More() {
				n.items = append(n.items, readNode(d, lineAt))
			}
		} else {
			n.kind = kindObject
			for d.More() {
				key := readNode(d, lineAt)
				n.members = append(n.members, member{key.text, key.line, readNode(d, lineAt)})
			}
		}
		if _, err := d.Token(); err != nil { // the closing bracket
			return n // cannot be: the document was checked
		}
	}
	return n
}

func explainSyntax(err error) string {
	text := err.Error()
	switch {
	case strings.Contains(text, "unexpected end"):
		return "the file ends in the middle: a bracket or quote is not closed"
	case strings.Contains(text, "looking for beginning of object key string"),
		strings.Contains(text, "invalid character ']' looking for beginning of value"):
		return text + ": is there a comma too many before it?"
	case strings.Contains(text, "invalid character '\"' after"):
		return text + ": is a comma missing before it?"
	case strings.Contains(text, "after top-level value"):
		return text + ": nothing may follow the document"
	}
	return text
}

// blankComments overwrites comment lines and a byte-order mark with spaces, so
// that offsets and line numbers stay right. A JSON string cannot span lines, so
// no line inside a string is taken for a comment.
func blankComments(data []byte) []byte {
	out := bytes.Clone(data)
	if bytes.HasPrefix(out, []byte("\xef\xbb\xbf")) {
		copy(out, "   ")
	}
	for start := 0; start < len(out); {
		end := len(out)
		if i := bytes.IndexByte(out[start:], '\n'); i >= 0 {
			end = start + i
		}
		if isComment(out[start:end]) {
			for i := start; i < end; i++ {
				out[i] = ' '
			}
		}
		start = end + 1
	}
	return out
}

func isComment(line []byte) bool {
	line = bytes.TrimLeft(line, " \t")
	return bytes.HasPrefix(line, []byte("#")) || bytes.HasPrefix(line, []byte("//")) || bytes.HasPrefix(line, []byte("!"))
}
