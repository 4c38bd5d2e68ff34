# Sourced by every script: what it says, and how it runs a command.
# shellcheck shell=bash

exec 3>&1 # what DRY_RUN shows is seen from inside $(...) too

say() { printf '%s\n' "$*" >&2; }

# What was reached; DRY_RUN reaches nothing.
report() { dry || say "$@"; }

# Exit statuses of the scripts. Those of llama_cpt/runtime/errors.py that no restart fixes: an option, a
# failed check, an error of the user; and that of Ctrl-C.
# shellcheck disable=SC2034 # some are for the scripts
readonly USAGE=2 CHECK_FAILED=65 USER_ERROR=78 INTERRUPTED=130

# end STATUS WORDS...
end() {
  say "error: ${*:2}"
  exit "$1"
}

# What the cloud or the hosts failed in, and may do another time.
die() { end 1 "$@"; }

# What the user has to fix first.
reject() { end "$USER_ERROR" "$@"; }

dry() { [[ ${DRY_RUN:-} == 1 ]]; }

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || reject "bash 4.4 or newer is needed"
command -v timeout >/dev/null || reject "timeout is missing: install coreutils"

# call SECONDS COMMAND...: run it for at most so long; DRY_RUN=1 shows it instead.
call() {
  local seconds=$1 status=0
  shift
  if dry; then
    { printf '+' && printf ' %q' "$@" && printf '\n'; } >&3
    return
  fi
  # In the background, so that a signal is obeyed at once and not after the command.
  timeout --kill-after=10 "$seconds" "$@" </dev/null &
  wait $! || status=$?
  ((status != 124 && status != 137)) || say "not answered within $seconds s: ${*:1:5}"
  return "$status"
}

pause() { dry || sleep "$POLL_SECONDS"; }

stop_children() {
  local children
  children=$(jobs -p)
  # shellcheck disable=SC2086 # process ids, one a word
  [[ -z $children ]] || kill $children 2>/dev/null || true
}

trap stop_children EXIT
trap 'exit "$INTERRUPTED"' INT
trap 'exit 143' TERM
