// Package auth decides who may call which RPC, and how a connection shows who
// it is: TLS 1.3 configurations over one site CA, roles in certificates, one
// policy entry for every RPC, and a port that takes TLS and plain HTTP.
//
// It never makes certificates (tools/pki does), and it never lets anything
// through for want of an entry: what no policy names is refused.
package auth

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// Role is what a peer may do. Each role includes those before it.
type Role uint8

const (
	// Nobody is the zero Role. As the entry of a Policy it refuses everyone.
	Nobody Role = iota
	// Anyone is a peer without a role: with no client certificate, or with one
	// of the site CA that names none.
	Anyone
	// Viewer looks at things that are not public within the site.
	Viewer
	// Operator does the daily work: adds images, approves installations.
	Operator
	// Admin may do everything.
	Admin
)

// rolePrefix begins the URI subject alternative name that carries a role:
// urn:firstlight:role:operator. A URI is used because a subject's fields are
// free text that people fill in for other reasons.
const rolePrefix = "urn:firstlight:role:"

// String is the role's name: nobody, anyone, viewer, operator or admin.
func (r Role) String() string {
	names := [...]string{"nobody", "anyone", "viewer", "operator", "admin"}
	if int(r) >= len(names) {
		return fmt.Sprintf("role(%d)", uint8(r))
	}
	return names[r]
}

// ParseRole reads the name of a role that a certificate can carry: viewer,
// operator or admin.
func ParseRole(name string) (Role, error) {
	for _, role := range []Role{Viewer, Operator, Admin} {
		if role.String() == name {
			return role, nil
		}
	}
	return Nobody, fmt.Errorf("no role %q (viewer, operator, admin)", name)
}

// URI is the subject alternative name that gives a certificate the role.
func (r Role) URI() *url.URL {
	return &url.URL{Scheme: "urn", Opaque: strings.TrimPrefix(rolePrefix, "urn:") + r.String()}
}

// RoleOf is the role that a verified certificate carries. A certificate that
// carries none, an unknown one, or several has role Anyone.
func RoleOf(certificate *x509.Certificate) Role {
	var roles []Role
	for _, uri := range certificate.URIs {
		name, ok := strings.CutPrefix(uri.String(), rolePrefix)
		if !ok {
			continue
		}
		role, err := ParseRole(name)
		if err != nil {
			return Anyone
		}
		roles = append(roles, role)
	}
	if len(slices.Compact(roles)) != 1 {
		return Anyone
	}
	return roles[0]
}
