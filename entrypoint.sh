#!/bin/sh
# Starts the installer. With WAIT_FOR_DRIVER set, waits for the file that the GPU Operator's driver
# validation leaves, and takes over the settings that it holds.
set -eu
ready=${DRIVER_READY_FILE:-/run/nvidia/validations/driver-ready}
if [ -n "${WAIT_FOR_DRIVER:-}" ]; then
	trap 'exit 143' TERM INT
	until [ -f "$ready" ]; do
		echo "waiting for $ready" >&2
		sleep 5 &
		wait $!
	done
	trap - TERM INT
	# What root acts on has to be root's: the program's own Python looks at that before it is evaluated.
	read -r launcher <"$(command -v nvidia-toolkit.py || command -v nvidia-toolkit)"
	launcher=${launcher#'#!'}
	settings=$("${launcher%% *}" -IBm toolkit.node.trust "$ready")
	set -a
	eval "$settings"
	set +a
fi
exec nvidia-toolkit "$@"
