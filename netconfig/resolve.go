package netconfig

// Resolve decides the network of the installed system.
func Resolve(spec Spec, nics []NIC) (Config, error) {
	return Config{}, nil
}
