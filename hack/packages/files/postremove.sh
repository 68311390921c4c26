#!/bin/sh
# The data in /var/lib stays: it is the site.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
