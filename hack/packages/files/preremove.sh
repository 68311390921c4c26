#!/bin/sh
# $1 is "remove" of dpkg, 0 of rpm; an upgrade leaves the servers running.
set -e
if [ -d /run/systemd/system ] && { [ "$1" = remove ] || [ "$1" = 0 ]; }; then
	systemctl disable --now firstlight.service firstlight-imageserver.service || true
fi
