package lab

import "context"

// Issue makes a server's certificate of the site's CA, NAME.pem and
// NAME-key.pem among its secrets.
func (s *Site) Issue(ctx context.Context, name string, addresses ...string) error {
	args := []string{"keys", "issue", name, "--server", "--site", s.Dir}
	for _, a := range addresses {
		args = append(args, "--address", a)
	}
	return s.firstlight(ctx, args...)
}
