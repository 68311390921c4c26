package trust

import (
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

var noon = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func signer(n byte) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	seed[0] = n
	return ed25519.NewKeyFromSeed(seed)
}

func public(n byte) ed25519.PublicKey { return signer(n).Public().(ed25519.PublicKey) }

func example() Bundle {
	return Bundle{
		Name: "node1", Sequence: 7, Signed: noon, Expires: noon.Add(24 * time.Hour),
		Binding: Binding{MACs: []string{"52:54:00:12:34:56"}, Serial: "S1"},
		Image:   Pinned{"debian/12", "sha256:" + strings.Repeat("ab", 32)},
		Files:   map[string][]byte{"config.json": []byte("{}\n")},
	}
}

func encode(t *testing.T, b Bundle) []byte {
	t.Helper()
	raw, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// sign signs with several keys, each of which knows all others.
func sign(t *testing.T, raw []byte, signers ...byte) []byte {
	t.Helper()
	var sig []byte
	var keys []ed25519.PublicKey
	for _, n := range signers {
		keys = append(keys, public(n))
	}
	for _, n := range signers {
		var err error
		if sig, err = Sign(raw, sig, signer(n), keys); err != nil {
			t.Fatal(err)
		}
	}
	return sig
}

func policy(threshold int, signers ...byte) Policy {
	p := Policy{Threshold: threshold}
	for _, n := range signers {
		p.Keys = append(p.Keys, public(n))
	}
	return p
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Code() != code {
		t.Errorf("got %v, want %s", err, code)
	}
}

func TestSignedBundleIsBelieved(t *testing.T) {
	raw := encode(t, example())
	p := policy(2, 1, 2, 3)
	signers, err := p.Verify(raw, sign(t, raw, 1, 3))
	if err != nil || len(signers) != 2 {
		t.Fatalf("%v, %v", signers, err)
	}
	b, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.Image.String(); got != "debian/12@sha256:"+strings.Repeat("ab", 32) {
		t.Errorf("image %s", got)
	}
	m := Machine{MACs: []string{"52:54:00:00:00:01", "52:54:00:12:34:56"}, Serial: "s1 "}
	if err := p.Admit(b, m, noon); err != nil {
		t.Error(err)
	}
}

func TestUntrusted(t *testing.T) {
	raw := encode(t, example())
	good := sign(t, raw, 1, 2)
	for _, c := range []struct {
		name   string
		policy Policy
		bundle []byte
		sig    []byte
		code   string
	}{
		{"wrong key", policy(1, 3), raw, good, CodeSignature},
		{"below the threshold", policy(2, 1, 3), raw, good, CodeSignature},
		{"trailing byte", policy(1, 1), append(raw[:len(raw):len(raw)], '\n'), good, CodeSignature},
		{"swapped digest", policy(1, 1), []byte(strings.Replace(string(raw), "ab", "ba", 1)), good, CodeSignature},
		{"no signature", policy(1, 1), raw, []byte("{\n  \"format\": 1,\n  \"signatures\": []\n}\n"), CodeSignature},
		{"written otherwise", policy(1, 1), raw, []byte(`{"format":1,"signatures":[]}`), CodeSignatures},
		{"empty file", policy(1, 1), raw, nil, CodeSignatures},
		{"something behind", policy(1, 1), raw, append(good[:len(good):len(good)], "{}"...), CodeSignatures},
		{"newer format", policy(1, 1), raw, []byte(`{"format":2,"signatures":[]}`), CodeSignatures},
		{"large", policy(1, 1), make([]byte, MaxBundleBytes+1), good, CodeSignatures},
		{"nobody is trusted", Policy{}, raw, good, CodeKeys},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := c.policy.Verify(c.bundle, c.sig)
			wantCode(t, err, c.code)
		})
	}
	t.Run("the same signer twice", func(t *testing.T) {
		sig := sign(t, raw, 1)
		text := string(sig)
		from, to := strings.Index(text, "{\n      \"key\""), strings.LastIndex(text, "\n  ]")
		_, err := policy(2, 1, 2).Verify(raw, []byte(text[:to]+",\n    "+text[from:to]+text[to:]))
		wantCode(t, err, CodeSignature)
	})
	t.Run("a signature of something else", func(t *testing.T) {
		// What the same key signs for another purpose has no domain before it.
		other := ed25519.Sign(signer(1), raw)
		own := ed25519.Sign(signer(1), signed(raw))
		if string(other) == string(own) {
			t.Error("a bundle's signature is that of the bare bytes")
		}
	})
}

// TestEachFlippedBit: a bundle or its signatures with one bit changed is never
// believed.
func TestEachFlippedBit(t *testing.T) {
	raw := encode(t, example())
	sig := sign(t, raw, 1)
	p := policy(1, 1)
	for i := range len(raw) * 8 {
		flipped := []byte(string(raw))
		flipped[i/8] ^= 1 << (i % 8)
		if _, err := p.Verify(flipped, sig); err == nil {
			t.Fatalf("bit %d of the bundle can be flipped", i)
		}
	}
	for i := range len(sig) * 8 {
		flipped := []byte(string(sig))
		flipped[i/8] ^= 1 << (i % 8)
		if _, err := p.Verify(raw, flipped); err == nil {
			t.Fatalf("bit %d of the signatures can be flipped:\n%s", i, flipped)
		}
	}
}

