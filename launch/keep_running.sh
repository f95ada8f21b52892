# shellcheck shell=bash
# shellcheck disable=SC2154  # from common.sh

# Starts a job again and again until it is done. The launcher defines
#   state    prints READY, WAIT (not yet), MISSING, or else GONE
#   create, remove, setup, start (which returns the job's exit status).
# Exit statuses of the job: 0 done, 2 bad input, 75 stopped after a save, 3 a
# process is gone or a disk is full. What fails three times on a machine that stays is given up.
keep_running() {
  local found status installed='' made='' failures=0
  pause() { [[ -n $dry ]] || sleep "${GMEM_POLL:-30}"; }
  tired() { ((++failures >= 3)); }
  while :; do
    found=$(state) || { [[ -n $made ]] && found=WAIT; } || exit 2
    case $found in
    WAIT) pause && continue ;;
    READY) made=1 ;;
    *)
      installed=''
      if [[ $found == GONE ]]; then remove || true; fi
      # Where there was a machine there will be one again: no end of trying.
      if create; then made=1; elif [[ -z $made ]] && tired; then
        die "the machine cannot be made, see above"
      else pause; fi
      [[ -n $dry ]] || continue
      ;;
    esac
    if [[ -z $installed ]] && ! setup; then
      ! tired || die "the machine cannot be set up, see above"
      pause && continue
    fi
    installed=1 status=0 && start || status=$?
    case $status in 0 | 2) return "$status" ;; 75) failures=-1 ;; esac
    ! tired || [[ $(state) != READY ]] || return "$status"
    echo "the job ended with status $status; starting it again" >&2
    pause
  done
}
