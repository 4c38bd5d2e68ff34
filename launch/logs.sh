#!/usr/bin/env bash
# Print the job's log on one host, by default the first: launch/logs.sh [-f] [NODE [WORKER]]
set -euo pipefail
LAUNCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$LAUNCH/lib/commands.sh"
source "$LAUNCH/lib/settings.sh"
source "$LAUNCH/lib/capacity.sh"
source "$LAUNCH/lib/hosts.sh"

follow='' seconds=''
[[ ${1:-} != -f ]] || { follow=-f && shift; }
read_settings
require PROJECT ZONE NAME
[[ -z $follow ]] || seconds=0 # No limit, for timeout.
NODES=${1:-0} WORKERS=${2:-0}
on_hosts "${seconds:-$SSH_SECONDS}" "$JOB log $follow"
