package redfish

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// Machine says which of a BMC's systems is meant, where it has several: a chassis
// of blades has.
type Machine struct {
	Serial, UUID string
}

// link is a reference to another resource.
type link struct {
	ID string `json:"@odata.id"`
}

type collection struct {
	Members []link
}

// system is what is needed of a ComputerSystem.
type system struct {
	ID           string `json:"@odata.id"`
	Name         string
	SerialNumber string
	UUID         string
	PowerState   string
	Boot         struct {
		Enabled string   `json:"BootSourceOverrideEnabled"`
		Target  string   `json:"BootSourceOverrideTarget"`
		Targets []string `json:"BootSourceOverrideTarget@Redfish.AllowableValues"`
	}
	VirtualMedia *link
	Links        struct {
		ManagedBy []link
	}
	Actions struct {
		Reset struct {
			Target string   `json:"target"`
			Types  []string `json:"ResetType@Redfish.AllowableValues"`
		} `json:"#ComputerSystem.Reset"`
	}
}

// media is what is needed of a VirtualMedia.
type media struct {
	ID         string `json:"@odata.id"`
	Name       string
	MediaTypes []string
	Image      string
	Inserted   *bool
	Actions    struct {
		Insert struct {
			Target string `json:"target"`
		} `json:"#VirtualMedia.InsertMedia"`
		Eject struct {
			Target string `json:"target"`
		} `json:"#VirtualMedia.EjectMedia"`
	}
}

// inserted says whether something is in it: some controllers do not say so, and
// only name the image.
func (m media) inserted() bool {
	if m.Inserted != nil {
		return *m.Inserted
	}
	return m.Image != ""
}

// kind is which boot target the medium is.
func (m media) kind() string {
	for _, t := range m.MediaTypes {
		if t == "CD" || t == "DVD" {
			return "Cd"
		}
	}
	for _, t := range m.MediaTypes {
		if t == "USBStick" {
			return "Usb"
		}
	}
	return ""
}

// Boot starts the machine from the ISO at that URL, once: it is mounted as
// virtual media, and the machine is restarted, whatever runs on it. tell is told
// each step before it is taken. Errors have the codes of this package.
func Boot(ctx context.Context, bmc BMC, which Machine, iso string, times Times, tell func(string)) error {
	s, err := connect(ctx, bmc, times, tell)
	if err != nil {
		return err
	}
	defer s.close()
	sys, err := s.system(which)
	if err != nil {
		return err
	}
	drive, err := s.drive(sys)
	if err != nil {
		return err
	}
	reset, err := sys.reset()
	if err != nil {
		return err
	}
	if err := s.insert(drive, iso); err != nil {
		return err
	}
	if err := s.bootOnce(sys.ID, drive.kind()); err != nil {
		return err
	}
	return s.restart(sys, reset)
}

// Eject takes the virtual media out again.
func Eject(ctx context.Context, bmc BMC, which Machine, times Times, tell func(string)) error {
	s, err := connect(ctx, bmc, times, tell)
	if err != nil {
		return err
	}
	defer s.close()
	sys, err := s.system(which)
	if err != nil {
		return err
	}
	drive, err := s.drive(sys)
	if err != nil {
		return err
	}
	return s.eject(drive)
}