func TestSignAgain(t *testing.T) {
	raw := encode(t, example())
	sig := sign(t, raw, 1, 2)
	b := example()
	b.Sequence++
	changed := encode(t, b)
	// What others signed before the change is not carried along.
	again, err := Sign(changed, sig, signer(1), []ed25519.PublicKey{public(1), public(2)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := policy(1, 1, 2).Verify(changed, again); err != nil {
		t.Error(err)
	}
	_, err = policy(2, 1, 2).Verify(changed, again)
	wantCode(t, err, CodeSignature)
}

func TestParse(t *testing.T) {
	raw := string(encode(t, example()))
	for name, text := range map[string]string{
		"unknown field":  strings.Replace(raw, `"name"`, `"nmae"`, 1),
		"trailing bytes": raw + "{}",
		"newer format":   strings.Replace(raw, `"format": 1`, `"format": 2`, 1),
		"no image":       strings.Replace(raw, "debian/12", "", 1),
		"no digest":      strings.Replace(raw, "sha256:ab", "sha256:", 1),
		"bound to none":  strings.Replace(strings.Replace(raw, "52:54", "", 1), `"binding": {`, `"binding": {}, "x": {`, 1),
		"other file":     strings.Replace(raw, "config.json", "../../etc/shadow", 1),
		"a step outside": strings.Replace(raw, `"config.json"`, `"steps/../../x": "", "config.json"`, 1),
		"no JSON":        "hello",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(text))
			wantCode(t, err, CodeBundle)
		})
	}
}

func TestAdmit(t *testing.T) {
	fits := Machine{MACs: []string{"52:54:00:12:34:56"}, Serial: "S1", UUID: "u", EndorsementKey: "e"}
	for _, c := range []struct {
		name    string
		change  func(*Bundle, *Machine, *Policy)
		now     time.Time
		code    string
		mention string
	}{
		{"expired", nil, noon.Add(24 * time.Hour), CodeExpired, "2026-11-21T12:00:00Z"},
		{"other address", func(_ *Bundle, m *Machine, _ *Policy) { m.MACs = []string{"52:54:00:00:00:00"} }, noon, CodeMachine, "52:54:00:12:34:56"},
		{"other serial", func(_ *Bundle, m *Machine, _ *Policy) { m.Serial = "" }, noon, CodeMachine, "S1"},
		{"other UUID", func(b *Bundle, _ *Machine, _ *Policy) { b.Binding.UUID = "v" }, noon, CodeMachine, `"v"`},
		{"no TPM", func(b *Bundle, m *Machine, _ *Policy) { b.Binding.EndorsementKey, m.EndorsementKey = "e", "" }, noon, CodeMachine, "TPM"},
		{"other TPM", func(b *Bundle, _ *Machine, _ *Policy) { b.Binding.EndorsementKey = "f" }, noon, CodeMachine, "TPM"},
		{"older sequence", func(_ *Bundle, _ *Machine, p *Policy) { p.Sequence = 8 }, noon, CodeSequence, "8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, m, p := example(), fits, policy(1, 1)
			if c.change != nil {
				c.change(&b, &m, &p)
			}
			err := p.Admit(b, m, c.now)
			wantCode(t, err, c.code)
			if err != nil && !strings.Contains(err.Error(), c.mention) {
				t.Errorf("%v does not name %s", err, c.mention)
			}
		})
	}
}

func TestReadPolicy(t *testing.T) {
	key := func(n byte) *fstest.MapFile {
		text, err := FormatPublicKey(public(n))
		if err != nil {
			t.Fatal(err)
		}
		return &fstest.MapFile{Data: text}
	}
	text := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	p, err := ReadPolicy(fstest.MapFS{"a.pub": key(1), "b.pub": key(2), "threshold": text("2\n"), "sequence": text("5")})
	if err != nil || len(p.Keys) != 2 || p.Threshold != 2 || p.Sequence != 5 || !p.Signed() {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := ReadPolicy(fstest.MapFS{}); err != nil || p.Signed() {
		t.Errorf("an empty directory: %+v, %v", p, err)
	}
	for name, dir := range map[string]fstest.MapFS{
		"no key":              {"README": text("put keys here")},
		"broken key":          {"a.pub": text("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")},
		"not PEM":             {"a.pub": text("ssh-ed25519 AAAA")},
		"same key twice":      {"a.pub": key(1), "b.pub": key(1)},
		"threshold too high":  {"a.pub": key(1), "threshold": text("2")},
		"threshold of none":   {"a.pub": key(1), "threshold": text("0")},
		"threshold no number": {"a.pub": key(1), "threshold": text("all")},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ReadPolicy(dir)
			wantCode(t, err, CodeKeys)
		})
	}
}

func FuzzBundle(f *testing.F) {
	b := example()
	raw, err := b.Encode()
	if err != nil {
		f.Fatal(err)
	}
	sig, err := Sign(raw, nil, signer(1), nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw, sig)
	p := policy(1, 1)
	f.Fuzz(func(t *testing.T, bundle, sig []byte) {
		if _, err := p.Verify(bundle, sig); err == nil && string(bundle) != string(raw) {
			t.Error("another bundle was believed")
		}
		if b, err := Parse(bundle); err == nil {
			if again, err := b.Encode(); err != nil {
				t.Errorf("it was read and cannot be written: %v\n%s", err, again)
			}
		}
	})
}
