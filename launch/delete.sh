#!/usr/bin/env bash
# Delete the TPUs: the queued resource and its nodes. A job is stopped before, and saves. The bucket
# stays, and is billed.
set -euo pipefail
LAUNCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$LAUNCH/lib/commands.sh"
source "$LAUNCH/lib/settings.sh"
source "$LAUNCH/lib/capacity.sh"
source "$LAUNCH/lib/hosts.sh"

read_settings
require PROJECT ZONE NAME
if where=$(capacity "ready $SLICES") && [[ $where == ready* ]]; then
  report "$NAME: what runs there may save, in $GRACE_SECONDS s"
  stop_job
fi
remove_capacity || { still_billed && exit 1; }
report "$NAME: nothing is left"
