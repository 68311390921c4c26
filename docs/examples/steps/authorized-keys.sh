#!/bin/sh
# After identity, in the system: who may log in as root.
set -eu
cat >/dev/null # the identity is not needed
mkdir -p /root/.ssh
chmod 0700 /root/.ssh
cat >/root/.ssh/authorized_keys <<'END'
ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleEx ops@example.com
END
chmod 0600 /root/.ssh/authorized_keys
