#!/bin/sh
# Runs after the files of a .deb or .rpm are in place.
set -e
# A start with bytecode takes a third of the time, and bytecode is only for the Python of this host.
python3 -ISm compileall -qq /usr/lib/nvidia-toolkit || true
# An agent that runs would go on with the old program, and start the new one for each sync.
case "$1:${2:-}" in
configure:?* | 2:*)
	if [ -d /run/systemd/system ]; then
		systemctl try-restart nvidia-toolkit.service || true
	fi
	;;
esac
# Nothing is enabled or started, and systemd is not reloaded: without the driver's /dev/char links a
# reload takes the GPUs from running containers.
