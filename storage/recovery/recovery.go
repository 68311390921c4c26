// Package recovery writes a machine's recovery key: the way that a person types
// it, and encrypted with age to the people who may have it. It makes no key and
// stores none.
package recovery

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/firstlight/firstlight/storage"
)

const (
	// Entropy of a recovery key, in bytes.
	Entropy = 32
	// KeyLength is the length of one as it is typed, in bytes: groups of eight
	// letters with dashes between them.
	KeyLength = 2*Entropy + 2*Entropy/group - 1
	group     = 8
)

// alphabet is modhex: sixteen letters that lie on the same keys in most of the
// world's keyboards (src/shared/recovery-key.h of systemd).
const alphabet = "cbdefghijklnrtuv"

// Write writes Entropy bytes into the KeyLength bytes of text, as systemd's
// recovery keys are written (systemd-cryptenroll(1), --recovery-key). The text,
// dashes and all, is the passphrase of the key slot.
func Write(text, entropy []byte) {
	at := 0
	for i, b := range entropy[:Entropy] {
		if i > 0 && i%(group/2) == 0 {
			text[at] = '-'
			at++
		}
		text[at], text[at+1] = alphabet[b>>4], alphabet[b&0xf]
		at += 2
	}
}

// Token is the LUKS2 token, as JSON, that marks a key slot as that of a recovery
// key: systemd then takes it in any spelling.
func Token(slot int) []byte {
	return []byte(`{"type":"systemd-recovery","keyslots":["` + strconv.Itoa(slot) + `"]}`)
}

// CheckRecipient says what is wrong with an age recipient, if anything is.
func CheckRecipient(recipient string) error {
	_, err := parse(recipient)
	return err
}

func parse(recipient string) (age.Recipient, error) {
	found, err := age.ParseRecipients(strings.NewReader(recipient))
	if err != nil || len(found) != 1 {
		// The library's words name the line of a file. What stands here by mistake
		// may be a secret key: its beginning is enough.
		return nil, storage.Errorf(storage.CodeRecipient, "%.12q… is not an age recipient: age-keygen(1) prints them, they begin with age1", recipient)
	}
	return found[0], nil
}

// Seal encrypts a key to recipients, of whom each alone can open it (`age -d`),
// in armor. What comes out when it is opened is the key and a newline. Errors have
// code LUK-013.
func Seal(key []byte, recipients []string) ([]byte, error) {
	var to []age.Recipient
	for _, recipient := range recipients {
		r, err := parse(recipient)
		if err != nil {
			return nil, err
		}
		to = append(to, r)
	}
	var out bytes.Buffer
	armored := armor.NewWriter(&out)
	w, err := age.Encrypt(armored, to...)
	if err == nil {
		_, err = w.Write(key)
		if err == nil {
			_, err = io.WriteString(w, "\n")
		}
		err = errors.Join(err, w.Close(), armored.Close())
	}
	if err != nil {
		return nil, storage.Errorf(storage.CodeRecipient, "encrypting the recovery key to its recipients: %w", err)
	}
	return out.Bytes(), nil
}

// Format is the version of Escrow's JSON.
const Format = 1

// Escrow is a sealed recovery key with what it belongs to: what an operator needs
// to find the right one years later.
type Escrow struct {
	Format   int      `json:"format"`
	Hostname string   `json:"hostname"`
	Serial   string   `json:"serial,omitempty"` // of the machine
	UUID     string   `json:"uuid,omitempty"`   // of the machine
	MACs     []string `json:"macs,omitempty"`
	// Recipients can open Sealed.
	Recipients []string `json:"recipients"`
	// Volumes are those that the key opens.
	Volumes []Volume `json:"volumes"`
	// Sealed is the key, encrypted with age, in armor.
	Sealed string `json:"sealed"`
}

// Volume is one that a recovery key opens.
type Volume struct {
	UUID       string `json:"uuid"` // of the LUKS header
	MountPoint string `json:"mountPoint"`
	Disk       string `json:"disk"` // path and serial number, for people
}

// JSON is the document as it is sent.
func (e Escrow) JSON() ([]byte, error) {
	data, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding a recovery key's escrow: %w", err)
	}
	return append(data, '\n'), nil
}

// Parse reads what [Escrow.JSON] wrote, of this version; it refuses what is no
// sealed key, so that nobody keeps a key in the clear by mistake, or nothing.
func Parse(data []byte) (Escrow, error) {
	var e Escrow
	if err := json.Unmarshal(data, &e); err != nil {
		return Escrow{}, fmt.Errorf("reading a recovery key's escrow: %w", err)
	}
	switch {
	case e.Format != Format:
		return Escrow{}, fmt.Errorf("a recovery key's escrow has format %d: this version reads format %d", e.Format, Format)
	case len(e.Volumes) == 0 || len(e.Recipients) == 0:
		return Escrow{}, errors.New("a recovery key's escrow names no volumes, or nobody who can open it")
	case !strings.HasPrefix(e.Sealed, armor.Header) || !strings.HasSuffix(strings.TrimSpace(e.Sealed), armor.Footer):
		return Escrow{}, errors.New("a recovery key's escrow has no key that is encrypted with age")
	}
	return e, nil
}
