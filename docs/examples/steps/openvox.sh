#!/bin/sh
# After network, in the system: an OpenVox (or Puppet) agent asks its server for
# a certificate, with facts that a signing policy can check. The image has the
# agent; use OnFailure "continue", as the agent asks again at its first run.
set -eu
identity=$(cat)
field() { printf '%s\n' "$identity" | sed -n "s/^ *\"$1\": \"\([^\"]*\)\".*/\1/p" | head -n 1; }
conf=/etc/puppetlabs/puppet
mkdir -p "$conf"
cat >"$conf/csr_attributes.yaml" <<END
extension_requests:
  pp_instance_id: "$(field serial)"
  pp_image_name: "$(field image)"
END
chmod 0600 "$conf/csr_attributes.yaml"
puppet=/opt/puppetlabs/bin/puppet
if [ -x "$puppet" ]; then
	"$puppet" ssl submit_request --certname "$(field hostname)"
else
	echo "there is no $puppet; the request is made at the agent's first run"
fi
