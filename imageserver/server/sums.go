package server

import (
	"hash/crc32"
	"sync"

	"github.com/firstlight/firstlight/imageserver/object"
)

// castagnoli is the polynomial that processors have an instruction for
// (RFC 3720, 12.1).
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// mostSums is how many sums are kept, in about 64 bytes each.
const mostSums = 500_000

// sums are checksums (CRC-32C) of the stored bytes of objects that this process
// has decoded and hashed. An object that is sent again is compared with its
// sum, at a hundredth of the cost: whatever flips since is found out; and what
// CRC-32C does not see, the client does, who hashes what it gets.
type sums struct {
	mutex sync.RWMutex
	of    map[object.Digest]sum
}

// sum belongs to stored bytes of one length and encoding.
type sum struct {
	stored   uint64
	crc      uint32
	encoding object.Encoding
}

// known is the sum of the bytes that info describes; ok is false where there is
// none.
func (s *sums) known(info object.Info) (crc uint32, ok bool) {
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	before, ok := s.of[info.Digest]
	return before.crc, ok && before.stored == info.StoredSize && before.encoding == info.Encoding
}

// right says that bytes with the sum crc are those that were verified.
func (s *sums) right(info object.Info, crc uint32) bool {
	s.mutex.RLock()
	defer s.mutex.RUnlock()
	before, ok := s.of[info.Digest]
	return ok && before == sum{info.StoredSize, crc, info.Encoding}
}

// learn keeps the sum of verified bytes.
func (s *sums) learn(info object.Info, crc uint32) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.of == nil {
		s.of = make(map[object.Digest]sum)
	}
	if _, there := s.of[info.Digest]; !there && len(s.of) >= mostSums {
		for one := range s.of { // any
			delete(s.of, one)
			break
		}
	}
	s.of[info.Digest] = sum{info.StoredSize, crc, info.Encoding}
}

func (s *sums) forget(digest object.Digest) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	delete(s.of, digest)
}
