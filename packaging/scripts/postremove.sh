#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi
# A purge takes the cache and the logs, never keys.
case ${1:-} in
purge)
	rm -rf /var/cache/skimfs /var/lib/skimfs /var/lib/skimfs-publishd
	;;
esac
