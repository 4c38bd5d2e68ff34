#!/usr/bin/env bash
# Bring home what a run leaves: metrics, config, logs; and export its model where EXPORT says.
set -euo pipefail
LAUNCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$LAUNCH/lib/commands.sh"
source "$LAUNCH/lib/settings.sh"
source "$LAUNCH/lib/capacity.sh"
source "$LAUNCH/lib/hosts.sh"

mirror() {
  call "$COLLECT_SECONDS" gcloud storage rsync --recursive '--exclude=^checkpoints/.*' "$1" "$2" ||
    die "$1: cannot be copied to $2"
}

# On the first host, by its processors alone; a multi-host slice has no need of the others.
export_model() {
  local where command
  ! call "$QUERY_SECONDS" gcloud storage ls "$EXPORT/config.json" >/dev/null 2>&1 || dry ||
    { say "$EXPORT: is there" && return; }
  command="$PYTHON -m llama_cpt.convert to-hf$(printf ' %q' "$OUTPUT" "$EXPORT")"
  where=$(capacity "ready $SLICES") || where=unknown
  [[ $where == ready* ]] ||
    die "$NAME: no host to export on ($where); on any other machine: ${command/"$PYTHON"/python}"
  NODES=0 WORKERS=0
  start_job "$command" "$MOUNT/logs/$NAME" 1 || die "$NAME: the export does not start"
  watch_job 1
  [[ $OUTCOME == finished ]] || die "$NAME: the export ended: $WHY"
  report "$EXPORT: exported"
}

read_settings
require PROJECT ZONE NAME BUCKET OUTPUT
: "${COLLECT_SECONDS:=3600}"
[[ -z ${EXPORT:-} ]] || export_model
dry || mkdir -p "$COLLECTED/$NAME/run" "$COLLECTED/$NAME/logs"
mirror "$OUTPUT" "$COLLECTED/$NAME/run"
mirror "gs://$BUCKET/logs/$NAME" "$COLLECTED/$NAME/logs"
report "$NAME: collected in $COLLECTED/$NAME; checkpoints stay in $OUTPUT"
