package recovery

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/firstlight/firstlight/storage"
)

func TestWrite(t *testing.T) {
	entropy := make([]byte, Entropy)
	for i := range entropy {
		entropy[i] = byte(i * 17)
	}
	text := make([]byte, KeyLength)
	Write(text, entropy)
	const want = "ccbbddee-ffgghhii-jjkkllnn-rrttuuvv-bcdbedfe-" // and so on
	if !strings.HasPrefix(string(text), want) || strings.Count(string(text), "-") != 7 || bytes.Contains(text, []byte{0}) {
		t.Errorf("%q, want %s…", text, want)
	}
	var token struct {
		Type     string
		Keyslots []string
	}
	if err := json.Unmarshal(Token(3), &token); err != nil || token.Type != "systemd-recovery" || len(token.Keyslots) != 1 || token.Keyslots[0] != "3" {
		t.Errorf("%s: %v", Token(3), err)
	}
}

func TestSeal(t *testing.T) {
	one, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	two, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	key := []byte("cccccccc-vvvvvvvv")
	for _, to := range [][]string{{one.Recipient().String()}, {two.Recipient().String()}} {
		sealed, err := Seal(key, to)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(sealed, key) {
			t.Error("the key stands in what was sealed")
		}
		opened := 0
		for _, identity := range []age.Identity{one, two, other} {
			r, err := age.Decrypt(armor.NewReader(bytes.NewReader(sealed)), identity)
			if err != nil {
				continue
			}
			got, err := io.ReadAll(r)
			if err != nil || string(got) != string(key)+"\n" {
				t.Errorf("%q, %v", got, err)
			}
			opened++
		}
		if opened != 1 {
			t.Errorf("%d of three can open it", opened)
		}
		e := Escrow{Format: Format, Recipients: to, Volumes: []Volume{{UUID: "u", MountPoint: "/"}}, Sealed: string(sealed)}
		data, err := e.JSON()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := Parse(data); err != nil || back.Sealed != e.Sealed {
			t.Errorf("%v, %v", back, err)
		}
		for name, change := range map[string]func(e *Escrow){
			"format":        func(e *Escrow) { e.Format = 2 },
			"in the clear":  func(e *Escrow) { e.Sealed = string(key) },
			"cut off":       func(e *Escrow) { e.Sealed = e.Sealed[:len(e.Sealed)-40] },
			"nothing":       func(e *Escrow) { e.Sealed = "" },
			"no volumes":    func(e *Escrow) { e.Volumes = nil },
			"no recipients": func(e *Escrow) { e.Recipients = nil },
		} {
			wrong := e
			change(&wrong)
			data, err := wrong.JSON()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Parse(data); err == nil {
				t.Errorf("%s: taken", name)
			}
		}
	}
	if _, err := Parse([]byte("{")); err == nil {
		t.Error("half a document was taken")
	}
}

func TestRecipients(t *testing.T) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckRecipient(identity.Recipient().String()); err != nil {
		t.Error(err)
	}
	for _, wrong := range []string{"", "age1", "age1abc", identity.String(), identity.Recipient().String() + "q", "# comment", "a\nb"} {
		err := CheckRecipient(wrong)
		var coded *storage.Error
		if !errors.As(err, &coded) || coded.Code() != storage.CodeRecipient {
			t.Errorf("%q: %v", wrong, err)
		}
		if err != nil && len(wrong) > 20 && strings.Contains(err.Error(), wrong[:20]) {
			t.Errorf("a secret may stand in %q", err)
		}
		if _, err := Seal([]byte("k"), []string{identity.Recipient().String(), wrong}); err == nil {
			t.Errorf("sealed to %q", wrong)
		}
	}
}
