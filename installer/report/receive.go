package report

import (
	"context"
	"errors"
	"io"
	"net/http"

	"github.com/firstlight/firstlight/storage/recovery"
)

// Receiver keeps what machines say, on a site server. Its errors are what the
// machine is told; one with a method `HTTPStatus() int` says with which status.
type Receiver interface {
	// Configuration is the answer to a machine that asks for it. machine is what
	// it calls itself: its MAC address with dashes, or its name.
	Configuration(r *http.Request, machine string, who Asker) (Configuration, error)
	// Take keeps one report.
	Take(r *http.Request, machine string, kind Kind, body []byte) error
	// KeepRecovery returns when the document is stored for good.
	KeepRecovery(ctx context.Context, machine string, escrow recovery.Escrow, document []byte) error
}

// NewSystem is the kind by which the new system reports itself, once it runs: with
// nothing in it. Installed is the same with the installer's receipt, as package
// installer/receipt writes it.
const (
	NewSystem Kind = "receipt"
	Installed Kind = NewSystem
)

// most bounds the bodies of reports, in bytes.
func (k Kind) most() int64 {
	switch k {
	case Log:
		return 16 << 20
	case Inventory, Events:
		return 4 << 20
	default:
		return 1 << 20
	}
}

// Handler is the server's end of everything that a machine says to its site, for
// /v1/machines/{machine}/….
func Handler(receiver Receiver) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/machines/{machine}/config", func(w http.ResponseWriter, r *http.Request) {
		c, err := receiver.Configuration(r, r.PathValue("machine"), AskerOf(r))
		if err != nil {
			http.Error(w, err.Error(), statusOf(err))
			return
		}
		c.write(w)
	})
	mux.Handle("POST /v1/machines/{machine}/recovery", RecoveryHandler(receiver.KeepRecovery))
	for _, kind := range []Kind{Inventory, Events, State, Log, NewSystem} {
		mux.HandleFunc("POST /v1/machines/{machine}/"+string(kind), func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, kind.most()))
			if err != nil {
				status := http.StatusBadRequest
				if tooLong := new(http.MaxBytesError); errors.As(err, &tooLong) {
					status = http.StatusRequestEntityTooLarge
				}
				http.Error(w, err.Error(), status)
				return
			}
			if err := receiver.Take(r, r.PathValue("machine"), kind, body); err != nil {
				http.Error(w, err.Error(), statusOf(err))
				return
			}
			w.WriteHeader(http.StatusNoContent)
		})
	}
	return mux
}

func statusOf(err error) int {
	var own interface{ HTTPStatus() int }
	if errors.As(err, &own) {
		return own.HTTPStatus()
	}
	return http.StatusInternalServerError
}
