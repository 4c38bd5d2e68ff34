# Sourced by every script: messages, exit statuses, and commands with a time limit.
# shellcheck shell=bash

exec 3>&1 # Output of DRY_RUN, which must also appear from inside $(...).

say() { printf '%s\n' "$*" >&2; }

# Print what was done; DRY_RUN does nothing.
report() { dry || say "$@"; }

# Exit statuses of llama_cpt/runtime/errors.py that a restart does not fix: a wrong option, a failed
# check, a user error; and that of Ctrl-C.
# shellcheck disable=SC2034 # Some are used by the scripts.
readonly USAGE=2 CHECK_FAILED=65 USER_ERROR=78 INTERRUPTED=130

# end STATUS MESSAGE...
end() {
  say "error: ${*:2}"
  exit "$1"
}

# End after a failure of the cloud or the hosts, which may succeed later.
die() { end 1 "$@"; }

# End after an error that the user has to fix first.
reject() { end "$USER_ERROR" "$@"; }

# quoted WORD...: print the words for a remote shell, each with a space before it.
quoted() { (($# == 0)) || printf ' %q' "$@"; }

dry() { [[ ${DRY_RUN:-} == 1 ]]; }

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || reject "bash $BASH_VERSION is too old; install bash 4.4 or newer"
command -v timeout >/dev/null || reject "timeout is missing; install coreutils"

# call SECONDS COMMAND...: run the command with a time limit; DRY_RUN=1 prints it instead.
call() {
  local seconds=$1 status=0
  shift
  if dry; then
    { printf '+' && printf ' %q' "$@" && printf '\n'; } >&3
    return
  fi
  # In the background, so that a signal is handled at once and not after the command.
  timeout --kill-after=10 "$seconds" "$@" </dev/null &
  wait $! || status=$?
  ((status != 124 && status != 137)) || say "no answer within $seconds s: ${*:1:5}"
  return "$status"
}

pause() { dry || sleep "$POLL_SECONDS"; }

stop_children() {
  local children
  children=$(jobs -p)
  # shellcheck disable=SC2086 # Process IDs, one per word.
  [[ -z $children ]] || kill $children 2>/dev/null || true
}

trap stop_children EXIT
trap 'exit "$INTERRUPTED"' INT
trap 'exit 143' TERM
