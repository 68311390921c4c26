package houserules

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/firstlight/firstlight/docs"
)

const module = "github.com/firstlight/firstlight"

// root is the top of the checkout, seen from this package.
const root = "../.."

// pkg is one package as go list tells it.
type pkg struct {
	ImportPath string
	Name       string
	Dir        string
	Standard   bool
	DepOnly    bool
	Imports    []string
	Deps       []string
	GoFiles    []string
}

// in is the package's folder inside the module, "" for the root.
func in(importPath string) string {
	return strings.TrimPrefix(strings.TrimPrefix(importPath, module), "/")
}

func ours(importPath string) bool {
	return importPath == module || strings.HasPrefix(importPath, module+"/")
}

// under is true for the folder itself and for all below it.
func under(folder, top string) bool { return folder == top || strings.HasPrefix(folder, top+"/") }

// listed holds all packages by import path; sync.OnceValues so that the tests
// ask go only once.
var listed = sync.OnceValues(func() (map[string]*pkg, error) {
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Name,Dir,Standard,DepOnly,Imports,Deps,GoFiles", "./...")
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w: %s", err, stderr.Bytes())
	}
	all := make(map[string]*pkg)
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		p := new(pkg)
		if err := d.Decode(p); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		all[p.ImportPath] = p
	}
})

// house returns the module's own packages, sorted by folder, and all packages.
func house(t *testing.T) (own []*pkg, all map[string]*pkg) {
	t.Helper()
	all, err := listed()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if ours(p.ImportPath) {
			own = append(own, p)
		}
	}
	if len(own) == 0 {
		t.Fatal("go list found none of our packages")
	}
	slices.SortFunc(own, func(a, b *pkg) int { return strings.Compare(a.ImportPath, b.ImportPath) })
	return own, all
}

// line is one package of the list in docs/architecture.md:
//
//   - `storage/gpt` ·P the bytes of a partition table
var line = regexp.MustCompile("^- `([^`]+)` (·P|·S|·W|main|test|generated) (\\S.*)$")

// marks reads the list: folder → mark.
func marks(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs", "architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, list, found := strings.Cut(string(text), "\n## The house\n")
	if !found {
		t.Fatal("docs/architecture.md has no section “The house”")
	}
	list, _, _ = strings.Cut(list, "\n## ")
	m := make(map[string]string)
	for _, l := range strings.Split(list, "\n") {
		if !strings.HasPrefix(l, "- ") {
			continue
		}
		g := line.FindStringSubmatch(l)
		if g == nil {
			t.Errorf("docs/architecture.md: not a line of the list: %s", l)
			continue
		}
		if _, twice := m[g[1]]; twice {
			t.Errorf("docs/architecture.md: %s is there twice", g[1])
		}
		m[g[1]] = g[2]
	}
	return m
}

// TestPackageList keeps the list in docs/architecture.md true.
func TestPackageList(t *testing.T) {
	own, _ := house(t)
	m := marks(t)
	for _, p := range own {
		f := in(p.ImportPath)
		mark, there := m[f]
		delete(m, f)
		switch {
		case !there:
			t.Errorf("docs/architecture.md lacks a line for %s", f)
		case (p.Name == "main") != (mark == "main"):
			t.Errorf("docs/architecture.md marks %s %s, it is package %s", f, mark, p.Name)
		}
	}
	for f := range m {
		t.Errorf("docs/architecture.md has a line for %s, which is no package", f)
	}
}

// TestTopLevel holds the settled top level of the checkout.
func TestTopLevel(t *testing.T) {
	settled := []string{"proto", "imageserver", "storage", "netconfig", "installer", "uinit", "tools", "hack", "docs",
		".ci", ".gitignore", "README.md", "LICENSE", "Makefile", "go.mod", "go.sum"}
	madeHere := []string{".git", "bin", "build"} // never checked in
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(settled, e.Name()) && !slices.Contains(madeHere, e.Name()) {
			t.Errorf("%s has no place at the top level", e.Name())
		}
	}
	for _, name := range settled {
		if _, err := os.Stat(filepath.Join(root, name)); err != nil {
			t.Errorf("the top level lacks %s: %v", name, err)
		}
	}
}

