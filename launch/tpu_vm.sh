#!/usr/bin/env bash
# A Cloud TPU machine of one or many hosts, from nothing to a finished run.
#
#   launch/tpu_vm.sh COMMAND [SETTINGS] [-- ARGUMENTS OF gmem_jax.main]
#
# Commands
#   run      make the machine if need be, train, and start again on a new one
#            whenever it was preempted, until the run is done; keep this shell
#   create   make the machine
#   setup    install what is committed here on all of its hosts
#   status   its state: READY, PREEMPTED, ...
#   logs     follow the first host's log
#   stop     let the run save, then end
#   delete   delete the machine
#
# Settings, each also an environment variable (--zone=Z or GMEM_ZONE=Z)
#   --project=P --zone=Z        needed
#   --name=gmem                 the machine's name
#   --type=v5litepod-16         gcloud's accelerator type
#   --image=...                 runtime version; by default that of the type
#   --spot                      may be preempted, costs less
#   --bucket=B                  mount a bucket at /mnt/gmem on every host
#   --poll=30                   seconds between looks
#   --dry-run                   print the commands, run none
#
# Example
#   launch/tpu_vm.sh run --project=my-project --zone=us-west4-a \
#     --type=v5litepod-256 --bucket=my-bucket --spot \
#     -- --config=configs/xl_in1k.py:tpu --workdir=/mnt/gmem/xl

# shellcheck source=common.sh
source "$(dirname "$0")/common.sh"
# shellcheck source=tpu.sh
source "$(dirname "$0")/tpu.sh"
parse "${tpu_settings[@]}" POLL -- "$@"
tpu_check

create() {
  run gcloud compute tpus tpu-vm create "$GMEM_NAME" "${where[@]}" \
    --accelerator-type="$GMEM_TYPE" --version="$GMEM_IMAGE" \
    ${GMEM_SPOT:+--spot}
}
remove() {
  run gcloud compute tpus tpu-vm delete "$GMEM_NAME" "${where[@]}" --quiet
}
status() {
  run gcloud compute tpus tpu-vm describe "$GMEM_NAME" "${where[@]}" \
    --format="value(state)"
}
state() { tpu_state READY "CREATING STARTING RESTARTING REPAIRING"; }

case $action in
create | setup | status | logs | stop) "$action" ;;
delete) remove ;;
run) keep_running ;;
*) die "unknown command $action; see --help" ;;
esac
