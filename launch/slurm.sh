#!/usr/bin/env bash
# GPU nodes under SLURM: one process for each GPU, queued again when stopped.
#
#   launch/slurm.sh COMMAND [SETTINGS] [-- ARGUMENTS OF gmem_jax.main]
#
# Commands
#   run      submit the run; whenever it is preempted or its time is up it saves
#            and is queued again, until it is done
#   status   its place in the queue
#   logs     follow its log
#   stop     let it save, then end it
#
# Settings, each also an environment variable (--nodes=2 or GMEM_NODES=2)
#   --name=gmem        the job's name
#   --nodes=1          nodes
#   --gpus=8           GPUs of a node
#   --cpus=8           CPU cores for each GPU
#   --time=24:00:00    time limit of one part of the run
#   --partition=P      --account=A      --qos=Q        if your site needs them
#   --python=python    of an environment with gmem_jax[cuda], seen by all nodes
#   --log=slurm-%x.log the log; %x is the name
#   --grace=300        seconds for the last save before the time is up
#   --dry-run          print the commands, run none
#
# Example
#   launch/slurm.sh run --nodes=2 --partition=gpu --python="$PWD/.venv/bin/python" \
#     -- --config=configs/xl_in1k.py --workdir=/shared/runs/xl

# shellcheck source=common.sh
source "$(dirname "$0")/common.sh"
: "${GMEM_NAME:=gmem}" "${GMEM_NODES:=1}" "${GMEM_GPUS:=8}" "${GMEM_CPUS:=8}"
: "${GMEM_TIME:=24:00:00}" "${GMEM_PARTITION:=}" "${GMEM_ACCOUNT:=}"
: "${GMEM_QOS:=}" "${GMEM_PYTHON:=python}" "${GMEM_LOG:=slurm-%x.log}"
: "${GMEM_GRACE:=300}"
parse NAME NODES GPUS CPUS TIME PARTITION ACCOUNT QOS PYTHON LOG GRACE -- "$@"
[[ $action == job ]] || program sbatch "is this a login node of the cluster?"
log=${GMEM_LOG//%x/$GMEM_NAME} && [[ $log == /* ]] || log=$root/$log

case $action in
run)
  run rm -f "$log.stop"
  # The job is this script again, from here: sbatch would run a copy of it.
  run sbatch --parsable --job-name="$GMEM_NAME" --nodes="$GMEM_NODES" \
    --ntasks-per-node="$GMEM_GPUS" --gpus-per-node="$GMEM_GPUS" \
    --cpus-per-task="$GMEM_CPUS" --time="$GMEM_TIME" --requeue \
    --signal="TERM@$GMEM_GRACE" --output="$log" --open-mode=append \
    ${GMEM_PARTITION:+--partition="$GMEM_PARTITION"} \
    ${GMEM_ACCOUNT:+--account="$GMEM_ACCOUNT"} ${GMEM_QOS:+--qos="$GMEM_QOS"} \
    --chdir="$root" --wrap="$(quoted "$root/launch/slurm.sh" job \
      --name="$GMEM_NAME" --log="$log" --python="$GMEM_PYTHON" \
      -- "${args[@]}")"
  ;;
job) # Inside the job. SIGTERM goes to its steps, which save and end with 75.
  trap : TERM
  # Others on the network may reach the coordinator's port.
  export GMEM_SECRET=${GMEM_SECRET:-$(secret)}
  status=0
  run srun --kill-on-bad-exit=0 "$GMEM_PYTHON" -m gmem_jax.main "${args[@]}" \
    --stopped_status=75 || status=$?
  case $status in 0 | 2) exit "$status" ;; esac
  [[ ! -e $log.stop ]] || exit 0
  echo "the run ended with status $status; it is queued again"
  run scontrol requeue "$SLURM_JOB_ID"
  ;;
status) run squeue --me --name="$GMEM_NAME" ;;
logs) run tail -n 100 -F "$log" ;;
stop) # Its steps save; the file keeps it from being queued again.
  run touch "$log.stop"
  run scancel --me --name="$GMEM_NAME" --state=PENDING
  run scancel --me --name="$GMEM_NAME" --state=RUNNING --signal=TERM
  ;;
*) die "unknown command $action; see --help" ;;
esac
