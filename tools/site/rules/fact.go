package rules

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/firstlight/firstlight/installer/inventory"
)

// fact is a condition on anything in the inventory's JSON, by its path: names
// with dots between, such as dmi.biosVersion. Of a list each element is looked
// at, and one that fits is enough. What kind of condition it is follows from the
// kind of value: numbers are compared, texts have patterns, and true or false
// stands alone.
func fact(path string, node *yaml.Node) (test, error) {
	kind, err := kindOf(strings.Split(path, "."))
	if err != nil {
		return nil, err
	}
	switch kind {
	case reflect.Bool:
		var wanted bool
		if err := node.Decode(&wanted); err != nil {
			return nil, fmt.Errorf("it is true or false")
		}
		return one(path, func(v any) bool { b, ok := v.(bool); return ok && b == wanted || v == nil && !wanted }), nil
	case reflect.Float64:
		wanted, err := comparisons(node)
		if err != nil {
			return nil, err
		}
		return one(path, func(v any) bool {
			if v == nil {
				return allHold(wanted, 0) // an empty number is left out of the inventory
			}
			number, ok := v.(json.Number)
			if !ok {
				return false
			}
			n, err := number.Float64()
			return err == nil && allHold(wanted, n)
		}), nil
	}
	wanted, err := globs(node)
	if err != nil {
		return nil, err
	}
	return one(path, func(v any) bool { text, ok := v.(string); return ok && any1(wanted, text) }), nil
}

// one tests whether any of the values at path fits.
func one(path string, fits func(any) bool) test {
	return func(d inventory.Document) (bool, string) {
		data, err := d.JSON()
		if err != nil {
			return false, err.Error()
		}
		var document any
		decoder := json.NewDecoder(strings.NewReader(string(data)))
		decoder.UseNumber()
		if err := decoder.Decode(&document); err != nil {
			return false, err.Error()
		}
		values := at(document, strings.Split(path, "."))
		if len(values) == 0 {
			return fits(nil), "nothing"
		}
		var all []string
		for _, v := range values {
			if fits(v) {
				return true, fmt.Sprint(v)
			}
			all = append(all, fmt.Sprint(v))
		}
		return false, said(all)
	}
}

// at are the values at a path; lists are looked into.
func at(v any, path []string) []any {
	if list, ok := v.([]any); ok {
		if len(path) > 0 {
			if n, err := strconv.Atoi(path[0]); err == nil {
				if n < 0 || n >= len(list) {
					return nil
				}
				return at(list[n], path[1:])
			}
		}
		var all []any
		for _, element := range list {
			all = append(all, at(element, path)...)
		}
		return all
	}
	if len(path) == 0 {
		return []any{v}
	}
	object, ok := v.(map[string]any)
	if !ok {
		return nil
	}
	inside, there := object[path[0]]
	if !there {
		return nil
	}
	return at(inside, path[1:])
}

// kindOf is what the inventory has at a path: Bool, Float64 or String. A path
// that no inventory has is an error: it was meant to be another one.
func kindOf(path []string) (reflect.Kind, error) {
	t := reflect.TypeFor[inventory.Document]()
	for _, name := range path {
		t = element(t)
		if _, err := strconv.Atoi(name); err == nil {
			continue // of a list, which element has looked into
		}
		if t.Kind() != reflect.Struct || isText(t) {
			return 0, fmt.Errorf("there is nothing below %q in an inventory", strings.Join(path, "."))
		}
		field, known := member(t, name)
		if field == nil {
			return 0, fmt.Errorf("an inventory has no %q%s", name, meant(name, known))
		}
		t = field
	}
	t = element(t)
	switch kind := t.Kind(); {
	case isText(t), kind == reflect.String:
		return reflect.String, nil
	case kind == reflect.Bool:
		return reflect.Bool, nil
	case kind >= reflect.Int && kind <= reflect.Float64:
		return reflect.Float64, nil
	}
	_, known := member(t, "")
	return 0, fmt.Errorf("there is more than one value: go on with one of %s", strings.Join(known, ", "))
}

// element looks into lists and behind pointers.
func element(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer || (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) && !isText(t) {
		t = t.Elem()
	}
	return t
}

func isText(t reflect.Type) bool {
	return t.Implements(reflect.TypeFor[encoding.TextMarshaler]())
}

// member is the type of the field with that name in JSON, and all names.
func member(t reflect.Type, name string) (found reflect.Type, known []string) {
	if t.Kind() != reflect.Struct {
		return nil, nil
	}
	for i := range t.NumField() {
		field := t.Field(i)
		tag, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if tag == "" || tag == "-" {
			continue
		}
		known = append(known, tag)
		if tag == name {
			found = field.Type
		}
	}
	return found, known
}