// TestNounsImportStandardLibrary is rule 1.
func TestNounsImportStandardLibrary(t *testing.T) {
	own, all := house(t)
	nouns := []string{"imageserver/object", "storage", "netconfig"}
	for _, p := range own {
		if !slices.Contains(nouns, in(p.ImportPath)) {
			continue
		}
		nouns = slices.DeleteFunc(nouns, func(n string) bool { return n == in(p.ImportPath) })
		for _, i := range p.Imports {
			if d := all[i]; d == nil || !d.Standard {
				t.Errorf("%s imports %s: only the standard library is allowed", in(p.ImportPath), i)
			}
		}
	}
	if len(nouns) > 0 {
		t.Errorf("there is no package %q", nouns)
	}
}

// TestStorageAndNetconfigStandAlone is rule 2.
func TestStorageAndNetconfigStandAlone(t *testing.T) {
	own, _ := house(t)
	for _, p := range own {
		for _, top := range []string{"storage", "netconfig"} {
			if !under(in(p.ImportPath), top) {
				continue
			}
			for _, i := range p.Imports {
				if ours(i) && !under(in(i), top) {
					t.Errorf("%s imports %s: %s knows nothing of the rest of the house", in(p.ImportPath), in(i), top)
				}
			}
		}
	}
}

// TestProtoStaysAtTheWire is rule 3.
func TestProtoStaysAtTheWire(t *testing.T) {
	own, _ := house(t)
	m := marks(t)
	for _, p := range own {
		f := in(p.ImportPath)
		if mark := m[f]; mark == "·W" || mark == "main" || mark == "generated" {
			continue
		}
		for _, i := range p.Imports {
			if ours(i) && under(in(i), "proto") {
				t.Errorf("%s (%s) imports %s: only ·W packages and mains may", f, m[f], in(i))
			}
		}
	}
}

// TestPurePackages is rule 4.
func TestPurePackages(t *testing.T) {
	own, _ := house(t)
	m := marks(t)
	acting := []string{"os", "os/exec", "net/http", "syscall", "golang.org/x/sys/unix"}
	for _, p := range own {
		f := in(p.ImportPath)
		if m[f] != "·P" {
			continue
		}
		for _, i := range p.Imports {
			if slices.Contains(acting, i) {
				t.Errorf("%s is pure (·P) and imports %s", f, i)
			}
		}
	}
}

// TestNoMainIsImported and the three tests after it are rule 5.
func TestNoMainIsImported(t *testing.T) {
	own, all := house(t)
	for _, p := range own {
		for _, i := range p.Imports {
			if d := all[i]; d != nil && d.Name == "main" {
				t.Errorf("%s imports the program %s", in(p.ImportPath), i)
			}
		}
	}
}

func TestNoTestingOutsideTests(t *testing.T) {
	own, _ := house(t)
	m := marks(t)
	for _, p := range own {
		if m[in(p.ImportPath)] == "test" {
			continue
		}
		for _, i := range p.Imports {
			if i == "testing" || strings.HasPrefix(i, "testing/") {
				t.Errorf("%s imports %s and is no test package", in(p.ImportPath), i)
			}
		}
	}
}

// generated is how generated code says that it is (see go help generate).
var generated = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

// source is a Go file of the module that is no test.
type source struct {
	folder, name string
	file         *ast.File
	generated    bool
}

// sources parses all of them, whatever their build constraints.
func sources(t *testing.T) (*token.FileSet, []source) {
	t.Helper()
	set := token.NewFileSet()
	var found []source
	err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		if e.IsDir() {
			if b := e.Name(); rel != "." && (strings.HasPrefix(b, ".") || b == "testdata" || rel == "build" || rel == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if path.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(set, name, text, parser.SkipObjectResolution|parser.ParseComments)
		if err != nil {
			return err
		}
		found = append(found, source{filepath.ToSlash(filepath.Dir(rel)), rel, file, generated.Match(text)})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return set, found
}

func TestNoInit(t *testing.T) {
	_, files := sources(t)
	for _, s := range files {
		if s.generated {
			continue
		}
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s has an init()", s.name)
			}
		}
	}
}

