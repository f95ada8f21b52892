#!/usr/bin/env bash
# What the launchers run on a host. Not for you, but it can be run by hand:
#   host.sh setup EXTRA   install the package with an extra, e.g. tpu
#   host.sh run ARGUMENTS python -m gmem_jax.main, to the terminal and gmem.log
#   host.sh stop          let it save, then end
#   host.sh logs          follow gmem.log
set -eo pipefail
cd "$(dirname "$0")/.."
venv=$HOME/gmem_venv stopped=$HOME/gmem_stopped log=$HOME/gmem.log

running() { pgrep -f '[g]mem_jax\.main' >/dev/null; }
stop() {
  pkill -TERM -f '[g]mem_jax\.main' || true
  for _ in $(seq "${GMEM_GRACE:-300}"); do
    running || return 0
    sleep 1
  done
  pkill -KILL -f '[g]mem_jax\.main' || true
}

case $1 in
setup)
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  PATH=$HOME/.local/bin:$PATH
  uv venv --quiet --allow-existing --python 3.12 "$venv"
  uv pip install --quiet --python "$venv/bin/python" -e ".[$2]"
  ;;
run)
  shift
  stop # One that outlived its connection.
  rm -f "$stopped"
  status=0
  # tee -p: the job goes on if whoever watches goes away.
  "$venv/bin/python" -m gmem_jax.main "$@" --stopped_status=75 2>&1 |
    tee -p -a "$log" || status=${PIPESTATUS[0]}
  if [[ $status == 75 && -e $stopped ]]; then status=0; fi
  exit "$status"
  ;;
stop) touch "$stopped" && stop ;;
logs) tail -n 100 -F "$log" ;;
*) echo "host.sh: setup, run, stop or logs, not '$1'" >&2 && exit 2 ;;
esac
