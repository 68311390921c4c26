#!/bin/sh
# After identity, in the system: a configuration that Ignition reads at the
# first boot of an image that has it (ignition.platform.id=metal on the kernel
# command line: Install.KernelOptions).
set -eu
cat >/dev/null # the identity is not needed
mkdir -p /boot/ignition
cat >/boot/ignition/config.ign <<'END'
{ "ignition": { "version": "3.4.0" },
  "passwd": { "users": [ { "name": "core", "sshAuthorizedKeys": [
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleEx ops@example.com" ] } ] } }
END
chmod 0600 /boot/ignition/config.ign