// system is the one that is meant; there is no guessing between several.
func (s *session) system(which Machine) (system, error) {
	var root struct{ Systems *link }
	if _, err := s.get("/redfish/v1/", &root); err != nil {
		return system{}, err
	}
	if root.Systems == nil {
		return system{}, fail(CodeUnable, nil, "the BMC %s manages no computer", s.host)
	}
	var all collection
	if _, err := s.get(root.Systems.ID, &all); err != nil {
		return system{}, err
	}
	var found []system
	var seen []string
	for _, member := range all.Members {
		var one system
		if _, err := s.get(member.ID, &one); err != nil {
			return system{}, err
		}
		one.ID = member.ID
		seen = append(seen, fmt.Sprintf("%s (serial %q)", one.ID, one.SerialNumber))
		same := which.Serial != "" && strings.EqualFold(strings.TrimSpace(one.SerialNumber), which.Serial) ||
			which.UUID != "" && strings.EqualFold(one.UUID, which.UUID)
		if same || len(all.Members) == 1 {
			found = append(found, one)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return system{}, fail(CodeWhich, nil, "the BMC %s manages %d computers, and none of them has the machine's serial number %q or UUID %q: %s", s.host, len(seen), which.Serial, which.UUID, strings.Join(seen, ", "))
	}
	return system{}, fail(CodeWhich, nil, "the BMC %s manages several computers with the machine's serial number or UUID: %s", s.host, strings.Join(seen, ", "))
}

// drive is the virtual drive to use: a CD, or else a USB stick, for the ISO is
// both. It is looked for below the system, where newer versions of the standard
// have it, and below its managers.
func (s *session) drive(sys system) (media, error) {
	var places []string
	if sys.VirtualMedia != nil {
		places = append(places, sys.VirtualMedia.ID)
	}
	for _, m := range sys.Links.ManagedBy {
		var manager struct{ VirtualMedia *link }
		if _, err := s.get(m.ID, &manager); err != nil {
			return media{}, err
		}
		if manager.VirtualMedia != nil {
			places = append(places, manager.VirtualMedia.ID)
		}
	}
	var best media
	var seen []string
	for _, place := range places {
		var all collection
		if _, err := s.get(place, &all); err != nil {
			return media{}, err
		}
		for _, member := range all.Members {
			var one media
			if _, err := s.get(member.ID, &one); err != nil {
				return media{}, err
			}
			one.ID = member.ID
			seen = append(seen, fmt.Sprintf("%s (%s)", one.ID, strings.Join(one.MediaTypes, ", ")))
			if better(one, best) {
				best = one
			}
		}
	}
	if best.ID == "" {
		return media{}, fail(CodeUnable, nil, "the BMC %s has no virtual CD or USB drive; it has: %s (it may want a licence for them)", s.host, orNone(seen))
	}
	return best, nil
}

// better prefers a CD, then one that is empty, then the first.
func better(a, b media) bool {
	switch {
	case a.kind() == "":
		return false
	case b.ID == "" || b.kind() == "":
		return true
	case a.kind() != b.kind():
		return a.kind() == "Cd"
	}
	return b.inserted() && !a.inserted()
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// insert mounts the ISO, after taking out what is there.
func (s *session) insert(drive media, iso string) error {
	if drive.inserted() {
		if err := s.eject(drive); err != nil {
			return err
		}
	}
	s.tell("mounting " + iso + " as virtual media")
	doing := "mounting " + iso
	if target := drive.Actions.Insert.Target; target != "" {
		// The least that the standard asks for; some want it all.
		err := s.post(target, map[string]any{"Image": iso})
		if statusOf(err) == http.StatusBadRequest {
			err = s.post(target, map[string]any{"Image": iso, "Inserted": true, "WriteProtected": true, "TransferMethod": "Stream", "TransferProtocolType": protocol(iso)})
		}
		if err != nil {
			return s.explain(err, doing)
		}
	} else {
		// Before the action was in the standard (VirtualMedia 1.2).
		var now media
		etag, err := s.get(drive.ID, &now)
		if err != nil {
			return err
		}
		err = s.patch(drive.ID, etag, map[string]any{"Image": iso, "Inserted": true})
		if statusOf(err) == http.StatusBadRequest {
			err = s.patch(drive.ID, etag, map[string]any{"Image": iso}) // Inserted is read-only there
		}
		if err != nil {
			return s.explain(err, doing)
		}
	}
	return s.until("the ISO is mounted", func() (bool, error) {
		var now media
		_, err := s.get(drive.ID, &now)
		return now.inserted(), err
	})
}

func protocol(iso string) string {
	if strings.HasPrefix(iso, "https:") {
		return "HTTPS"
	}
	return "HTTP"
}

func (s *session) eject(drive media) error {
	if !drive.inserted() {
		return nil
	}
	s.tell("taking out " + drive.Image)
	var err error
	if target := drive.Actions.Eject.Target; target != "" {
		err = s.post(target, map[string]any{})
	} else {
		var now media
		etag, getErr := s.get(drive.ID, &now)
		if getErr != nil {
			return getErr
		}
		err = s.patch(drive.ID, etag, map[string]any{"Image": nil, "Inserted": false})
		if statusOf(err) == http.StatusBadRequest {
			err = s.patch(drive.ID, etag, map[string]any{"Image": nil})
		}
	}
	if err != nil {
		return s.explain(err, "taking out the virtual media")
	}
	return s.until("the virtual drive is empty", func() (bool, error) {
		var now media
		_, err := s.get(drive.ID, &now)
		return !now.inserted(), err
	})
}

// bootOnce has the next start, and only that one, be from the virtual drive.
func (s *session) bootOnce(path, kind string) error {
	var sys system
	etag, err := s.get(path, &sys)
	if err != nil {
		return err
	}
	target := kind
	if allowed := sys.Boot.Targets; len(allowed) > 0 && !slices.Contains(allowed, target) {
		others := map[string][]string{"Cd": {"UsbCd", "RemoteDrive", "Usb"}, "Usb": {"UsbHdd", "RemoteDrive", "Cd"}}[kind]
		i := slices.IndexFunc(others, func(o string) bool { return slices.Contains(allowed, o) })
		if i < 0 {
			return fail(CodeUnable, nil, "the BMC %s cannot boot from its virtual drive once: it knows %s", s.host, strings.Join(allowed, ", "))
		}
		target = others[i]
	}
	s.tell("the next start is from " + target + ", once")
	if err := s.patch(path, etag, map[string]any{"Boot": map[string]any{"BootSourceOverrideEnabled": "Once", "BootSourceOverrideTarget": target}}); err != nil {
		return s.explain(err, "setting the next start")
	}
	return s.until("the next start is from "+target, func() (bool, error) {
		var now system
		_, err := s.get(path, &now)
		return now.Boot.Enabled == "Once" && now.Boot.Target == target, err
	})
}

// reset is how the machine is restarted: the steps, in their order. Where the
// controller does not say what it can, it is tried.
func (sys system) reset() ([]string, error) {
	if sys.Actions.Reset.Target == "" {
		return nil, fail(CodeUnable, nil, "the BMC cannot restart %s", sys.ID)
	}
	can := func(name string) bool {
		return len(sys.Actions.Reset.Types) == 0 || slices.Contains(sys.Actions.Reset.Types, name)
	}
	if sys.PowerState == "Off" {
		for _, on := range []string{"On", "ForceOn"} {
			if can(on) {
				return []string{on}, nil
			}
		}
	}
	for _, one := range []string{"ForceRestart", "PowerCycle"} {
		if can(one) {
			return []string{one}, nil
		}
	}
	if can("ForceOff") && can("On") {
		return []string{"ForceOff", "On"}, nil
	}
	return nil, fail(CodeUnable, nil, "the BMC cannot restart %s: it knows %s", sys.ID, orNone(sys.Actions.Reset.Types))
}

// restart does the steps, and waits until the machine is on.
func (s *session) restart(sys system, steps []string) error {
	for _, step := range steps {
		s.tell("power: " + step)
		if err := s.post(sys.Actions.Reset.Target, map[string]any{"ResetType": step}); err != nil {
			return s.explain(err, "restarting the machine ("+step+")")
		}
		if step != "ForceOff" {
			continue
		}
		if err := s.untilPower(sys.ID, "Off"); err != nil {
			return err
		}
	}
	return s.untilPower(sys.ID, "On")
}

func (s *session) untilPower(path, state string) error {
	return s.until("the machine is "+strings.ToLower(state), func() (bool, error) {
		var now system
		_, err := s.get(path, &now)
		return now.PowerState == state, err
	})
}
