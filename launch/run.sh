#!/usr/bin/env bash
# Train on all hosts, and restart until it is done: after a preemption, a lost peer or lost TPUs. Run
# it again to resume watching; the job itself runs on the hosts.
set -euo pipefail
LAUNCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$LAUNCH/lib/commands.sh"
source "$LAUNCH/lib/settings.sh"
source "$LAUNCH/lib/capacity.sh"
source "$LAUNCH/lib/checkpoints.sh"
source "$LAUNCH/lib/hosts.sh"

# Make sure that the hosts exist, and set them up if they are new or did not answer.
ready_hosts() {
  local where
  until where=$(capacity "ready $SLICES"); do say "gcloud does not answer" && pause; done
  case $where in
    ready*) [[ -z $setup_again ]] || "$LAUNCH/setup.sh" || say "the setup failed" ;;
    *)
      # After the run has started, a failure may be transient; before, it is more likely a mistake.
      if ! "$LAUNCH/create.sh"; then
        [[ -n $started ]] || die "$NAME: no TPUs: $(billed)"
        OUTCOME=gone WHY="no TPUs were available"
        return 1
      fi
      "$LAUNCH/setup.sh" || say "the setup failed"
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
  started=yes
  report "$NAME: training on $hosts hosts"
  watch_job "$train" "$hosts"
}

billed() { echo "the last checkpoint is step $(last_saved_step). TPUs are billed until launch/delete.sh"; }

# Decide whether to restart the run; errors that a restart cannot fix end the script.
judge() {
  local now
  case $OUTCOME in
    finished) report "$NAME: done" && exit ;;
    mistake) end "$JOB_STATUS" "the run stopped and cannot resume: $WHY; $(billed)" ;;
    interrupted) end "$INTERRUPTED" "$WHY; $(billed)" ;;
  esac
  now=$(last_saved_step)
  if ((now > saved)); then stalls=0 saved=$now; else ((++stalls)); fi
  ((stalls <= MAX_STALLS)) ||
    die "$MAX_STALLS restarts without a newer checkpoint; the last one ended by: $WHY; $(billed)"
  say "$NAME: $WHY; restarting from step $saved (without progress: $stalls of $MAX_STALLS)"
  setup_again=''
  [[ $OUTCOME == restart && $WHY != *none* ]] || setup_again=yes
  [[ $OUTCOME == gone ]] || stop_job "$train"
}

trap 'report "the job keeps running and is billed; launch/run.sh resumes watching it"; exit "$INTERRUPTED"' INT
read_settings
require PROJECT ZONE NAME ACCELERATOR_TYPE RUNTIME_VERSION CAPACITY SERVICE_ACCOUNT BUCKET CONFIG OUTPUT
require_run
require_committed
REVISION=$(commit) # Fixed, so that every restart runs the same code.
export REVISION SETTINGS
# A restart reads the compiled step from the bucket.
train="env$(quoted "JAX_COMPILATION_CACHE_DIR=$MOUNT/compiled") $PYTHON -m llama_cpt.train"
train+=$(quoted "$CONFIG" --output "$OUTPUT" "${TRAIN_ARGS[@]}")
saved=$(last_saved_step)
dry && saved=0
stalls=0 setup_again='' started='' hosts=0
while true; do
  attempt
  judge
  pause
done
