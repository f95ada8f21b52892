#!/usr/bin/env bash
# Several processes on this machine: to try out what a pod does.
#
#   launch/local.sh run [SETTINGS] -- ARGUMENTS OF gmem_jax.main
#
# Starts them, passes SIGTERM and Ctrl-C on to all, and starts all again if one
# was killed, until the run is done. Their output is theirs.
#
# Settings, each also an environment variable (--processes=4 or
# GMEM_PROCESSES=4)
#   --processes=2      processes
#   --port=8476        a port that is free
#   --python=python    of an environment with gmem_jax
#   --restarts=10      how often to start again
#   --dry-run          print the commands, run none
#
# Example, on the CPU
#   JAX_PLATFORMS=cpu launch/local.sh run -- --config=configs/digits.py \
#     --workdir=runs/two

# shellcheck source=common.sh
source "$(dirname "$0")/common.sh"
: "${GMEM_PROCESSES:=2}" "${GMEM_PORT:=8476}" "${GMEM_PYTHON:=python}"
: "${GMEM_RESTARTS:=10}"
parse PROCESSES PORT PYTHON RESTARTS -- "$@"
[[ $action == run ]] || die "unknown command $action; see --help"
program "$GMEM_PYTHON" "give --python=..."
cd "$root"
export GMEM_SECRET=${GMEM_SECRET:-$(secret)}

pids=() stopping=''
pass_on() { stopping=1 && kill -TERM "${pids[@]}" 2>/dev/null || true; }
trap pass_on TERM INT

once() { # The first status that is not 0.
  local i pid found status=0
  pids=()
  for ((i = 0; i < GMEM_PROCESSES; i++)); do
    show "$GMEM_PYTHON" -m gmem_jax.main "${args[@]}" --stopped_status=75 \
      --coordinator="127.0.0.1:$GMEM_PORT" --processes="$GMEM_PROCESSES" \
      --process="$i"
    [[ -z $dry ]] || continue
    "$GMEM_PYTHON" -m gmem_jax.main "${args[@]}" --stopped_status=75 \
      --coordinator="127.0.0.1:$GMEM_PORT" --processes="$GMEM_PROCESSES" \
      --process="$i" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    found=0 && wait "$pid" || found=$?
    # A signal ends the wait, not the process.
    while kill -0 "$pid" 2>/dev/null; do found=0 && wait "$pid" || found=$?; done
    ((status)) || status=$found
  done
  return "$status"
}

for ((attempt = 0; ; attempt++)); do
  status=0 && once || status=$?
  if [[ -n $stopping && $status == 75 ]]; then exit 0; fi
  case $status in 0 | 2) exit "$status" ;; esac
  [[ -z $stopping ]] && ((attempt < GMEM_RESTARTS)) || exit "$status"
  echo "the job ended with status $status; starting it again" >&2
done
