#!/bin/sh
# Runs before the files of a .deb or .rpm are removed. What the program set up stays: the runtime's
# configuration names files below /usr/local/nvidia, which `nvidia-toolkit revert` removes.
set -e
case "$1" in
remove | 0)
	if [ -d /run/systemd/system ]; then
		systemctl stop nvidia-toolkit.service || true
		systemctl --no-reload disable nvidia-toolkit.service || true
	fi
	;;
upgrade | 1) ;;
esac
if [ "$1" != 1 ] && [ -d /usr/lib/nvidia-toolkit ]; then
	# rpm writes the bytecode of the new version before this runs for the old one.
	find /usr/lib/nvidia-toolkit -name __pycache__ -type d -prune -exec rm -rf {} +
fi
