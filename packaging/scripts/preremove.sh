#!/bin/sh
set -e
# An upgrade ("upgrade" from dpkg, 1 from rpm) leaves mounts alone.
case ${1:-remove} in
remove | 0)
	if [ -d /run/systemd/system ]; then
		systemctl --no-reload disable --now skimfs-mountd.socket skimfs-mountd.service skimfs-publishd.service || true
	fi
	;;
esac
