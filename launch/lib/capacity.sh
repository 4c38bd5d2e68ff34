# Sourced: the queued resource and its nodes, one per slice.
# shellcheck shell=bash

in_zone() { call "$QUERY_SECONDS" gcloud compute tpus "$@" "--project=$PROJECT" "--zone=$ZONE"; }

node_names() {
  local slice
  ((SLICES > 1)) || printf '%s\n' "$NAME"
  for ((slice = 0; SLICES > 1 && slice < SLICES; slice++)); do printf '%s\n' "$NAME-$slice"; done
}

# Print the state of the request, nothing if it does not exist. It is read from a list, which unlike
# `describe` distinguishes a missing request from a missing answer.
request_state() {
  local listed
  listed=$(in_zone queued-resources list "--format=value(name.basename(),state.state)") || return
  awk -v name="$NAME" '$1 == name { print $2 }' <<<"$listed"
}

# Print one line per existing node: its name, state and number of hosts.
node_states() {
  local listed
  listed=$(in_zone tpu-vm list "--format=value(name.basename(),state,networkEndpoints.len())") ||
    return
  awk 'NR == FNR { ours[$1]; next } $1 in ours' <(node_names) - <<<"$listed"
}

# capacity ASSUMED: print none | waiting STATE | ready HOSTS | lost STATE; with DRY_RUN, ASSUMED.
capacity() {
  local request nodes
  request=$(request_state) || return
  case $request in
    ACTIVE) ;;
    SUSPENDING | SUSPENDED | FAILED | DELETING) echo "lost $request" && return ;;
    ?*) echo "waiting $request" && return ;;
    *) dry || { echo none && return; } ;;
  esac
  nodes=$(node_states) || return
  ! dry || { echo "$1" && return; }
  awk -v slices="$SLICES" '
    $2 ~ /^(PREEMPTED|TERMINATED|DELETING)$/ { lost = $2 }
    $2 != "READY" { waiting = $2 }
    { nodes++; hosts += $3 }
    END {
      if (nodes < slices) lost = "MISSING"
      if (lost) print "lost", lost
      else if (waiting) print "waiting", waiting
      else print "ready", hosts
    }' < <(grep . <<<"$nodes")
}

# Delete until neither request nor nodes are left, so that nothing is billed; 1 after DELETE_SECONDS.
remove_capacity() {
  local request nodes node deadline=$((SECONDS + DELETE_SECONDS))
  while true; do
    if request=$(request_state) && nodes=$(node_states); then
      if dry; then request=ACTIVE; fi
      [[ -n $request || -n $nodes ]] || return 0
      if [[ -n $request ]]; then
        in_zone queued-resources delete "$NAME" --force --quiet --async || true
      else
        while read -r node _; do
          in_zone tpu-vm delete "$node" --quiet --async || true
        done <<<"$nodes"
      fi
    fi
    ! dry || return 0
    ((SECONDS < deadline)) || return 1
    pause
  done
}

still_billed() { say "$NAME in $ZONE may still be billed; run launch/delete.sh, then check the console"; }