// TestFlagsOnlyInMains: flag values are parsed by programs, not by packages.
func TestFlagsOnlyInMains(t *testing.T) {
	own, _ := house(t)
	for _, p := range own {
		if p.Name != "main" && slices.Contains(p.Imports, "flag") {
			t.Errorf("%s imports flag and is no program", in(p.ImportPath))
		}
	}
}

// TestEveryPackageSaysWhatItIsFor: one package comment in each.
func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	_, files := sources(t)
	comments := make(map[string]int)
	for _, s := range files {
		if s.generated {
			continue
		}
		comments[s.folder] += 0
		if s.file.Doc != nil {
			comments[s.folder]++
		}
	}
	for folder, n := range comments {
		if n == 0 {
			t.Errorf("%s has no package comment", folder)
		}
	}
}

// TestNothingForServersInTheMachine is rule 6.
func TestNothingForServersInTheMachine(t *testing.T) {
	_, all := house(t)
	foreign := []string{
		"github.com/google/go-containerregistry", "github.com/minio/minio-go", "github.com/spf13/cobra",
		"go.opentelemetry.io", "github.com/grpc-ecosystem", "go.etcd.io/bbolt", "github.com/vbauerster/mpb",
		"github.com/goccy/go-yaml", "gopkg.in/yaml.v3", "github.com/u-root/mkuimage",
	}
	own := []string{"imageserver/server", "imageserver/catalog", "imageserver/ingest", "imageserver/object/dir", "tools", "hack"}
	for _, program := range []string{"installer", "uinit"} {
		p := all[module+"/"+program]
		if p == nil {
			t.Errorf("there is no program %s", program)
			continue
		}
		for _, d := range p.Deps {
			for _, f := range foreign {
				if under(d, f) {
					t.Errorf("%s links %s, which only servers need", program, d)
				}
			}
			for _, f := range own {
				if ours(d) && under(in(d), f) {
					t.Errorf("%s links our %s, which only servers need", program, in(d))
				}
			}
		}
	}
}

// code is the form of a stable error code.
var code = regexp.MustCompile(`^(NET|CFG|TRU|IMG|STO|LUK|CNF|BOO|SRV)-[0-9]{3}$`)

// TestErrorCodes: each code of the code base has its entry in docs/errors.md
// and belongs to one domain; no entry explains a code that nothing uses.
func TestErrorCodes(t *testing.T) {
	set, files := sources(t)
	used := make(map[string]map[string]bool) // code → domains that write it out
	for _, s := range files {
		if s.generated || under(s.folder, "hack") || under(s.folder, "docs") {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			l, ok := n.(*ast.BasicLit)
			if !ok || l.Kind != token.STRING {
				return true
			}
			text, err := strconv.Unquote(l.Value)
			if err != nil {
				t.Fatalf("%s: %v", set.Position(l.Pos()), err)
			}
			if code.MatchString(text) {
				if used[text] == nil {
					used[text] = make(map[string]bool)
				}
				used[text][domain(s.folder)] = true
			}
			return true
		})
	}
	if len(used) == 0 {
		t.Fatal("no error code was found in the code")
	}
	for c, domains := range used {
		if _, found := docs.Lookup(c); !found {
			t.Errorf("docs/errors.md has no entry for %s (used by %s)", c, keys(domains))
		}
		if len(domains) > 1 {
			t.Errorf("%s is used by %s: a code belongs to one of them", c, keys(domains))
		}
	}
	for _, e := range docs.All() {
		if !code.MatchString(e.Code) {
			t.Errorf("docs/errors.md: %q is no code", e.Code)
		}
		if used[e.Code] == nil {
			t.Errorf("docs/errors.md explains %s, which nothing uses", e.Code)
		}
		if e.Title == "" || e.Happened == "" || e.Means == "" || e.Do == "" {
			t.Errorf("docs/errors.md: the entry of %s is not complete", e.Code)
		}
	}
}

// domain is the package whose error type a package uses: storage and netconfig
// have one each for all that lies below them, any other package its own.
func domain(folder string) string {
	for _, top := range []string{"storage", "netconfig"} {
		if under(folder, top) {
			return top
		}
	}
	return folder
}

func keys(m map[string]bool) string {
	var all []string
	for k := range m {
		all = append(all, k)
	}
	slices.Sort(all)
	return strings.Join(all, " and ")
}
