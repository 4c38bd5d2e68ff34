#!/usr/bin/env bash
# Train on all hosts, and start again until it is done: after a preemption, a lost peer, lost TPUs.
# Run it again to go on watching; the job itself lives on the hosts.
set -euo pipefail
LAUNCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$LAUNCH/lib/commands.sh"
source "$LAUNCH/lib/settings.sh"
source "$LAUNCH/lib/capacity.sh"
source "$LAUNCH/lib/checkpoints.sh"
source "$LAUNCH/lib/hosts.sh"

# Make sure that there are hosts, and set them up when they are new or did not answer.
ready_hosts() {
  local where
  until where=$(capacity "ready $SLICES"); do say "gcloud does not answer" && pause; done
  case $where in
    ready*) [[ -z $setup_again ]] || "$LAUNCH/setup.sh" || say "setting up failed" ;;
    *)
      # What failed once the run has begun may pass; before, it is likelier a mistake.
      if ! "$LAUNCH/create.sh"; then
        [[ -n $begun ]] || die "$NAME: no TPUs: $(billed)"
        OUTCOME=gone WHY="no TPUs were to be had"
        return 1
      fi
      "$LAUNCH/setup.sh" || say "setting up failed"
      where=$(capacity) || return 1
      ;;
  esac
  hosts=${where#ready }
  [[ $where == ready* ]]
}

attempt() {
  OUTCOME=unreachable WHY="the hosts are not ready"
  ready_hosts || return 0
  start_job "$train" "$hosts" "$REVISION" || return 0
  begun=yes
  report "$NAME: training on $hosts hosts"
  watch_job "$train" "$hosts"
}

billed() { echo "the last checkpoint is step $(last_saved_step). TPUs that are there are billed: launch/delete.sh"; }

# Whether the run shall be started again; what cannot get better by it ends here.
judge() {
  local now
  case $OUTCOME in
    finished) report "$NAME: done" && exit ;;
    mistake) end "$JOB_STATUS" "the run stopped and cannot go on: $WHY; $(billed)" ;;
    interrupted) end "$INTERRUPTED" "$WHY; $(billed)" ;;
  esac
  now=$(last_saved_step)
  if ((now > saved)); then stalls=0 saved=$now; else ((++stalls)); fi
  ((stalls <= MAX_STALLS)) ||
    die "$MAX_STALLS restarts brought no newer checkpoint; the last ended by: $WHY; $(billed)"
  say "$NAME: $WHY; from step $saved again (without progress: $stalls of $MAX_STALLS)"
  setup_again=''
  [[ $OUTCOME == restart && $WHY != *none* ]] || setup_again=yes
  [[ $OUTCOME == gone ]] || stop_job "$train"
}

trap 'report "the job goes on, and is billed; launch/run.sh watches it again"; exit "$INTERRUPTED"' INT
read_settings
require PROJECT ZONE NAME ACCELERATOR_TYPE RUNTIME_VERSION CAPACITY SERVICE_ACCOUNT BUCKET CONFIG OUTPUT
require_run
require_committed
REVISION=$(commit) # the same after every restart
export REVISION SETTINGS
# A restart finds the compiled step in the bucket.
train="env JAX_COMPILATION_CACHE_DIR=$MOUNT/compiled $PYTHON -m llama_cpt.train$(printf ' %q' "$CONFIG" --output "$OUTPUT" "${TRAIN_ARGS[@]}")"
saved=$(last_saved_step)
dry && saved=0
stalls=0 setup_again='' begun='' hosts=0
while true; do
  attempt
  judge
  pause
done
