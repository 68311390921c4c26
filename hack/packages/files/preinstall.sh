#!/bin/sh
# The account that both servers run as. It owns nothing but their data.
set -e
if ! getent group firstlight >/dev/null; then
	groupadd --system firstlight
fi
if ! getent passwd firstlight >/dev/null; then
	useradd --system --gid firstlight --home-dir /var/lib/firstlight --no-create-home --shell /usr/sbin/nologin firstlight
fi
