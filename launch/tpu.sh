# What launchers for Cloud TPU machines share: sourced, never run.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154  # what launchers read, and common.sh sets
# shellcheck source=keep_running.sh
source "$(dirname "$0")/keep_running.sh"
: "${GMEM_NAME:=gmem}" "${GMEM_TYPE:=v5litepod-16}" "${GMEM_ZONE:=}"
: "${GMEM_PROJECT:=}" "${GMEM_IMAGE:=}" "${GMEM_SPOT:=}" "${GMEM_BUCKET:=}"
tpu_settings=(NAME TYPE ZONE PROJECT IMAGE SPOT BUCKET)

tpu_check() {
  program gcloud https://cloud.google.com/sdk/docs/install
  GMEM_BUCKET=${GMEM_BUCKET#gs://}
  need GMEM_PROJECT GMEM_ZONE GMEM_NAME GMEM_TYPE
  where=(--zone="$GMEM_ZONE" --project="$GMEM_PROJECT")
  [[ -n $GMEM_IMAGE ]] || case $GMEM_TYPE in
  v5lite*) GMEM_IMAGE=v2-alpha-tpuv5-lite ;;
  v5p*) GMEM_IMAGE=v2-alpha-tpuv5 ;;
  v6e*) GMEM_IMAGE=v2-alpha-tpuv6e ;;
  *) GMEM_IMAGE=tpu-ubuntu2204-base ;;
  esac
}
on_hosts() { # WORKERS COMMAND
  run gcloud compute tpus tpu-vm ssh "$GMEM_NAME" "${where[@]}" \
    --worker="$1" --command="$2"
}
# Sends what is committed here to every host and installs it there.
setup() {
  local archive=${TMPDIR:-/tmp}/gmem_jax-$GMEM_NAME.tar.gz
  run git -C "$root" archive --format=tar.gz --output="$archive" HEAD &&
    run gcloud compute tpus tpu-vm scp "$archive" \
      "$GMEM_NAME:gmem_jax.tar.gz" "${where[@]}" --worker=all &&
    on_hosts all "rm -rf gmem_jax && mkdir gmem_jax && tar -xzf gmem_jax.tar.gz \
-C gmem_jax && bash gmem_jax/launch/host.sh setup tpu${GMEM_BUCKET:+ $GMEM_BUCKET}"
}
start() { on_hosts all "bash gmem_jax/launch/host.sh run $(quoted "${args[@]}")"; }
logs() { on_hosts 0 "bash gmem_jax/launch/host.sh logs"; }
stop() { on_hosts all "bash gmem_jax/launch/host.sh stop"; }
# READY WAITING...: what gcloud says of the machine, in keep_running's words.
tpu_state() {
  local found
  if found=$(status 2>&1); then
    case " $2 " in *" ${found:-none} "*) echo WAIT && return ;; esac
    case $found in "$1") echo READY ;; "") echo MISSING ;; *) echo GONE ;; esac
  elif [[ $found == *NOT_FOUND* || $found == *"not found"* ]]; then
    echo MISSING
  else
    die "$found"
  fi
}
