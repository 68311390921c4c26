package config

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// position is where a value stands; raw structs and leaves embed it.
type position struct {
	file string
	path string // "Machine.HostIpAddress", "Subnets[1].VlanId"
	line int
}

func (p *position) locate(at position) { *p = at }

// leaf is a raw value that reads itself.
type leaf interface {
	take(r *reader, at position, n *node)
}

// text, number and boolean are optional values of a raw struct. JSON's null is
// the same as not there, as it is for the model.
type (
	text struct {
		position
		value string
		set   bool
	}
	number struct {
		position
		value uint64
		set   bool
	}
	boolean struct {
		position
		value bool
		set   bool
	}
	// unsupported is a field that a later version knows: using it is a mistake,
	// because ignoring it could cost someone a disk.
	unsupported struct{}
)

func (t *text) take(r *reader, at position, n *node) {
	if n.kind != kindString {
		r.wrongType(at, kindString, n)
		return
	}
	*t = text{at, n.text, true}
}

func (v *number) take(r *reader, at position, n *node) {
	if n.kind != kindNumber {
		r.wrongType(at, kindNumber, n)
		return
	}
	value, err := strconv.ParseUint(n.text, 10, 64)
	if err != nil {
		r.mistake(CodeType, at.file, at.line, "%s: want a whole number from 0 to 18446744073709551615, have %s", at.path, n.text)
		return
	}
	*v = number{at, value, true}
}

func (b *boolean) take(r *reader, at position, n *node) {
	if n.kind != kindBool {
		r.wrongType(at, kindBool, n)
		return
	}
	*b = boolean{at, n.truth, true}
}

func (unsupported) take(r *reader, at position, n *node) {
	r.mistake(CodeUnsupported, at.file, at.line, "%s is not supported by this version: remove it", at.path)
}

func (r *reader) wrongType(at position, want kind, n *node) {
	hint := ""
	switch {
	case want == kindNumber && n.kind == kindString:
		hint = " (write it without quotes, in plain digits)"
	case want == kindBool && n.kind == kindString:
		hint = " (write it without quotes)"
	case want == kindString && n.kind == kindNumber:
		hint = " (write it in quotes)"
	}
	what := at.path
	if what == "" {
		what = "the document"
	}
	r.mistake(CodeType, at.file, at.line, "%s: want %s, have %s%s", what, want, n.describe(), hint)
}

// decode fills a raw value. strict makes every unknown field below it a mistake.
func (r *reader) decode(at position, n *node, into reflect.Value, strict bool) {
	at.line = n.line
	if n.kind == kindNull && at.path != "" {
		return
	}
	if l, ok := into.Addr().Interface().(leaf); ok {
		l.take(r, at, n)
		return
	}
	switch into.Kind() {
	case reflect.Pointer:
		into.Set(reflect.New(into.Type().Elem()))
		r.decode(at, n, into.Elem(), strict)
	case reflect.Slice:
		if n.kind != kindArray {
			r.wrongType(at, kindArray, n)
			return
		}
		// An empty list is not the same as none.
		into.Set(reflect.MakeSlice(into.Type(), 0, len(n.items)))
		for i, item := range n.items {
			element := reflect.New(into.Type().Elem()).Elem()
			r.decode(position{at.file, fmt.Sprintf("%s[%d]", at.path, i), item.line}, item, element, strict)
			into.Set(reflect.Append(into, element))
		}
	case reflect.Map:
		r.decodeMap(at, n, into, strict)
	case reflect.Struct:
		r.decodeStruct(at, n, into, strict)
	default:
		panic(fmt.Sprintf("raw field %s has type %s", at.path, into.Type()))
	}
}

// decodeMap fills a map whose keys are data, not names: their case counts.
func (r *reader) decodeMap(at position, n *node, into reflect.Value, strict bool) {
	if n.kind != kindObject {
		r.wrongType(at, kindObject, n)
		return
	}
	into.Set(reflect.MakeMap(into.Type()))
	seen := make(map[string]int)
	for _, m := range n.members {
		if first, twice := seen[m.name]; twice {
			r.mistake(CodeDuplicate, at.file, m.line, "%s has %q twice: it stands in line %d already", at.path, m.name, first)
			continue
		}
		seen[m.name] = m.line
		element := reflect.New(into.Type().Elem()).Elem()
		r.decode(position{at.file, fmt.Sprintf("%s[%q]", at.path, m.name), m.line}, m.value, element, strict)
		into.SetMapIndex(reflect.ValueOf(m.name), element)
	}
}

func (r *reader) decodeStruct(at position, n *node, into reflect.Value, strict bool) {
	if n.kind != kindObject {
		r.wrongType(at, kindObject, n)
		return
	}
	if l, ok := into.Addr().Interface().(interface{ locate(position) }); ok {
		l.locate(at)
	}
	var names []string
	for i := range into.NumField() {
		if f := into.Type().Field(i); !f.Anonymous {
			names = append(names, f.Name)
		}
	}
	seen := make(map[string]int)
	for _, m := range n.members {
		below := position{at.file, m.name, m.line}
		if at.path != "" {
			below.path = at.path + "." + m.name
		}
		folded := strings.ToLower(m.name)
		if first, twice := seen[folded]; twice {
			r.mistake(CodeDuplicate, at.file, m.line, "%s stands twice: it is in line %d already", below.path, first)
			continue
		}
		seen[folded] = m.line
		i := slices.IndexFunc(names, func(name string) bool { return strings.EqualFold(name, m.name) })
		if i >= 0 {
			below.path = strings.TrimSuffix(below.path, m.name) + names[i]
			field := into.FieldByName(names[i])
			r.decode(below, m.value, field, strict || below.path == "Install")
			continue
		}
		_, near := nearest(m.name, names)
		if strict || near {
			r.mistake(CodeUnknown, at.file, m.line, "unknown field %s%s", below.path, meant(m.name, names))
			continue
		}
		r.warnings = append(r.warnings, fmt.Sprintf("%s:%d: field %s is not used", at.file, m.line, below.path))
	}
}
