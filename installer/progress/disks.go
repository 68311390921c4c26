package progress

import "time"

// disk is what is being done to one disk or one of its volumes.
type disk struct {
	disk, volume string
	step         string
	state        State
	began, ended time.Time
}

// DiskStep says what is now being done to a disk or, where volume is not empty,
// to one of its partitions. State Done or Failed says that nothing more will be.
func (m *Model) DiskStep(name, volume, step string, state State) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	key := name + "\x00" + volume
	d := m.disks[key]
	if d == nil {
		d = &disk{disk: clean(name), volume: clean(volume)}
		m.disks[key] = d
		m.diskOrder = append(m.diskOrder, key)
	}
	if d.step != step || d.began.IsZero() {
		d.began = now
	}
	d.step, d.state, d.ended = clean(step), state, now
}

// DisksDone ends every step that is under way: well, or with a failure that is
// told elsewhere.
func (m *Model) DisksDone(ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	for _, d := range m.disks {
		if d.state != Running {
			continue
		}
		d.state, d.ended = Done, now
		if !ok {
			d.state = Failed
		}
	}
}

// diskStatus has each disk before its volumes, in the order in which work on
// them began; m.mu is held.
func (m *Model) diskStatus(now time.Time) []DiskStatus {
	all := []DiskStatus{}
	add := func(d *disk) {
		until := now
		if d.state != Running {
			until = d.ended
		}
		all = append(all, DiskStatus{Disk: d.disk, Volume: d.volume, Step: d.step, State: d.state, Seconds: until.Sub(d.began).Seconds()})
	}
	done := map[string]bool{}
	for _, key := range m.diskOrder {
		name := m.disks[key].disk
		if done[name] {
			continue
		}
		done[name] = true
		for _, other := range m.diskOrder {
			if d := m.disks[other]; d.disk == name {
				add(d)
			}
		}
	}
	return all
}
