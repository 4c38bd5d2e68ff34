#!/usr/bin/env bash
# Ask for the TPUs and wait until they are there. What fails here leaves nothing that is billed.
set -euo pipefail
LAUNCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$LAUNCH/lib/commands.sh"
source "$LAUNCH/lib/settings.sh"
source "$LAUNCH/lib/capacity.sh"

ask_for_capacity() {
  local flags=("--node-id=$NAME") status=0
  ((SLICES == 1)) || flags=("--node-count=$SLICES" "--node-prefix=$NAME")
  case $CAPACITY in
    spot) flags+=(--spot) ;;
    reserved) flags+=(--reserved) ;;
    *) ;; # on demand: gcloud has no flag for it
  esac
  asked=unanswered
  # The request ends by itself too, should nobody be left to wait for it.
  in_zone queued-resources create "$NAME" "${flags[@]}" "--accelerator-type=$ACCELERATOR_TYPE" \
    "--runtime-version=$RUNTIME_VERSION" "--service-account=$SERVICE_ACCOUNT" \
    --scopes=https://www.googleapis.com/auth/cloud-platform \
    "--valid-until-duration=${CREATE_SECONDS}s" "--labels=llama-cpt=$NAME" \
    "${CREATE_FLAGS[@]}" --quiet --async || status=$?
  ((status == 124 || status == 137)) || asked=answered
  return "$status"
}

# After a failure: the request would be served, and billed, with nobody there.
take_back() {
  local status=$?
  stop_children
  ((status)) || return 0
  trap '' INT TERM HUP
  say "taking the request $NAME back" || true
  # It may be taken yet, and would not be seen at once.
  [[ $asked != unanswered ]] || pause
  remove_capacity || still_billed
}

wait_for_capacity() {
  local state misses=0 deadline=$((SECONDS + CREATE_SECONDS))
  while true; do
    state=$(capacity "ready $SLICES") || state=unknown
    case $state in
      ready*) report "$NAME: ${state#ready } hosts" && return ;;
      lost*) die "$NAME: ${state#lost }: the request failed (no capacity, no quota, or preempted)" ;;
      none) ((++misses < MAX_MISSES)) || die "$NAME: the request is gone: was it deleted?" ;;
      *) misses=0 ;;
    esac
    ((SECONDS < deadline)) || die "$NAME: not there after $CREATE_SECONDS s ($state)"
    pause
  done
}

read_settings
require PROJECT ZONE NAME ACCELERATOR_TYPE RUNTIME_VERSION CAPACITY SLICES SERVICE_ACCOUNT
require_run
[[ -z ${CONFIG:-} ]] || require_committed
there=$(capacity none) || die "$NAME: gcloud does not say whether it is there; nothing was changed"
case $there in
  ready*) say "$NAME: is there, ${there#ready } hosts" && exit ;;
  lost*)
    say "$NAME: ${there#lost }; removing what is left"
    remove_capacity || { still_billed && exit 1; }
    there=none
    ;;
esac
# Where the terminal is gone, or a pipe's reader, nothing can be said; that must not be the end.
trap '' PIPE
asked=''
trap take_back EXIT
[[ $there != none ]] || ask_for_capacity || die "$NAME: the request was refused"
wait_for_capacity
