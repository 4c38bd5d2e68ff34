#!/usr/bin/env bash
# Request the TPUs and wait until they are ready. After a failure, nothing is left that is billed.
set -euo pipefail
LAUNCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$LAUNCH/lib/commands.sh"
source "$LAUNCH/lib/settings.sh"
source "$LAUNCH/lib/capacity.sh"

request_capacity() {
  local flags=("--node-id=$NAME") status=0
  ((SLICES == 1)) || flags=("--node-count=$SLICES" "--node-prefix=$NAME")
  case $CAPACITY in
    spot) flags+=(--spot) ;;
    reserved) flags+=(--reserved) ;;
    *) ;; # on demand: gcloud has no flag for it
  esac
  answer=missing
  # The request also expires by itself, in case this script is killed.
  in_zone queued-resources create "$NAME" "${flags[@]}" "--accelerator-type=$ACCELERATOR_TYPE" \
    "--runtime-version=$RUNTIME_VERSION" "--service-account=$SERVICE_ACCOUNT" \
    --scopes=https://www.googleapis.com/auth/cloud-platform \
    "--valid-until-duration=${CREATE_SECONDS}s" "--labels=llama-cpt=$NAME" \
    "${CREATE_FLAGS[@]}" --quiet --async || status=$?
  ((status == 124 || status == 137)) || answer=received
  return "$status"
}

# Delete the request after a failure: otherwise it would be served, and billed, unattended.
cancel_request() {
  local status=$?
  stop_children
  ((status)) || return 0
  trap '' INT TERM HUP
  say "canceling the request $NAME" || true
  # An unanswered request may still be accepted, and appear in the list later.
  [[ $answer != missing ]] || pause
  remove_capacity || still_billed
}

wait_for_capacity() {
  local state misses=0 deadline=$((SECONDS + CREATE_SECONDS))
  while true; do
    state=$(capacity "ready $SLICES") || state=unknown
    case $state in
      ready*) report "$NAME: ${state#ready } hosts" && return ;;
      lost*) die "$NAME: ${state#lost }: the request failed (no capacity, no quota, or preempted)" ;;
      none) ((++misses < MAX_MISSES)) || die "$NAME: the request has disappeared; was it deleted?" ;;
      *) misses=0 ;;
    esac
    ((SECONDS < deadline)) || die "$NAME: not ready after $CREATE_SECONDS s ($state)"
    pause
  done
}

read_settings
require PROJECT ZONE NAME ACCELERATOR_TYPE RUNTIME_VERSION CAPACITY SLICES SERVICE_ACCOUNT
require_run
[[ -z ${CONFIG:-} ]] || require_committed
there=$(capacity none) || die "$NAME: gcloud does not report its state; nothing was changed"
case $there in
  ready*) say "$NAME: already ready, ${there#ready } hosts" && exit ;;
  lost*)
    say "$NAME: ${there#lost }; deleting what is left"
    remove_capacity || { still_billed && exit 1; }
    there=none
    ;;
esac
# If the terminal or the reader of a pipe is gone, a message must not end the script by SIGPIPE.
trap '' PIPE
answer=''
trap cancel_request EXIT
[[ $there != none ]] || request_capacity || die "$NAME: the request was rejected"
wait_for_capacity
