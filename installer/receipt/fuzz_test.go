package receipt

import (
	"crypto/ed25519"
	"testing"
)

func FuzzOpen(f *testing.F) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	t := new(testing.T)
	der := certificate(t, key)
	good, err := Receipt{Plan: "sha256:ab"}.Sign(der, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"format":1,"receipt":"e30=","certificate":"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n","signature":"AA=="}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, by, err := Open(data)
		if err == nil && (r.Format != Format || by.PublicKey == nil) {
			t.Errorf("accepted %+v", r)
		}
	})
}
