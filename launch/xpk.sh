#!/usr/bin/env bash
# TPU slices under GKE, through xpk, which is deprecated: launch/gcluster.sh does
# the same for clusters of today.
#
#   launch/xpk.sh COMMAND [SETTINGS] [-- ARGUMENTS OF gmem_jax.main]
#
# Commands
#   create   make the cluster, with a bucket mounted at /mnt/gmem
#   setup    build and push the image (needs docker)
#   run      submit the run; GKE starts it again after preemptions
#   status   list the runs
#   logs     the last lines of the run's log
#   stop     delete the run; it saves first
#   delete   delete the cluster
#
# Settings, each also an environment variable (--zone=Z or GMEM_ZONE=Z)
#   --project=P --zone=Z        needed
#   --cluster=gmem              the cluster's name
#   --name=gmem                 the run's name
#   --type=v5litepod-256        xpk's TPU type
#   --slices=1                  slices of that type
#   --image=I                   the image; needed by setup and run
#   --bucket=B                  needed by create
#   --spot                      may be preempted, costs less (create)
#   --restarts=100              how often GKE starts the run again
#   --grace=300                 seconds for the last save
#   --dry-run                   print the commands, run none
#
# Example
#   launch/xpk.sh run --project=my-project --zone=us-east5-b --slices=2 \
#     --image=us-docker.pkg.dev/my-project/gmem/gmem_jax \
#     -- --config=configs/xl_in1k.py:tpu --workdir=/mnt/gmem/xl

# shellcheck source=common.sh
source "$(dirname "$0")/common.sh"
: "${GMEM_PROJECT:=}" "${GMEM_ZONE:=}" "${GMEM_CLUSTER:=gmem}"
: "${GMEM_NAME:=gmem}" "${GMEM_TYPE:=v5litepod-256}" "${GMEM_SLICES:=1}"
: "${GMEM_IMAGE:=}" "${GMEM_SPOT:=}" "${GMEM_RESTARTS:=100}"
: "${GMEM_GRACE:=300}" "${GMEM_BUCKET:=}"
parse BUCKET PROJECT ZONE CLUSTER NAME TYPE SLICES IMAGE SPOT RESTARTS GRACE -- "$@"
need GMEM_PROJECT GMEM_ZONE
program xpk "pip install xpk"
case $action in setup | run) need GMEM_IMAGE ;; create) need GMEM_BUCKET ;; esac
on=(--cluster="$GMEM_CLUSTER" --zone="$GMEM_ZONE" --project="$GMEM_PROJECT")
job=(--workload="$GMEM_NAME")

case $action in
create)
  capacity=--on-demand && [[ -z $GMEM_SPOT ]] || capacity=--spot
  run xpk cluster create "${on[@]}" --tpu-type="$GMEM_TYPE" \
    --num-slices="$GMEM_SLICES" "$capacity"
  run xpk storage attach gmem-bucket "${on[@]}" --type=gcsfuse \
    --bucket="${GMEM_BUCKET#gs://}" --mount-point=/mnt/gmem --size=1 \
    --readonly=false --auto-mount=true
  ;;
setup)
  program docker https://docs.docker.com/get-docker
  run docker build --tag="$GMEM_IMAGE" --file="$root/launch/Dockerfile" "$root"
  run docker push "$GMEM_IMAGE"
  ;;
run) # Started again on all statuses but 0 and 2, bad input. (xpk adds 127-255.)
  run xpk workload create "${on[@]}" "${job[@]}" --tpu-type="$GMEM_TYPE" \
    --num-slices="$GMEM_SLICES" --docker-image="$GMEM_IMAGE" \
    --max-restarts="$GMEM_RESTARTS" --restart-on-exit-codes=1,3-126 \
    --termination-grace-period-seconds="$GMEM_GRACE" --command="exec python -m \
gmem_jax.main $(quoted "${args[@]}")--stopped_status=75"
  ;;
status) run xpk workload list "${on[@]}" ;;
logs)
  program gcloud https://cloud.google.com/sdk/docs/install
  run gcloud logging read "resource.type=k8s_container AND \
labels.\"k8s-pod/jobset_sigs_k8s_io/jobset-name\"=$GMEM_NAME" \
    --project="$GMEM_PROJECT" --limit=100 --format="value(textPayload)"
  ;;
stop) run xpk workload delete "${on[@]}" "${job[@]}" --force ;;
delete) run xpk cluster delete "${on[@]}" --quiet ;;
*) die "unknown command $action; see --help" ;;
esac
