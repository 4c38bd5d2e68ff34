#!/usr/bin/env bash
# Print the state of the request, the nodes, the job on every host and the checkpoints.
set -euo pipefail
LAUNCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$LAUNCH/lib/commands.sh"
source "$LAUNCH/lib/settings.sh"
source "$LAUNCH/lib/capacity.sh"
source "$LAUNCH/lib/checkpoints.sh"
source "$LAUNCH/lib/hosts.sh"

read_settings
require PROJECT ZONE NAME OUTPUT
request=$(request_state) || die "gcloud does not answer"
echo "request $NAME: ${request:-none}"
if [[ $request == ACTIVE ]] || dry; then
  echo "nodes (state, hosts):"
  node_states | sed 's/^/  /'
  echo "job:"
  answers @job "$SSH_SECONDS" "$JOB state" | sed 's/^@job/ /'
fi
steps=$(complete_steps | xargs)
echo "complete checkpoints in $OUTPUT: ${steps:-none}"
