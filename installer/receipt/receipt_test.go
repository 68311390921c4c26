package receipt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/installer/plan"
	"github.com/firstlight/firstlight/storage"
)

func certificate(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestSignedReceipt(t *testing.T) {
	ec, err1 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	_, ed, err2 := ed25519.GenerateKey(rand.Reader)
	old, err3 := rsa.GenerateKey(rand.Reader, 2048)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	r := Receipt{Plan: "sha256:ab", Machine: plan.Machine{Hostname: "web1", MACs: []string{}}, Began: time.Unix(1, 0).UTC(), Ended: time.Unix(2, 0).UTC(),
		Disks: Disks(storage.Layout{Disks: []storage.DiskLayout{{Path: "/dev/vda", Name: "vda", Serial: "S1", Size: 8 << 30, Erase: storage.EraseOverwrite,
			Partitions: []storage.Partition{{Number: 1, MountPoint: "/", FSUUID: "u"}, {Number: 2, Kept: true}}}}}),
		Files: []Written{WrittenFile("/etc/hostname", 0o644, []byte("web1\n"), false), WrittenFile("/etc/crypttab.key", 0o400, []byte("key"), true)},
	}
	for _, key := range []crypto.Signer{ec, ed, old} {
		der := certificate(t, key)
		data, err := r.Sign(der, key)
		if err != nil {
			t.Fatal(err)
		}
		got, by, err := Open(data)
		if err != nil {
			t.Fatalf("%T: %v", key, err)
		}
		want := r
		want.Format = Format
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%T: %s", key, diff)
		}
		if string(by.Raw) != string(der) {
			t.Errorf("%T: another certificate", key)
		}
		if got.Disks[0].Result != "every sector was overwritten with zeroes and read back" || got.Disks[0].Kept[0] != "vda2" {
			t.Errorf("disk %+v", got.Disks[0])
		}
		if got.Files[0].SHA256 != "" || got.Files[1].SHA256 == "" {
			t.Errorf("files %+v", got.Files)
		}
		accepted := 0
		for i := range data { // one bit of each byte
			changed := append([]byte(nil), data...)
			changed[i] ^= 1 << (i % 7)
			again, other, err := Open(changed)
			if err != nil {
				continue
			}
			// White space, a name in capitals, the certificate's own signature, which
			// is not looked at here: what it says is the same.
			accepted++
			if diff := cmp.Diff(got, again); diff != "" || !key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(other.PublicKey) {
				t.Fatalf("%T: byte %d can be changed: %s", key, i, diff)
			}
		}
		t.Logf("%T: %d of %d changes change nothing", key, accepted, len(data))
	}
	for name, text := range map[string]string{"empty": "", "no JSON": "hello", "newer": `{"format":2}`, "no certificate": `{"format":1,"receipt":"e30=","certificate":"","signature":""}`} {
		var e *Error
		if _, _, err := Open([]byte(text)); !errors.As(err, &e) || e.Code() != CodeReceipt {
			t.Errorf("%s: %v", name, err)
		}
	}
}
