#!/usr/bin/env bash
# Delete the TPUs: the queued resource and its nodes. A running job is stopped first, and saves. The
# bucket remains and is billed.
set -euo pipefail
LAUNCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$LAUNCH/lib/commands.sh"
source "$LAUNCH/lib/settings.sh"
source "$LAUNCH/lib/capacity.sh"
source "$LAUNCH/lib/hosts.sh"

read_settings
require PROJECT ZONE NAME
if where=$(capacity "ready $SLICES") && [[ $where == ready* ]]; then
  report "$NAME: a running job has $GRACE_SECONDS s to save"
  stop_job
fi
remove_capacity || { still_billed && exit 1; }
report "$NAME: nothing is left"
