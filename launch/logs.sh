#!/usr/bin/env bash
# The job's log on one host: launch/logs.sh [-f] [NODE [WORKER]]; the first host, unless given.
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
[[ -z $follow ]] || seconds=0 # timeout's word for: no limit
NODES=${1:-0} WORKERS=${2:-0}
on_hosts "${seconds:-$SSH_SECONDS}" "$JOB log $follow"
