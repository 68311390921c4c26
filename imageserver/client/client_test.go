package client_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firstlight/firstlight/imageserver/client"
	"github.com/firstlight/firstlight/imageserver/image"
	"github.com/firstlight/firstlight/imageserver/object"
	"github.com/firstlight/firstlight/imageserver/object/pack"
	"github.com/firstlight/firstlight/imageserver/object/zstd"
	"github.com/firstlight/firstlight/proto/auth"
	"github.com/firstlight/firstlight/tools/pki"
)

func code(err error) string {
	var coded interface{ Code() string }
	if errors.As(err, &coded) {
		return coded.Code()
	}
	return ""
}

func wantCode(t *testing.T, err error, want string) {
	t.Helper()
	if code(err) != want {
		t.Errorf("error %v (%s), want %s", err, code(err), want)
	}
}

// files are a small image: two small files, an incompressible one and one that
// is sent in several pieces.
func files() map[string][]byte {
	random := rand.New(rand.NewPCG(7, 7))
	noise := make([]byte, 3<<20+17)
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	return map[string][]byte{
		"etc/hostname": []byte("host1\n"),
		"usr/lib/text": content(random, 200<<10),
		"usr/lib/big":  content(random, 9<<20),
		"usr/lib/raw":  noise,
	}
}

// manifest is the encoded manifest of files.
func manifest(t *testing.T, contents map[string][]byte) []byte {
	t.Helper()
	m := &image.Manifest{Attributes: map[string]string{image.AttrArch: "amd64"}}
	for _, dir := range []string{".", "etc", "usr", "usr/lib"} {
		m.Entries = append(m.Entries, image.Entry{Path: dir, Type: image.Dir, Mode: 0o755})
	}
	for path, data := range contents {
		m.Entries = append(m.Entries, image.Entry{Path: path, Type: image.File, Mode: 0o644, Size: uint64(len(data)), Digest: object.Of(data)})
	}
	slices.SortFunc(m.Entries, func(a, b image.Entry) int { return image.Compare(a.Path, b.Path) })
	raw, err := image.Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// addImage uploads files and adds their image.
func addImage(t *testing.T, c *client.Client, name string, contents map[string][]byte) []byte {
	t.Helper()
	var all []client.Offer
	for _, data := range contents {
		all = append(all, offer(data))
	}
	if err := c.Upload(t.Context(), offers(all...)); err != nil {
		t.Fatal(err)
	}
	raw := manifest(t, contents)
	if _, existed, err := c.AddImage(t.Context(), name, raw); err != nil || existed {
		t.Fatal(existed, err)
	}
	return raw
}

// TestRoundTrip adds an image and gets everything back, over TLS and without.
func TestRoundTrip(t *testing.T) {
	for _, secure := range []bool{true, false} {
		t.Run(fmt.Sprintf("tls=%v", secure), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, secure)
			c := s.dial(t)
			contents := files()
			raw := addImage(t, c, "debian/12/1", contents)

			found, err := c.Manifest(t.Context(), "debian")
			if err != nil {
				t.Fatal(err)
			}
			if found.Name != "debian/12/1" || !bytes.Equal(found.Raw, raw) || found.Digest != object.Of(raw) {
				t.Errorf("found %s, %s, %d bytes", found.Name, found.Digest, len(found.Raw))
			}
			if by := map[bool]string{true: "admin"}[secure]; found.AddedBy != by {
				t.Errorf("added by %q, want %q", found.AddedBy, by)
			}
			var digests []object.Digest
			for path, data := range contents {
				digests = append(digests, object.Of(data))
				if want := offer(data).StoredSize; found.Stored[object.Of(data)] != want {
					t.Errorf("%s has %d stored bytes, want %d", path, found.Stored[object.Of(data)], want)
				}
				r, err := c.Open(t.Context(), object.Of(data))
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(r)
				if err := errors.Join(err, r.Close()); err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s: %d of %d bytes came back, %v", path, len(got), len(data), err)
				}
			}
			if n := fetchVerified(t, c, append(digests, digests...)); n != len(contents) {
				t.Errorf("%d objects came, want each of %d once", n, len(contents))
			}
			have, err := c.Have(t.Context(), append(digests, object.Of([]byte("not there")), digests[0]))
			if want := []bool{true, true, true, true, false, true}; err != nil || !slices.Equal(have, want) {
				t.Errorf("have %v, %v; want %v", have, err, want)
			}
		})
	}
}

