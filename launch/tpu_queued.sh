#!/usr/bin/env bash
# A Cloud TPU machine through the queue: asks for it, waits until there is one.
#
#   launch/tpu_queued.sh COMMAND [SETTINGS] [-- ARGUMENTS OF gmem_jax.main]
#
# Commands
#   run      ask for a machine if need be, wait for it, train, and ask again
#            whenever it was preempted, until the run is done; keep this shell
#   create   ask for the machine
#   setup    install what is committed here on all of its hosts
#   status   state of the request: WAITING_FOR_RESOURCES, ACTIVE, SUSPENDED, ...
#   logs     follow the first host's log
#   stop     let the run save, then end
#   delete   delete the request, and the machine with it
#
# Settings, each also an environment variable (--zone=Z or GMEM_ZONE=Z)
#   --project=P --zone=Z        needed
#   --name=gmem                 name of the machine and of the request
#   --type=v5litepod-16         gcloud's accelerator type
#   --image=...                 runtime version; by default that of the type
#   --spot                      may be preempted, costs less
#   --valid-for=24h             give the request up after so long
#   --bucket=B                  mount a bucket at /mnt/gmem on every host
#   --poll=30                   seconds between looks
#   --dry-run                   print the commands, run none
#
# Example
#   launch/tpu_queued.sh run --project=my-project --zone=us-east5-b --spot \
#     --type=v6e-256 --bucket=my-bucket -- --config=configs/xl_in1k.py:tpu \
#     --workdir=/mnt/gmem/xl

# shellcheck source=common.sh
source "$(dirname "$0")/common.sh"
# shellcheck source=tpu.sh
source "$(dirname "$0")/tpu.sh"
: "${GMEM_VALID_FOR:=}"
parse "${tpu_settings[@]}" POLL VALID_FOR -- "$@"
tpu_check

create() {
  run gcloud compute tpus queued-resources create "$GMEM_NAME" "${where[@]}" \
    --node-id="$GMEM_NAME" --accelerator-type="$GMEM_TYPE" \
    --runtime-version="$GMEM_IMAGE" ${GMEM_SPOT:+--spot} \
    ${GMEM_VALID_FOR:+--valid-until-duration="$GMEM_VALID_FOR"}
}
remove() {
  run gcloud compute tpus queued-resources delete "$GMEM_NAME" "${where[@]}" \
    --force --quiet
}
status() {
  run gcloud compute tpus queued-resources describe "$GMEM_NAME" \
    "${where[@]}" --format="value(state.state)"
}
state() {
  tpu_state ACTIVE "ACCEPTED CREATING PROVISIONING WAITING_FOR_RESOURCES \
SUSPENDING DELETING"
}

case $action in
create | setup | status | logs | stop) "$action" ;;
delete) remove ;;
run) keep_running ;;
*) die "unknown command $action; see --help" ;;
esac
