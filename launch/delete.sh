#!/usr/bin/env bash
# Delete the TPUs: the queued resource and its nodes. The bucket stays, and is billed.
set -euo pipefail
LAUNCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$LAUNCH/lib/commands.sh"
source "$LAUNCH/lib/settings.sh"
source "$LAUNCH/lib/capacity.sh"

read_settings
require PROJECT ZONE NAME
remove_capacity || { still_billed && exit 1; }
report "$NAME: nothing is left"
