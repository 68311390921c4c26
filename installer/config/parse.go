package config

// Parse reads the files, given by name. A file that is missing in files is one
// that the site answered it does not have. The error is a [Mistakes].
func Parse(files map[string][]byte) (Config, error) {
	return Config{}, nil
}
