package plan

import (
	"errors"

	"github.com/firstlight/firstlight/installer/config"
	"github.com/firstlight/firstlight/installer/inventory"
)

// New decides. Its error joins every refusal that was found, each with a code.
func New(c config.Config, machine inventory.Document, img Image) (Plan, error) {
	return Plan{}, errors.New("not decided yet")
}

// JSON is the plan as it is served and kept: the same plan gives the same bytes.
func (p Plan) JSON() ([]byte, error) { return nil, nil }

// Hash is "sha256:" and the hexadecimal SHA-256 of JSON.
func (p Plan) Hash() string { return "" }

// Text is the plan for people, in lines of at most 80 columns.
func (p Plan) Text() string { return "" }
