#!/bin/sh
# After identity, in the system: a seed for cloud-init's NoCloud data source.
# The machine's name comes from its identity; write your own users below.
set -eu
identity=$(cat)
field() { printf '%s\n' "$identity" | sed -n "s/^  \"$1\": \"\([^\"]*\)\".*/\1/p" | head -n 1; }
seed=/var/lib/cloud/seed/nocloud
mkdir -p "$seed"
cat >"$seed/meta-data" <<END
instance-id: $(field plan)
local-hostname: $(field hostname)
END
cat >"$seed/user-data" <<'END'
#cloud-config
users:
  - name: ops
    groups: [sudo]
    shell: /bin/bash
    ssh_authorized_keys:
      - ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExampleExampleExampleExampleExampleExampleEx ops@example.com
END
chmod 0600 "$seed/user-data"
echo "NoCloud seed for $(field hostname)"
