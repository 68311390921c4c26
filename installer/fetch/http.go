package fetch

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/firstlight/firstlight/netconfig"
)

// HTTPSource asks a web server, see HTTP.
type HTTPSource struct {
	// Client may be replaced before the first Get, for TLS of one's own.
	Client *http.Client
	// Patience is as that of a TFTPSource.
	Patience time.Duration

	base     *url.URL
	query    string
	patience patience
}

// HTTP is a source of files below a base URL, http or https. Each is asked for
// as <base>/<name>?mac=<aa:bb:…>&serial_number=<serial>, so that one program
// can answer for all machines. Status 404 means that there is no such file;
// 5xx and 429 are tried again for a minute; any other status is a failure.
func HTTP(base string, mac netconfig.MAC, serial string) (*HTTPSource, error) {
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fail(codeAddress, "%q is not the URL of a web server such as https://boot.example.com/machines", base)
	}
	query := u.Query() // the operator may have put a token there
	query.Set("mac", mac.String())
	query.Set("serial_number", serial)
	u.RawQuery, u.Fragment = "", ""
	return &HTTPSource{Client: http.DefaultClient, base: u, query: query.Encode(), patience: defaultPatience()}, nil
}

// String is the base URL, without a password or a query that may hold secrets.
func (s *HTTPSource) String() string { return s.base.Redacted() }

// Get implements Source.
func (s *HTTPSource) Get(ctx context.Context, name string) ([]byte, error) {
	u := s.base.JoinPath(name)
	what := u.Redacted()
	u.RawQuery = s.query
	return s.patience.orAtMost(s.Patience).try(ctx, what, func(ctx context.Context) ([]byte, error) {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err != nil {
			return nil, finalError{fail(codeAddress, "fetching %s: %w", what, err)}
		}
		response, err := s.Client.Do(request)
		if err != nil {
			return nil, redact(err)
		}
		defer response.Body.Close() // only read from
		switch code := response.StatusCode; {
		case code == http.StatusOK:
		case code == http.StatusNotFound:
			return nil, finalError{fmt.Errorf("%s: %w", what, ErrAbsent)}
		case code >= 500 || code == http.StatusTooManyRequests:
			return nil, fmt.Errorf("the server answers %s", response.Status)
		default:
			return nil, finalError{fail(codeRefused, "fetching %s: the server answers %s", what, response.Status)}
		}
		data, err := readAll(response.Body, what)
		if coded, ok := err.(*Error); ok {
			return nil, finalError{coded}
		}
		return data, err // cut off: tried again
	})
}

// redact drops the URL, and the query in it, from an error of net/http.
func redact(err error) error {
	if wrapped, ok := err.(*url.Error); ok {
		return wrapped.Err
	}
	return err
}
