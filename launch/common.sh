# Shared by the launchers: sourced, never run.
# shellcheck shell=bash
# shellcheck disable=SC2034  # what launchers read
set -eo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
exec 3>&1 # Where commands are shown, also from inside $(...).

die() { echo "${0##*/}: $*" >&2 && exit 2; }
# The comment at the head of a launcher, to its first empty line, is its --help.
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }
need() { # SETTING...: each must have a value.
  local name flag
  for name in "$@"; do
    flag=$(tr 'A-Z_' 'a-z-' <<<"${name#GMEM_}")
    [[ -n ${!name} ]] || die "--$flag=... (or $name=...) is needed; see --help"
  done
}
program() { # NAME HINT: must be on PATH, but for --dry-run.
  [[ -n $dry ]] || command -v "$1" >/dev/null || die "$1 is not installed: $2"
}
show() { { printf '+' && printf ' %q' "$@" && echo; } >&3; }
run() { show "$@" && { [[ -n $dry ]] || "$@"; }; }
quoted() { printf '%q ' "$@"; }
secret() { od -An -N16 -tx1 /dev/urandom | tr -d ' \n'; }

# parse SETTINGS -- ARGUMENTS: sets $action, $dry, $args and, for --some-name=V,
# GMEM_SOME_NAME; what follows a -- among the arguments becomes $args.
parse() {
  local name settings=
  while [[ $1 != -- ]]; do settings+=" GMEM_$1 " && shift; done
  shift
  action='' dry=${GMEM_DRY_RUN:-} args=()
  while (($#)); do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --dry-run) dry=1 ;;
    --) shift && args=("$@") && break ;;
    --*)
      name=${1#--} name=GMEM_$(tr 'a-z-' 'A-Z_' <<<"${name%%=*}")
      [[ $settings == *" $name "* ]] || die "unknown setting $1; see --help"
      if [[ $1 == *=* ]]; then printf -v "$name" %s "${1#*=}"; else
        printf -v "$name" %s 1
      fi
      ;;
    *) [[ -z $action ]] || die "one command is needed, not $action and $1"
      action=$1 ;;
    esac
    shift
  done
  [[ -n $action ]] || die "a command is needed; see --help"
  [[ $action != run ]] || ((${#args[@]})) ||
    die "run needs the arguments of gmem_jax.main, after --"
}
