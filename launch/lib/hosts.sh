# Sourced, after capacity.sh: commands on the hosts, and watching a job there until it ends.
# shellcheck shell=bash disable=SC2034 # The variables are used by the scripts.

NODES=all WORKERS=all # The hosts that on_hosts uses.
JOB_STATUS=1
# shellcheck disable=SC2088 # The host expands it.
JOB='bash ~/llama_cpt/launch/on_host/job.sh'
# shellcheck disable=SC2088
PYTHON='~/llama_cpt_venv/bin/python'

on_hosts() {
  call "$1" gcloud compute tpus queued-resources ssh "$NAME" "--project=$PROJECT" "--zone=$ZONE" \
    "--node=$NODES" "--worker=$WORKERS" --quiet "${SSH_FLAGS[@]}" "--command=$2"
}

# answers MARK SECONDS COMMAND: print the lines that begin with MARK, one per host. Callers count
# them, because gcloud skips a node that it does not reach and still exits with 0.
answers() {
  local output
  output=$(on_hosts "$2" "$3") || true
  grep -a "^$1" <<<"$output" || true
}

count() { grep -c . <<<"$1" || true; }

# COMMAND, here and below, is text for the shell of a host: its words are quoted.
#
# start_job COMMAND HOSTS REVISION: start the job on all hosts, or return 1 and set WHY. Hosts on which
# it already runs are left alone. REVISION is any, or the commit that the hosts must have.
start_job() {
  local started time other misses=0 batches=$((($2 - 1) / 64))
  while true; do
    # gcloud connects to 64 hosts at a time, and processes wait only briefly for each other.
    # Therefore all hosts start the job at the same TIME.
    time=$(($(date +%s) + 30 * batches))
    started=$(answers @job "$SSH_SECONDS" "$JOB start$(quoted "$time" "$MOUNT" "$NAME" "$3") $1")
    ! dry || return 0
    if other=$(grep -m 1 -o ' busy .*' <<<"$started"); then
      stop_job "$1" # On hosts where it started, it would wait for the others in vain.
      die "$NAME: another job runs there: ${other# busy };" \
        "wait until it ends, or stop it (launch/README.md, Manual control)"
    fi
    if other=$(grep -m 1 -o ' holds .*' <<<"$started"); then
      WHY="the hosts have the code of commit ${other# holds }, not $3"
      return 1
    fi
    if grep -q ' unmounted$' <<<"$started"; then
      WHY="the bucket is not mounted on all hosts; launch/setup.sh mounts it"
      return 1
    fi
    (($(count "$started") != $2)) || return 0
    ((++misses < MAX_MISSES)) || { WHY="the job did not start on all hosts" && return 1; }
    pause
  done
}

# stop_job [COMMAND]: stop the job if it is COMMAND, or whatever job runs.
stop_job() { answers @job "$((SSH_SECONDS + GRACE_SECONDS))" "$JOB stop$(quoted "$GRACE_SECONDS") ${1:-}" >/dev/null; }

# watch_job COMMAND HOSTS: wait until the job has ended on all hosts. OUTCOME is finished, mistake,
# interrupted, restart, gone or unreachable; WHY is the reason, JOB_STATUS the status of a mistake.
watch_job() {
  local hosts=$2 misses=0 deadline='' where states running
  while true; do
    pause
    where=$(capacity "ready $hosts") || where=unknown
    case $where in
      none | lost*) OUTCOME=gone WHY="the TPUs were taken away (${where#lost })" && return ;;
      unknown) say "gcloud does not answer; the job keeps running" && continue ;;
    esac
    states=$(answers @job "$SSH_SECONDS" "$JOB state" 2>/dev/null) # Without gcloud's messages, which would appear every minute.
    ! dry || states="@job host stopped 0"
    running=$(grep -c ' running$' <<<"$states" || true)
    if ! dry && (($(count "$states") != hosts)); then
      ((++misses < MAX_MISSES)) ||
        { OUTCOME=unreachable WHY="$(count "$states") of $hosts hosts answer" && return; }
      continue
    fi
    misses=0
    ((running)) || { read_outcome "$states" && return; }
    if ((running == hosts)); then
      deadline=''
    elif ((SECONDS >= ${deadline:=$((SECONDS + GRACE_SECONDS))})); then
      say "$running of $hosts hosts still run after the others ended; stopping them"
      stop_job "$1"
    fi
  done
}

# read_outcome STATES: set OUTCOME from the lines of job.sh after all hosts ended. Only the statuses
# decide.
read_outcome() {
  local statuses mistake
  statuses=$(awk '{ print $4 == "" ? $3 : $4 }' <<<"$1" | sort -u | xargs)
  case " $statuses " in
    " 0 ") OUTCOME=finished WHY='' ;;
    *" $INTERRUPTED "*) OUTCOME=interrupted WHY="it was interrupted on a host" ;;
    *" $USER_ERROR "* | *" $CHECK_FAILED "* | *" $USAGE "*)
      mistake=$(awk -v lasting=" $USER_ERROR $CHECK_FAILED $USAGE " '
        index(lasting, " " $4 " ") { $1 = $2 = $3 = ""; print; exit }' <<<"$1")
      read -r JOB_STATUS WHY <<<"$mistake"
      OUTCOME=mistake WHY="${WHY#error: } (exit status $JOB_STATUS)"
      ;;
    *) OUTCOME=restart WHY="exit status $statuses" ;;
  esac
}
