#!/usr/bin/env bash
# TPU slices under GKE, through Cluster Toolkit: one, or several that train
# together.
#
#   launch/gcluster.sh COMMAND [SETTINGS] [-- ARGUMENTS OF gmem_jax.main]
#
# Commands
#   setup    build and push the image (needs docker)
#   run      submit the run; GKE starts it again after preemptions
#   status   list the runs
#   logs     follow the run's log
#   stop     cancel the run; it saves first
#
# The cluster comes from a blueprint of the toolkit, as its example gke-tpu-v6e.
#
# Settings, each also an environment variable (--zone=Z or GMEM_ZONE=Z)
#   --project=P --zone=Z        needed; a region, where the cluster has one
#   --cluster=gmem              the cluster's name
#   --name=gmem                 the run's name
#   --type=v6e-256              chips of a slice; v5litepod-256 are those of v5e
#   --slices=1                  slices of that type
#   --image=I                   the image; needed by setup and run
#   --bucket=B                  needed by run, which mounts it at /mnt/gmem
#   --restarts=100              how often the run may end before GKE gives up
#   --grace=300                 seconds for the last save
#   --dry-run                   print the commands, run none
#
# Example
#   launch/gcluster.sh run --project=my-project --zone=us-east5-b --slices=2 \
#     --image=us-docker.pkg.dev/my-project/gmem/gmem_jax --bucket=my-bucket \
#     -- --config=configs/xl_in1k.py:tpu --workdir=/mnt/gmem/xl

# shellcheck source=common.sh
source "$(dirname "$0")/common.sh"
: "${GMEM_PROJECT:=}" "${GMEM_ZONE:=}" "${GMEM_CLUSTER:=gmem}"
: "${GMEM_NAME:=gmem}" "${GMEM_TYPE:=v6e-256}" "${GMEM_SLICES:=1}"
: "${GMEM_IMAGE:=}" "${GMEM_BUCKET:=}" "${GMEM_RESTARTS:=100}"
: "${GMEM_GRACE:=300}"
parse PROJECT ZONE CLUSTER NAME TYPE SLICES IMAGE BUCKET RESTARTS GRACE -- "$@"
need GMEM_PROJECT GMEM_ZONE
program gcluster https://github.com/GoogleCloudPlatform/cluster-toolkit
case $action in setup | run) need GMEM_IMAGE ;; esac
on=(--cluster="$GMEM_CLUSTER" --location="$GMEM_ZONE" --project="$GMEM_PROJECT")

case $action in
setup)
  program docker https://docs.docker.com/get-docker
  run docker build --tag="$GMEM_IMAGE" --file="$root/launch/Dockerfile" "$root"
  run docker push "$GMEM_IMAGE"
  ;;
run) # Started again on all statuses but 0 and 2, bad input.
  need GMEM_BUCKET
  printf -v statuses ',%s' {3..255}
  run gcluster job submit "${on[@]}" --name="$GMEM_NAME" \
    --compute-type="$GMEM_TYPE" --num-slices="$GMEM_SLICES" \
    --image="$GMEM_IMAGE" --mount="gs://${GMEM_BUCKET#gs://}:/mnt/gmem:rw" \
    --restarts="$GMEM_RESTARTS" \
    --restart-on-exit-codes="1$statuses" \
    --grace-period="${GMEM_GRACE}s" --command="exec python -m \
gmem_jax.main $(quoted "${args[@]}")--stopped_status=75"
  ;;
status) run gcluster job list "${on[@]}" ;;
logs) run gcluster job logs "$GMEM_NAME" "${on[@]}" --follow ;;
stop) run gcluster job cancel "$GMEM_NAME" "${on[@]}" ;;
*) die "unknown command $action; see --help" ;;
esac
