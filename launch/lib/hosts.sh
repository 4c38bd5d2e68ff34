# Sourced, after capacity.sh: commands on the hosts, and one job watched there to its end.
# shellcheck shell=bash disable=SC2034 # what is set here is for the scripts

NODES=all WORKERS=all # which hosts on_hosts means
JOB_STATUS=1
# shellcheck disable=SC2088 # the host expands it
JOB='bash ~/llama_cpt/launch/on_host/job.sh'
# shellcheck disable=SC2088
PYTHON='~/llama_cpt_venv/bin/python'

on_hosts() {
  call "$1" gcloud compute tpus queued-resources ssh "$NAME" "--project=$PROJECT" "--zone=$ZONE" \
    "--node=$NODES" "--worker=$WORKERS" --quiet "${SSH_FLAGS[@]}" "--command=$2"
}

# answers MARK SECONDS COMMAND: the lines that begin with MARK. One a host is counted, because
# gcloud goes on without a node that it does not reach and says 0.
answers() {
  local said
  said=$(on_hosts "$2" "$3") || true
  grep -a "^$1" <<<"$said" || true
}

count() { grep -c . <<<"$1" || true; }

# start_job COMMAND HOSTS REVISION: on all of them, or 1 and WHY. Where it runs already it is left
# alone. REVISION: any, or the one that they must hold.
start_job() {
  local started time other misses=0 batches=$((($2 - 1) / 64))
  while true; do
    # gcloud reaches 64 hosts at a time, and hosts do not wait long for each other.
    time=$(($(date +%s) + 30 * batches))
    started=$(answers @job "$SSH_SECONDS" "$JOB start $time $MOUNT $NAME $3 $1")
    ! dry || return 0
    if other=$(grep -m 1 -o ' busy .*' <<<"$started"); then
      stop_job "$1" # where it did start it would wait for the others in vain
      die "$NAME: another job runs there: ${other# busy };" \
        "wait for its end, or stop it (launch/README.md, By hand)"
    fi
    if other=$(grep -m 1 -o ' holds .*' <<<"$started"); then
      WHY="the hosts hold the code of commit ${other# holds }, not $3"
      return 1
    fi
    if grep -q ' unmounted$' <<<"$started"; then
      WHY="the bucket is not mounted on all hosts, which launch/setup.sh mends"
      return 1
    fi
    (($(count "$started") != $2)) || return 0
    ((++misses < MAX_MISSES)) || { WHY="the job does not start on all hosts" && return 1; }
    pause
  done
}

# stop_job [COMMAND]: no other one; none is whatever runs.
stop_job() { answers @job "$((SSH_SECONDS + GRACE_SECONDS))" "$JOB stop $GRACE_SECONDS ${1:-}" >/dev/null; }

# watch_job COMMAND HOSTS: until it has ended on all of them. OUTCOME is finished, mistake, interrupted,
# restart, gone or unreachable; WHY says it in words, and JOB_STATUS is the status of a mistake.
watch_job() {
  local hosts=$2 misses=0 deadline='' where states running
  while true; do
    pause
    where=$(capacity "ready $hosts") || where=unknown
    case $where in
      none | lost*) OUTCOME=gone WHY="the TPUs were taken away (${where#lost })" && return ;;
      unknown) say "gcloud does not answer; the job goes on" && continue ;;
    esac
    states=$(answers @job "$SSH_SECONDS" "$JOB state" 2>/dev/null) # every minute gcloud's chatter
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
      say "$running of $hosts hosts are left behind: stopping them"
      stop_job "$1"
    fi
  done
}

# read_outcome STATES: lines of job.sh, of hosts that have all ended. Their statuses alone decide.
read_outcome() {
  local statuses mistake
  statuses=$(awk '{ print $4 == "" ? $3 : $4 }' <<<"$1" | sort -u | xargs)
  case " $statuses " in
    " 0 ") OUTCOME=finished WHY='' ;;
    *" $INTERRUPTED "*) OUTCOME=interrupted WHY="a person stopped it on a host" ;;
    *" $USER_ERROR "* | *" $CHECK_FAILED "* | *" $USAGE "*)
      mistake=$(awk -v lasting=" $USER_ERROR $CHECK_FAILED $USAGE " '
        index(lasting, " " $4 " ") { $1 = $2 = $3 = ""; print; exit }' <<<"$1")
      read -r JOB_STATUS WHY <<<"$mistake"
      OUTCOME=mistake WHY="${WHY#error: } (exit status $JOB_STATUS)"
      ;;
    *) OUTCOME=restart WHY="exit status $statuses" ;;
  esac
}
