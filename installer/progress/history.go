package progress

import (
	"slices"
	"time"
)

// History is how fast things went, from the start on, in equal intervals.
type History struct {
	Interval float64  `json:"intervalSeconds"`
	Received []uint64 `json:"receivedBytes"` // by the network, in each interval
	Objects  []uint64 `json:"objectBytes"`   // of objects, unpacked, from all sources
	Memory   []uint64 `json:"memoryBytes"`   // in use at the end of each interval
}

// maxIntervals is what a History has at most; where there are more, two become
// one.
const maxIntervals = 120

// history gathers samples. The zero history is empty.
type history struct {
	interval          time.Duration
	next              time.Time
	last              [2]uint64 // received and objects, at the end of the last interval
	received, objects []uint64
	memory            []uint64
}

// sampleInterval is that of a History at its beginning.
const sampleInterval = time.Second

// Sample says how many bytes the network has received so far, and how much memory
// is in use. It may be called at any time, and counts once an interval.
func (m *Model) Sample(received, memory uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, now := &m.history, m.now()
	var objects uint64
	for _, s := range m.objects {
		objects += s.Bytes
	}
	if h.interval == 0 {
		h.interval, h.last, h.next = sampleInterval, [2]uint64{received, objects}, now.Add(sampleInterval)
		return
	}
	if now.Before(h.next) {
		return
	}
	h.next = now.Add(h.interval)
	h.received = append(h.received, received-min(received, h.last[0]))
	h.objects = append(h.objects, objects-min(objects, h.last[1]))
	h.memory = append(h.memory, memory)
	h.last = [2]uint64{received, objects}
	if len(h.received) >= maxIntervals {
		h.interval *= 2
		h.received = pairs(h.received, func(a, b uint64) uint64 { return a + b })
		h.objects = pairs(h.objects, func(a, b uint64) uint64 { return a + b })
		h.memory = pairs(h.memory, func(a, b uint64) uint64 { return max(a, b) })
	}
}

func pairs(all []uint64, join func(a, b uint64) uint64) []uint64 {
	half := make([]uint64, 0, maxIntervals)
	for i := 0; i+1 < len(all); i += 2 {
		half = append(half, join(all[i], all[i+1]))
	}
	return half
}

// clone is nil while there is nothing.
func (h *history) clone() *History {
	if len(h.received) == 0 {
		return nil
	}
	return &History{
		Interval: h.interval.Seconds(), Received: slices.Clone(h.received),
		Objects: slices.Clone(h.objects), Memory: slices.Clone(h.memory),
	}
}

// enoughToTell is the share of the whole that must be done before what remains
// is estimated.
const enoughToTell = 0.05

// remaining estimates how many seconds the installation will still take: what is
// left by weight, at the pace so far. Time in which somebody was waited for does
// not count. It is 0 while too little is known; m.mu is held.
func (m *Model) remaining(now time.Time) float64 {
	if m.failure != nil {
		return 0
	}
	var whole, reached float64
	var took time.Duration
	for _, name := range Phases() {
		ph := m.phases[name]
		whole += name.weight()
		var part float64
		switch {
		case ph.state == Done, ph.state == Skipped:
			part = 1
		case ph.state == Pending:
			continue
		case ph.total > 0:
			part = min(1, float64(ph.bytes)/float64(ph.total))
		}
		reached += part * name.weight()
		waited := ph.waited
		if ph.state == Waiting {
			waited += now.Sub(ph.waitingSince)
		}
		if spent := time.Duration(ph.seconds(now)*float64(time.Second)) - waited; name != Unpack && spent > 0 { // it runs beside Storage
			took += spent
		}
	}
	if reached < enoughToTell*whole || reached >= whole || took <= 0 {
		return 0
	}
	return took.Seconds() / reached * (whole - reached)
}
