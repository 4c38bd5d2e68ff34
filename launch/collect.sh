#!/usr/bin/env bash
# Copy the metrics, config and logs of a run to this machine, and export its model to EXPORT.
set -euo pipefail
LAUNCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$LAUNCH/lib/commands.sh"
source "$LAUNCH/lib/settings.sh"
source "$LAUNCH/lib/capacity.sh"
source "$LAUNCH/lib/checkpoints.sh"
source "$LAUNCH/lib/hosts.sh"

# A failed copy does not end the script: a run that ended early may have no logs.
mirror() {
  call "$COLLECT_SECONDS" gcloud storage rsync --recursive '--exclude=^checkpoints/.*' "$1" "$2" ||
    missing+=("$1")
}

# An export writes config.json last.
exported() { call "$QUERY_SECONDS" gcloud storage ls "$EXPORT/config.json" >/dev/null 2>&1; }

# The note is next to the folder, because the export requires an empty folder. It is written before
# the export starts, because the export can outlive this script.
note_source() {
  local note
  note=$(mktemp)
  printf '%s\n' "$1" >"$note"
  call "$QUERY_SECONDS" gcloud storage cp "$note" "$EXPORT.source" ||
    die "$EXPORT.source: cannot be written; run it again"
  rm "$note"
}

# Run the export on the CPUs of the first host; the other hosts of a slice are not needed.
export_model() {
  local where command step source
  step=$(last_saved_step)
  source="$OUTPUT step $step"
  if exported && ! dry; then
    [[ $(call "$QUERY_SECONDS" gcloud storage cat "$EXPORT.source") == "$source" ]] ||
      reject "$EXPORT was not exported from $source; set another EXPORT"
    say "$EXPORT: already exported" && return
  fi
  dry || ((step)) || die "$OUTPUT: has no complete checkpoint to export"
  command="$PYTHON -m llama_cpt.convert to-hf$(quoted "$OUTPUT" "$EXPORT")"
  where=$(capacity "ready $SLICES") || where=unknown
  [[ $where == ready* ]] ||
    die "$NAME: no host for the export ($where); run on any other machine: ${command/"$PYTHON"/python}"
  note_source "$source"
  NODES=0 WORKERS=0
  start_job "$command" 1 any || die "$NAME: the export did not start: $WHY"
  watch_job "$command" 1
  [[ $OUTCOME == finished ]] || end "$JOB_STATUS" "$NAME: the export ended: $WHY"
  exported || die "$EXPORT/config.json is missing although the export succeeded; see launch/logs.sh"
  report "$EXPORT: exported from $source"
}

read_settings
require PROJECT ZONE NAME BUCKET OUTPUT
require_run
: "${COLLECT_SECONDS:=3600}"
missing=()
dry || mkdir -p "$COLLECTED/$NAME/run" "$COLLECTED/$NAME/logs"
mirror "$OUTPUT" "$COLLECTED/$NAME/run"
mirror "gs://$BUCKET/logs/$NAME" "$COLLECTED/$NAME/logs"
[[ -z $EXPORT ]] || export_model
((${#missing[@]} == 0)) || die "${missing[*]}: not copied to $COLLECTED/$NAME; see the error above"
report "$NAME: collected in $COLLECTED/$NAME; checkpoints remain in $OUTPUT"