func TestCatalog(t *testing.T) {
	t.Parallel()
	s := newSite(t, true)
	c := s.dial(t)
	contents := files()
	raw := addImage(t, c, "debian/12/1", contents)

	again, existed, err := c.AddImage(t.Context(), "debian/12/1", raw)
	if err != nil || !existed || again.Objects != 4 || again.Inodes != 8 {
		t.Error("the same again:", again, existed, err)
	}
	second, _, err := c.AddImage(t.Context(), "debian/12/2", raw)
	if err != nil {
		t.Fatal(err)
	}
	newest, err := c.Find(t.Context(), "debian/12")
	if diff := cmp.Diff(second, newest); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if pinned, err := c.Find(t.Context(), "debian/12/1@"+object.Of(raw).String()); err != nil || pinned.Name != "debian/12/1" {
		t.Error(pinned, err)
	}
	delete(contents, "etc/hostname")
	other := manifest(t, contents)
	_, _, err = c.AddImage(t.Context(), "debian/12/1", other)
	wantCode(t, err, client.CodeRefused)
	_, _, err = c.AddImage(t.Context(), "debian/12", other)
	wantCode(t, err, client.CodeRefused)
	_, _, err = c.AddImage(t.Context(), "../debian/12/3", other)
	wantCode(t, err, client.CodeRefused)
	_, err = c.Manifest(t.Context(), "../debian/12/1")
	wantCode(t, err, client.CodeBadName)
	_, err = c.List(t.Context(), "debian/")
	wantCode(t, err, client.CodeBadName)
	_, err = c.Delete(t.Context(), "debian//12", object.Digest{})
	wantCode(t, err, client.CodeBadName)
	_, err = c.Find(t.Context(), "debian/12/3")
	wantCode(t, err, client.CodeNoImage)
	if err == nil || !strings.Contains(err.Error(), "debian/12/1, debian/12/2") {
		t.Errorf("the nearest names are missing: %v", err)
	}
	_, err = c.Manifest(t.Context(), "debian/12/1@"+object.Of(other).String())
	wantCode(t, err, client.CodeNoImage)
	_, err = c.Delete(t.Context(), "debian/12/1", object.Of(other))
	wantCode(t, err, client.CodeNoImage)
	if _, err = c.Delete(t.Context(), "debian/12/1", object.Of(raw)); err != nil {
		t.Error(err)
	}
	images, err := c.List(t.Context(), "")
	if err != nil || len(images) != 1 || images[0].Name != "debian/12/2" {
		t.Error(images, err)
	}
	if images, err = c.List(t.Context(), "debian/13"); err != nil || len(images) != 0 {
		t.Error(images, err)
	}
}

// TestIncomplete: an image whose objects are not all there does not come about.
func TestIncomplete(t *testing.T) {
	t.Parallel()
	s := newSite(t, true)
	c := s.dial(t)
	contents := files()
	if err := c.Upload(t.Context(), offers(offer(contents["etc/hostname"]))); err != nil {
		t.Fatal(err)
	}
	_, _, err := c.AddImage(t.Context(), "a/1", manifest(t, contents))
	wantCode(t, err, client.CodeRefused)
	if err == nil || !strings.Contains(err.Error(), "3 of the image's 4 objects") {
		t.Error(err)
	}
	_, err = c.Find(t.Context(), "a/1")
	wantCode(t, err, client.CodeNoImage)

	// An object of another size than the manifest says.
	m := &image.Manifest{Entries: []image.Entry{{Path: ".", Type: image.Dir, Mode: 0o755},
		{Path: "f", Type: image.File, Size: 7, Digest: object.Of(contents["etc/hostname"])}}}
	raw, err := image.Encode(m)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = c.AddImage(t.Context(), "a/1", raw)
	wantCode(t, err, client.CodeRefused)
	_, _, err = c.AddImage(t.Context(), "a/1", []byte("no manifest"))
	wantCode(t, err, client.CodeRefused)
}

