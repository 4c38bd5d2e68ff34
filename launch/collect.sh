#!/usr/bin/env bash
# Bring home what a run leaves: metrics, config, logs; and export its model where EXPORT says.
set -euo pipefail
LAUNCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$LAUNCH/lib/commands.sh"
source "$LAUNCH/lib/settings.sh"
source "$LAUNCH/lib/capacity.sh"
source "$LAUNCH/lib/checkpoints.sh"
source "$LAUNCH/lib/hosts.sh"

# What cannot be copied stops nothing: a run that ended early has no logs, say.
mirror() {
  call "$COLLECT_SECONDS" gcloud storage rsync --recursive '--exclude=^checkpoints/.*' "$1" "$2" ||
    missing+=("$1")
}

# config.json is what an export writes last.
exported() { call "$QUERY_SECONDS" gcloud storage ls "$EXPORT/config.json" >/dev/null 2>&1; }

# Beside the folder, because the export wants it empty; before it begins, because it outlives us.
note_source() {
  local note
  note=$(mktemp)
  printf '%s\n' "$1" >"$note"
  call "$QUERY_SECONDS" gcloud storage cp "$note" "$EXPORT.source" ||
    die "$EXPORT.source: cannot be written; try again"
  rm "$note"
}

# On the first host, by its processors alone; a multi-host slice has no need of the others.
export_model() {
  local where command step source
  step=$(last_saved_step)
  source="$OUTPUT step $step"
  if exported && ! dry; then
    [[ $(call "$QUERY_SECONDS" gcloud storage cat "$EXPORT.source") == "$source" ]] ||
      reject "$EXPORT is not known to be of $source: name another EXPORT"
    say "$EXPORT: is there" && return
  fi
  dry || ((step)) || die "$OUTPUT: no whole checkpoint is to be seen there: nothing to export"
  command="$PYTHON -m llama_cpt.convert to-hf$(printf ' %q' "$OUTPUT" "$EXPORT")"
  where=$(capacity "ready $SLICES") || where=unknown
  [[ $where == ready* ]] ||
    die "$NAME: no host to export on ($where); on any other machine: ${command/"$PYTHON"/python}"
  note_source "$source"
  NODES=0 WORKERS=0
  start_job "$command" 1 any || die "$NAME: the export does not start: $WHY"
  watch_job "$command" 1
  [[ $OUTCOME == finished ]] || end "$JOB_STATUS" "$NAME: the export ended: $WHY"
  exported || die "$EXPORT/config.json is not there although the export ended well: launch/logs.sh"
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
((${#missing[@]} == 0)) || die "${missing[*]}: not copied to $COLLECTED/$NAME; the reason is above"
report "$NAME: collected in $COLLECTED/$NAME; checkpoints stay in $OUTPUT"
