package redfish

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// emulator is a BMC as vendors make them: the resources of DSP0268 with the
// differences that there are between real ones.
type emulator struct {
	// what it is like
	belowManager bool     // its virtual media, where older versions of the standard have them
	insertBy     string   // "action", "whole action", "patch", "bare patch"
	noSessions   bool     // HTTP basic authentication only
	wantsETag    bool     // a PATCH without If-Match is refused
	types        []string // of its virtual media
	targets      []string // that can be booted from
	resets       []string // that it can do
	systems      int
	off          bool
	deaf         string // "media", "boot", "power": says yes and does nothing
	refuses      string // the same: answers with an error
	forbidden    bool

	mu       sync.Mutex
	image    string
	inserted bool
	pending  int // looks until what was asked for is so
	boot     [2]string
	power    string
	etag     int
	sessions map[string]bool
	opened   int
	did      []string
}

const password = "calvin"

func (e *emulator) start(t *testing.T) *httptest.Server {
	t.Helper()
	e.sessions, e.power, e.boot = map[string]bool{}, "On", [2]string{"Disabled", "None"}
	if e.off {
		e.power = "Off"
	}
	if e.types == nil {
		e.types = []string{"CD", "DVD"}
	}
	e.systems = max(e.systems, 1)
	server := httptest.NewTLSServer(e)
	t.Cleanup(server.Close)
	return server
}

func (e *emulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var body map[string]any
	if r.Method == http.MethodPost || r.Method == http.MethodPatch {
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			refuse(w, http.StatusBadRequest, "MalformedJSON")
			return
		}
	}
	path := strings.TrimRight(r.URL.Path, "/")
	switch {
	case path == "/redfish/v1" && r.Method == http.MethodGet:
		root := map[string]any{"@odata.id": "/redfish/v1/", "RedfishVersion": "1.6.0", "Systems": ref("/redfish/v1/Systems"), "Managers": ref("/redfish/v1/Managers"),
			"SessionService": ref("/redfish/v1/SessionService"), "Links": map[string]any{"Sessions": ref("/redfish/v1/SessionService/Sessions")}}
		answer(w, root)
		return
	case path == "/redfish/v1/SessionService/Sessions" && r.Method == http.MethodPost:
		e.login(w, body)
		return
	}
	user, given, basic := r.BasicAuth()
	token := r.Header.Get("X-Auth-Token")
	if !e.sessions[token] && (!basic || user != "root" || given != password) {
		refuse(w, http.StatusUnauthorized, "no valid session")
		return
	}
	if e.forbidden && r.Method != http.MethodDelete {
		refuse(w, http.StatusForbidden, "The account has not the privilege")
		return
	}
	if r.Method == http.MethodDelete {
		delete(e.sessions, token)
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if e.wantsETag && r.Method == http.MethodPatch {
		if match := r.Header.Get("If-Match"); match != fmt.Sprintf(`"%d"`, e.etag) && match != "*" {
			refuse(w, http.StatusPreconditionFailed, "the ETag does not match")
			return
		}
	}
	e.serve(w, r, path, body)
}

func (e *emulator) login(w http.ResponseWriter, body map[string]any) {
	switch {
	case e.noSessions:
		refuse(w, http.StatusMethodNotAllowed, "no sessions")
	case body["UserName"] != "root" || body["Password"] != password:
		refuse(w, http.StatusUnauthorized, "The user name or password is wrong")
	default:
		e.opened++
		token := fmt.Sprint("token", e.opened)
		e.sessions[token] = true
		w.Header().Set("X-Auth-Token", token)
		w.Header().Set("Location", "/redfish/v1/SessionService/Sessions/"+token)
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write([]byte("{}")) // the client is there
	}
}

const (
	systemPath  = "/redfish/v1/Systems/1"
	managerPath = "/redfish/v1/Managers/bmc"
)

