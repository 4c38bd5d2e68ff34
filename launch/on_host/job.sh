#!/usr/bin/env bash
# Run one job on this host, which outlives the connection that starts it.
#   job.sh start TIME MOUNT NAME REVISION COMMAND...
#                                       start the job at TIME (seconds since 1970) unless it runs; at
#                                       the end its log is copied to MOUNT/logs/NAME. REVISION is any,
#                                       or the commit that must be installed. Prints @job HOST running,
#                                       busy OTHER_COMMAND, holds OTHER_REVISION or unmounted
#   job.sh state                        print @job HOST none | running | stopped STATUS LAST_LINE
#   job.sh stop SECONDS [COMMAND...]    send SIGTERM, then SIGKILL after SECONDS; only to COMMAND
#   job.sh log [-f]                     print the last lines of the log; -f follows it
set -euo pipefail
PLACE=$HOME/llama_cpt_job
mkdir -p "$PLACE"

# The processes of the job themselves hold the lock, so no process can be overlooked.
running() { ! flock -n "$PLACE/lock" true; }

# Print the command that holds the lock, or the last command that held it.
job_command() { cat "$PLACE/command" 2>/dev/null || true; }

installed_revision() { cat "$HOME/llama_cpt_revision" 2>/dev/null || echo none; }

start() {
  local time=$1 mount=$2 folder=$2/logs/$3 revision=$4 log found=running
  shift 4
  exec 9>"$PLACE/lock"
  # The state command holds the lock for a moment.
  if ! flock -w 2 9; then
    [[ $(job_command) == "$*" ]] || found="busy $(job_command)"
  elif [[ $revision != any && $revision != "$(installed_revision)" ]]; then
    found="holds $(installed_revision)"
  elif ! mountpoint -q "$mount"; then
    found=unmounted
  else
    log=$PLACE/$(hostname).$(date -u +%Y%m%dT%H%M%SZ).log
    rm -f "$PLACE/status"
    printf '%s\n' "$*" >"$PLACE/command"
    ln -sfn "$log" "$PLACE/log"
    setsid bash "${BASH_SOURCE[0]}" supervise "$time" "$folder" "$@" >"$log" 2>&1 </dev/null &
  fi
  printf '@job %s %s\n' "$(hostname)" "$found"
}

supervise() {
  local delay=$(($1 - $(date +%s))) folder=$2 status=0
  shift 2
  printf '%s\n' $$ >"$PLACE/group"
  ((delay <= 0)) || sleep "$delay"
  cd "$HOME/llama_cpt"
  trap : TERM # The signal is for the command; this shell must record its status.
  "$@" || status=$?
  printf '%s\n' "$status" >"$PLACE/status.draft"
  mv "$PLACE/status.draft" "$PLACE/status"
  mkdir -p "$folder" && timeout 60 cp "$(readlink "$PLACE/log")" "$folder"
}

# Print the lines of errors, else all lines. For display only: the status decides what follows.
last_lines() { grep -a '^error: ' "$PLACE/log" || grep -a . "$PLACE/log" || true; }

state() {
  if running; then
    printf '@job %s running\n' "$(hostname)"
  elif [[ -f $PLACE/status ]]; then
    printf '@job %s stopped %s %s\n' "$(hostname)" "$(<"$PLACE/status")" "$(last_lines | tail -n 1)"
  else
    printf '@job %s none\n' "$(hostname)"
  fi
}

stop() {
  local deadline=$((SECONDS + $1)) signal=TERM
  shift
  while running && [[ $# == 0 || $(job_command) == "$*" ]]; do
    [[ -f $PLACE/group ]] && kill "-$signal" -- "-$(<"$PLACE/group")" 2>/dev/null || true
    while running && ((SECONDS < deadline)); do sleep 0.2; done
    # A process that hangs in the kernel ends later, or never.
    signal=KILL deadline=$((SECONDS + 10))
  done
  state
}

case ${1:-} in
  start | supervise | stop) "$@" ;;
  state) state ;;
  log) exec tail -n 50 ${2:+-F} "$PLACE/log" ;;
  *) sed -n 's/^# \?//p' "${BASH_SOURCE[0]}" >&2 && exit 2 ;;
esac