// TestLies: bytes that are not what was announced are refused, and nothing of
// them stays; what came before in the same call may.
func TestLies(t *testing.T) {
	t.Parallel()
	s := newSite(t, true)
	c := s.dial(t)
	random := rand.New(rand.NewPCG(1, 1))
	small, large := content(random, 5000), content(random, 5<<20)
	lie := func(o client.Offer, change func(*client.Offer)) client.Offer { change(&o); return o }
	for name, bad := range map[string]client.Offer{
		"digest":       lie(offer(small), func(o *client.Offer) { o.Digest[0] ^= 1 }),
		"size":         lie(offer(small), func(o *client.Offer) { o.Size++ }),
		"large digest": lie(offer(large), func(o *client.Offer) { o.Digest[0] ^= 1 }),
		"large size":   lie(offer(large), func(o *client.Offer) { o.Size-- }),
		"encoding":     lie(offer(small), func(o *client.Offer) { o.Encoding = object.Raw; o.Size = o.StoredSize }),
	} {
		err := c.Upload(t.Context(), offers(offer([]byte("one before: "+name)), bad, offer([]byte("one after"))))
		if code(err) != client.CodeRefused {
			t.Errorf("%s: error %v, want %s", name, err, client.CodeRefused)
		}
		have, err := c.Have(t.Context(), []object.Digest{bad.Digest})
		if err != nil || have[0] {
			t.Errorf("%s: it is there: %v, %v", name, have, err)
		}
	}
	left, err := filepath.Glob(filepath.Join(s.data, "tmp", "*", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

// storedAt is where the server's disk has the bytes of an object: in a file of
// its own, or in a pack.
func storedAt(t *testing.T, s *site, digest object.Digest) (file string, at, size int64) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(s.data, "objects", digest.Hex()[:2], digest.Hex()+"*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 1 {
		info, err := os.Stat(found[0])
		if err != nil {
			t.Fatal(err)
		}
		return found[0], 0, info.Size()
	}
	packs, err := filepath.Glob(filepath.Join(s.data, "packs", "*.pack"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range packs {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		locations, err := pack.ReadIndex(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range locations {
			if l.Info.Digest == digest {
				return name, int64(l.Offset), int64(l.Info.StoredSize)
			}
		}
	}
	t.Fatalf("object %s is nowhere", digest)
	return "", 0, 0
}

func flip(t *testing.T, file string, at int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	var one [1]byte
	if _, err := f.ReadAt(one[:], at); err != nil {
		t.Fatal(err)
	}
	one[0] ^= 0x10
	if _, err := f.WriteAt(one[:], at); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestDamaged damages each object on the server's disk, in several ways: the
// fetch fails before the object is complete, and says that it is damaged.
func TestDamaged(t *testing.T) {
	t.Parallel()
	damages := map[string]func(t *testing.T, file string, at, size int64){
		"first byte":  func(t *testing.T, file string, at, _ int64) { flip(t, file, at) },
		"middle byte": func(t *testing.T, file string, at, size int64) { flip(t, file, at+size/2) },
		"last byte":   func(t *testing.T, file string, at, size int64) { flip(t, file, at+size-1) },
		"cut off": func(t *testing.T, file string, at, size int64) {
			if err := os.Truncate(file, at+size-1); err != nil {
				t.Fatal(err)
			}
		},
		"empty": func(t *testing.T, file string, at, _ int64) {
			if err := os.Truncate(file, at); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, true)
			c := s.dial(t)
			contents := files()
			raw := addImage(t, c, "a/1", contents)
			// Cutting a pack off takes its index too, so all are looked up first.
			damaging := map[string]func(){}
			for path, data := range contents {
				file, at, size := storedAt(t, s, object.Of(data))
				damaging[path] = func() { damage(t, file, at, size) }
			}
			manifest, at, size := storedAt(t, s, object.Of(raw))
			for path, data := range contents {
				damaging[path]()
				whole := false
				err := c.Fetch(t.Context(), []object.Digest{object.Of(data)}, func(p object.Piece) error {
					whole = whole || p.Last()
					return nil
				})
				if code(err) != client.CodeDamaged || whole {
					t.Errorf("%s: error %v (whole: %v), want %s", path, err, whole, client.CodeDamaged)
				}
			}
			// The manifest is an object too.
			damage(t, manifest, at, size)
			_, err := c.Manifest(t.Context(), "a/1")
			wantCode(t, err, client.CodeDamaged)
		})
	}
}

func TestMissingObject(t *testing.T) {
	t.Parallel()
	s := newSite(t, true)
	c := s.dial(t)
	contents := files()
	addImage(t, c, "a/1", contents)
	digest := object.Of(contents["usr/lib/text"])
	if err := s.objects.Delete(t.Context(), digest); err != nil {
		t.Fatal(err)
	}
	err := c.Fetch(t.Context(), []object.Digest{object.Of(contents["usr/lib/big"]), digest}, func(object.Piece) error { return nil })
	wantCode(t, err, client.CodeNoObject)
	if err == nil || !strings.Contains(err.Error(), digest.String()) {
		t.Errorf("the error does not name the object: %v", err)
	}
	_, err = c.Open(t.Context(), digest)
	wantCode(t, err, client.CodeNoObject)
}

// TestCallbackError: an error of the receiver comes back as it is.
func TestCallbackError(t *testing.T) {
	t.Parallel()
	s := newSite(t, false)
	c := s.dial(t)
	data := files()["usr/lib/big"]
	if err := c.Upload(t.Context(), offers(offer(data))); err != nil {
		t.Fatal(err)
	}
	full := errors.New("no room left")
	if err := c.Fetch(t.Context(), []object.Digest{object.Of(data)}, func(object.Piece) error { return full }); err != full {
		t.Errorf("error %v, want %v", err, full)
	}
	broken := errors.New("cannot read the source")
	if err := c.Upload(t.Context(), func(context.Context) (client.Offer, error) { return client.Offer{}, broken }); err != broken {
		t.Errorf("error %v, want %v", err, broken)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := c.Upload(ctx, func(ctx context.Context) (client.Offer, error) {
		cancel()
		<-ctx.Done()
		return client.Offer{}, ctx.Err()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want cancelled", err)
	}
}

// TestConnectErrors: each way in which no connection comes about has its code.
func TestConnectErrors(t *testing.T) {
	t.Parallel()
	s := newSite(t, true)
	lab := newSite(t, false)
	foreign := newSite(t, true)
	now := time.Now()
	clientTLS := func(ca, cert, key string) *tls.Config {
		config, err := auth.ClientTLS(ca, cert, key, now)
		if err != nil {
			t.Fatal(err)
		}
		return config
	}
	at := func(moved time.Time) *tls.Config {
		config := clientTLS(filepath.Join(s.secrets, pki.CAFile), "", "")
		config.Time = func() time.Time { return moved }
		return config
	}
	otherName := clientTLS(filepath.Join(s.secrets, pki.CAFile), "", "")
	otherName.ServerName = "elsewhere.example"
	_, port, err := net.SplitHostPort(s.address)
	if err != nil {
		t.Fatal(err)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(s.secrets, pki.CAFile)
	for name, test := range map[string]struct {
		address string
		tls     *tls.Config
		code    string
	}{
		"nothing listens": {closed.Addr().String(), at(now), client.CodeUnreachable},
		"no answer":       {silent.Addr().String(), at(now), client.CodeUnreachable},
		"no such host":    {"does-not-exist.invalid:" + port, at(now), client.CodeUnreachable},
		"empty address":   {"", at(now), client.CodeUnreachable},
		"a URL":           {"https://" + s.address, at(now), client.CodeUnreachable},
		"another CA":      {foreign.address, at(now), client.CodeUntrusted},
		"clock behind":    {s.address, at(now.AddDate(-1, 0, 0)), client.CodeExpired},
		"clock ahead":     {s.address, at(now.AddDate(5, 0, 0)), client.CodeExpired},
		"another name":    {s.address, otherName, client.CodeOtherHost},
		"no TLS there":    {lab.address, at(now), client.CodeTransport},
		"foreign client": {s.address, clientTLS(ca, filepath.Join(foreign.secrets, pki.AdminFile),
			filepath.Join(foreign.secrets, pki.AdminKeyFile)), client.CodeOurs},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := client.Dial(t.Context(), client.Options{Address: test.address, TLS: test.tls, ConnectTimeout: 2 * time.Second})
			if err == nil {
				// In TLS 1.3 a client may learn only afterwards that its
				// certificate was refused.
				_, err = c.List(t.Context(), "")
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			}
			wantCode(t, err, test.code)
		})
	}
	t.Run("plaintext to a server with TLS", func(t *testing.T) {
		c, err := client.Dial(t.Context(), client.Options{Address: s.address})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, err = c.List(t.Context(), "")
		wantCode(t, err, client.CodeAnonymous)
	})
}

// relay passes bytes on between a client and a server until it is told to swallow
// what the server sends, or to break off.
type relay struct {
	listener net.Listener
	swallow  chan struct{}
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{listener, make(chan struct{})}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", to)
			if err != nil {
				from.Close()
				return
			}
			t.Cleanup(func() { from.Close(); server.Close() })
			go io.Copy(server, from)
			go func() {
				buffer := make([]byte, 32<<10)
				for {
					n, err := server.Read(buffer)
					if err != nil {
						return
					}
					select {
					case <-r.swallow:
						continue
					default:
					}
					if _, err := from.Write(buffer[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	return r
}

// TestSilence: a server that falls silent in the middle becomes an error, by
// the stall limit and by keepalive.
func TestSilence(t *testing.T) {
	t.Parallel()
	s := newSite(t, true)
	data := files()["usr/lib/big"]
	if err := s.dial(t).Upload(t.Context(), offers(offer(data))); err != nil {
		t.Fatal(err)
	}
	for name, options := range map[string]client.Options{
		"stall":     {Stall: 300 * time.Millisecond},
		"keepalive": {KeepaliveTimeout: 500 * time.Millisecond}, // 10 s and this
	} {
		for _, call := range []string{"fetch", "upload"} {
			t.Run(name+" "+call, func(t *testing.T) {
				t.Parallel()
				r := newRelay(t, s.address)
				options := options
				options.Address, options.TLS = r.listener.Addr().String(), s.tls(t)
				c, err := client.Dial(t.Context(), options)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if call == "upload" {
					close(r.swallow)
					err = c.Upload(t.Context(), offers(offer([]byte(name))))
				} else {
					once := false
					err = c.Fetch(t.Context(), []object.Digest{object.Of(data), object.Of([]byte("x"))}[:1], func(object.Piece) error {
						if !once {
							close(r.swallow)
						}
						once = true
						time.Sleep(20 * time.Millisecond)
						return nil
					})
					if err == nil {
						// All of it was in flight already; the next call is silent.
						_, err = c.List(t.Context(), "")
					}
				}
				wantCode(t, err, client.CodeLost)
			})
		}
	}
}

// TestManySmall crosses the limits of messages and batches.
func TestManySmall(t *testing.T) {
	t.Parallel()
	s := newSite(t, false)
	c := s.dial(t)
	const n = 5000 // more than one batch
	var all []client.Offer
	var digests []object.Digest
	for i := range n {
		o := offer(fmt.Appendf(nil, "object %d", i))
		all = append(all, o)
		digests = append(digests, o.Digest)
	}
	if err := c.Upload(t.Context(), offers(all...)); err != nil {
		t.Fatal(err)
	}
	if got := fetchVerified(t, c, digests); got != n {
		t.Errorf("%d of %d came", got, n)
	}
	have, err := c.Have(t.Context(), slices.Repeat(digests, 14)) // 70,000: two requests
	if err != nil || len(have) != 14*n || slices.Contains(have, false) {
		t.Error(len(have), err)
	}
	if err := c.Fetch(t.Context(), nil, func(object.Piece) error { return nil }); err != nil {
		t.Error("nothing wanted:", err)
	}
	if err := c.Upload(t.Context(), offers()); err != nil {
		t.Error("nothing offered:", err)
	}
	if err := zstd.Verify(all[0].Info, []byte("object 0")); err != nil {
		t.Error(err)
	}
}