func (e *emulator) serve(w http.ResponseWriter, r *http.Request, path string, body map[string]any) {
	mediaPath := systemPath + "/VirtualMedia"
	if e.belowManager {
		mediaPath = managerPath + "/VirtualMedia"
	}
	switch r.Method + " " + path {
	case "GET /redfish/v1/Systems":
		var members []any
		for n := range e.systems {
			members = append(members, ref(fmt.Sprintf("/redfish/v1/Systems/%d", n+1)))
		}
		answer(w, map[string]any{"Members": members})
	case "GET /redfish/v1/Systems/2":
		answer(w, map[string]any{"@odata.id": path, "SerialNumber": "OTHER", "PowerState": "On"})
	case "GET " + systemPath:
		e.settle()
		boot := map[string]any{"BootSourceOverrideEnabled": e.boot[0], "BootSourceOverrideTarget": e.boot[1]}
		if e.targets != nil {
			boot["BootSourceOverrideTarget@Redfish.AllowableValues"] = e.targets
		}
		reset := map[string]any{"target": systemPath + "/Actions/ComputerSystem.Reset"}
		if e.resets != nil {
			reset["ResetType@Redfish.AllowableValues"] = e.resets
		}
		system := map[string]any{"@odata.id": path, "SerialNumber": "SN 1 ", "UUID": "AAAA", "PowerState": e.power, "Boot": boot,
			"Links": map[string]any{"ManagedBy": []any{ref(managerPath)}}, "Actions": map[string]any{"#ComputerSystem.Reset": reset}}
		if !e.belowManager {
			system["VirtualMedia"] = ref(mediaPath)
		}
		w.Header().Set("ETag", fmt.Sprintf(`"%d"`, e.etag))
		answer(w, system)
	case "GET " + managerPath:
		manager := map[string]any{"@odata.id": path}
		if e.belowManager {
			manager["VirtualMedia"] = ref(mediaPath)
		}
		answer(w, manager)
	case "GET " + mediaPath:
		answer(w, map[string]any{"Members": []any{ref(mediaPath + "/Floppy"), ref(mediaPath + "/1")}})
	case "GET " + mediaPath + "/Floppy":
		answer(w, map[string]any{"@odata.id": path, "MediaTypes": []string{"Floppy"}, "Inserted": false, "Image": nil})
	case "GET " + mediaPath + "/1":
		e.settle()
		medium := map[string]any{"@odata.id": path, "@odata.etag": fmt.Sprintf(`"%d"`, e.etag), "MediaTypes": e.types, "Image": e.image, "Inserted": e.inserted}
		if strings.HasSuffix(e.insertBy, "action") {
			medium["Actions"] = map[string]any{
				"#VirtualMedia.InsertMedia": map[string]any{"target": mediaPath + "/1/Actions/VirtualMedia.InsertMedia"},
				"#VirtualMedia.EjectMedia":  map[string]any{"target": mediaPath + "/1/Actions/VirtualMedia.EjectMedia"},
			}
		}
		answer(w, medium)
	case "POST " + mediaPath + "/1/Actions/VirtualMedia.InsertMedia":
		if _, whole := body["TransferMethod"]; e.insertBy == "whole action" && !whole {
			refuse(w, http.StatusBadRequest, "The parameter TransferMethod is missing")
			return
		}
		e.insert(w, body["Image"])
	case "POST " + mediaPath + "/1/Actions/VirtualMedia.EjectMedia":
		e.insert(w, nil)
	case "PATCH " + mediaPath + "/1":
		if _, with := body["Inserted"]; strings.HasSuffix(e.insertBy, "action") || e.insertBy == "bare patch" && with {
			refuse(w, http.StatusBadRequest, "The property Inserted is read-only")
			return
		}
		e.insert(w, body["Image"])
	case "PATCH " + systemPath:
		e.setBoot(w, body["Boot"].(map[string]any))
	case "POST " + systemPath + "/Actions/ComputerSystem.Reset":
		e.reset(w, body["ResetType"].(string))
	default:
		refuse(w, http.StatusNotFound, "there is no "+path)
	}
}

// settle makes what was asked for so, a few looks later.
func (e *emulator) settle() {
	if e.pending--; e.pending == 0 {
		e.inserted = e.image != ""
	}
}

func (e *emulator) insert(w http.ResponseWriter, image any) {
	text, _ := image.(string)
	switch {
	case e.refuses == "media":
		refuse(w, http.StatusInternalServerError, "The image cannot be reached. Check the URL.")
		return
	case text != "" && e.inserted:
		refuse(w, http.StatusConflict, "something is inserted already")
		return
	case e.deaf != "media":
		e.image, e.pending = text, 3
		e.did = append(e.did, strings.TrimSpace("insert "+text))
	}
	e.etag++
	w.WriteHeader(http.StatusAccepted)
}

func (e *emulator) setBoot(w http.ResponseWriter, boot map[string]any) {
	enabled, target := boot["BootSourceOverrideEnabled"].(string), boot["BootSourceOverrideTarget"].(string)
	known := e.targets == nil
	for _, t := range e.targets {
		known = known || t == target
	}
	if !known {
		refuse(w, http.StatusBadRequest, "there is no target "+target)
		return
	}
	if e.deaf != "boot" {
		e.boot = [2]string{enabled, target}
	}
	e.did = append(e.did, "boot "+enabled+" "+target)
	e.etag++
	w.WriteHeader(http.StatusNoContent)
}

func (e *emulator) reset(w http.ResponseWriter, kind string) {
	known := e.resets == nil
	for _, r := range e.resets {
		known = known || r == kind
	}
	if !known || kind == "On" && e.power == "On" {
		refuse(w, http.StatusBadRequest, "cannot do "+kind)
		return
	}
	e.did = append(e.did, kind)
	switch {
	case e.deaf == "power":
	case kind == "ForceOff":
		e.power = "Off"
	default:
		e.power = "On"
		if e.boot[0] == "Once" {
			// The firmware uses the choice up.
			e.did = append(e.did, "started from "+e.boot[1]+" "+e.image)
			e.boot = [2]string{"Disabled", "None"}
		}
	}
	w.WriteHeader(http.StatusNoContent)
}

func ref(path string) map[string]any { return map[string]any{"@odata.id": path} }

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client is there
}

func refuse(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// As every controller wraps its reasons (DSP0266, 8.6).
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": "Base.1.0.GeneralError", "message": "see ExtendedInfo",
		"@Message.ExtendedInfo": []any{map[string]any{"MessageId": "Base.1.0.X", "Message": text}}}})
}
