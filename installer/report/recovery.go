package report

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/firstlight/firstlight/storage/recovery"
)

// Recovery is the kind of the machine's recovery key, encrypted to its
// recipients: recovery.Escrow as JSON.
const Recovery Kind = "recovery"

// Receipt is the answer to a recovery key that was kept: the SHA-256 of the body,
// in lower-case hexadecimal. Anything else is no acknowledgement.
type Receipt struct {
	SHA256 string `json:"sha256"`
}

// Deposit posts the machine's recovery key, and returns without an error only if
// the server answers that it keeps these very bytes.
func (s *Site) Deposit(ctx context.Context, escrow recovery.Escrow) error {
	body, err := escrow.JSON()
	if err != nil {
		return err
	}
	answer, err := s.post(ctx, Recovery, body)
	if err != nil {
		return err
	}
	var receipt Receipt
	if err := json.Unmarshal(answer, &receipt); err != nil || receipt != receiptFor(body) {
		return &Error{text: fmt.Sprintf("telling the site server: %s does not acknowledge the recovery key", s.machine.JoinPath(string(Recovery)).Redacted())}
	}
	return nil
}

func receiptFor(body []byte) Receipt {
	sum := sha256.Sum256(body)
	return Receipt{hex.EncodeToString(sum[:])}
}

// mostEscrow bounds what a machine can have a server keep at once, in bytes.
const mostEscrow = 256 << 10

// RecoveryHandler is the other end of Deposit, for
// POST /v1/machines/{machine}/recovery (the machine's name is a path value of
// that name). keep is given the machine's name and the document as it came, and
// returns when it is stored for good; then only is it acknowledged. What is no
// encrypted key is refused.
func RecoveryHandler(keep func(ctx context.Context, machine string, escrow recovery.Escrow, document []byte) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			http.Error(w, "POST a recovery key here", http.StatusMethodNotAllowed)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, mostEscrow))
		if err != nil {
			status := http.StatusBadRequest
			if tooLong := new(http.MaxBytesError); errors.As(err, &tooLong) {
				status = http.StatusRequestEntityTooLarge
			}
			http.Error(w, err.Error(), status)
			return
		}
		escrow, err := recovery.Parse(bytes.Clone(body))
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		if err := keep(r.Context(), r.PathValue("machine"), escrow, body); err != nil {
			http.Error(w, "the recovery key was not kept: "+err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		// A client that is gone asks again, or stops its installation.
		_ = json.NewEncoder(w).Encode(receiptFor(body))
	})
}
