#!/usr/bin/env bash
# What the launchers run on a host. Not for you, but it can be run by hand:
#   host.sh setup EXTRA [BUCKET]  install the package with an extra, e.g. tpu,
#                                 and mount a bucket at /mnt/gmem
#   host.sh run ARGUMENTS         python -m gmem_jax.main, also to gmem.log
#   host.sh stop                  let it save, then end
#   host.sh logs                  follow gmem.log

if [[ $1 == -h || $1 == --help ]]; then
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && exit
fi
set -eo pipefail
cd "$(dirname "$0")/.."
venv=$HOME/gmem_venv stopped=$HOME/gmem_stopped log=$HOME/gmem.log
bucket=$HOME/gmem_bucket mount=/mnt/gmem

running() { pgrep -f '[g]mem_jax\.main' >/dev/null; }
stop() {
  pkill -TERM -f '[g]mem_jax\.main' || true
  for _ in $(seq "${GMEM_GRACE:-300}"); do
    running || return 0
    sleep 1
  done
  pkill -KILL -f '[g]mem_jax\.main' || true
}

install_gcsfuse() {
  local keys=/usr/share/keyrings/cloud.google.asc
  local packages=https://packages.cloud.google.com/apt
  curl -fsSL "$packages/doc/apt-key.gpg" | sudo tee "$keys" >/dev/null
  echo "deb [signed-by=$keys] $packages gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get update -qq && sudo apt-get install -qq -y gcsfuse
}
mount_bucket() { # Hosts see at once what others write: nothing is cached.
  [[ -s $bucket ]] || return 0
  # Where the configs look for them.
  ln -sfn "$mount/data" data && ln -sfn "$mount/weights" weights
  mountpoint -q "$mount" && return
  sudo mkdir -p "$mount" && sudo chown "$(id -u)" "$mount"
  gcsfuse --implicit-dirs --rename-dir-limit=200000 \
    --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
    "$(cat "$bucket")" "$mount"
}

case $1 in
setup)
  printf %s "$3" >"$bucket"
  [[ -z $3 ]] || command -v gcsfuse >/dev/null || install_gcsfuse
  mount_bucket
  command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
  PATH=$HOME/.local/bin:$PATH
  uv venv --quiet --allow-existing --python 3.12 "$venv"
  uv pip install --quiet --python "$venv/bin/python" -e ".[$2]"
  ;;
run)
  shift
  stop # One that outlived its connection.
  rm -f "$stopped"
  mount_bucket
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
