#!/bin/sh
# Starts the installer. With WAIT_FOR_DRIVER set, waits for the file that the GPU Operator's driver
# validation leaves, and takes over the settings that it holds.
set -eu
ready=${DRIVER_READY_FILE:-/run/nvidia/validations/driver-ready}
if [ -n "${WAIT_FOR_DRIVER:-}" ]; then
	until [ -f "$ready" ]; do echo "waiting for $ready" >&2; sleep 5; done
	set -a; . "$ready"; set +a
fi
exec nvidia-toolkit "$@"
