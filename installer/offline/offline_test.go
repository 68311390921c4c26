package offline

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/imageserver/object"
)

func TestListIsReadBack(t *testing.T) {
	want := List{Format: Format, Packs: []string{"objects-0.pack"}, Images: []Image{{Name: "debian/12/1", Asked: "debian/12", Digest: object.Of([]byte("m")), Manifest: "image-0.manifest"}}}
	data, err := want.JSON()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestListsThatAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		`{`:                                     "reading images.json",
		`{"format": 2}`:                         "format 2",
		`{"format": 1, "packs": ["../shadow"]}`: "not in the volume's root",
		`{"format": 1, "packs": [".."]}`:        "not in the volume's root",
		`{"format": 1, "images": [{"name": "a"}]}`: "not in the volume's root",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

func TestFind(t *testing.T) {
	one, two := object.Of([]byte("1")), object.Of([]byte("2"))
	list := List{Images: []Image{{Name: "debian/12/1", Asked: "stable", Digest: one}, {Name: "debian/13/1", Digest: two}}}
	for name, want := range map[string]string{
		"debian/12/1": "debian/12/1", "debian/12": "debian/12/1", "stable": "debian/12/1", "debian/13": "debian/13/1",
		"debian/12@" + one.String(): "debian/12/1", "debian@" + two.String(): "debian/13/1",
		"debian/12@" + two.String(): "", "debian/1": "", "debian/12/2": "", "": "",
	} {
		got, ok := list.Find(name)
		if got.Name != want || ok != (want != "") {
			t.Errorf("%s: got %q, %v, want %q", name, got.Name, ok, want)
		}
	}
}
