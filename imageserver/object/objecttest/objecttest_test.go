package objecttest

import (
	"testing"

	"github.com/firstlight/firstlight/imageserver/object"
)

func TestMemory(t *testing.T) {
	TestStore(t, func(*testing.T) object.Store { return NewMemory() })
}
