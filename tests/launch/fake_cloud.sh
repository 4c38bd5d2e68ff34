#!/usr/bin/env bash
# A fake of Google Cloud. By the name that it is called by, it is gcloud (with the real gcloud: ssh,
# scp), a program of a host (sudo, curl, gcsfuse, uv, hostname, mountpoint, python), or xpk. A host is
# a folder, which is HOME there.
#
# $CLOUD/plan/VERB has one line per call of VERB; later calls are "ok". create: the states of the
# request, separated by commas; refused; hang; late (accepted without an answer); gone (accepted, then
# missing). delete: busy. list: down. ssh: hang; deaf (one host does not answer). rsync: down. train:
# the step that is saved, then an exit status per host, or mistake, check, option, crash, hang,
# preempt. export: nothing (is written), hang, 78 (a user error). xpk: fails.
set -euo pipefail
CALLED=$(basename "$0")

note() { printf '%s\n' "$*" >>"$CLOUD/calls"; }

# planned VERB: print its next line.
planned() {
  local file=$CLOUD/plan/$1 line=ok
  [[ ! -s $file ]] || { line=$(head -n 1 "$file") && sed -i 1d "$file"; }
  printf '%s\n' "$line"
}

# Print the path that represents gs://BUCKET/...
in_bucket() { printf '%s/bucket/%s' "$CLOUD" "$(cut -d/ -f4- <<<"$1")"; }

# List one level of a folder in the bucket, in the format of gcloud.
list_bucket() {
  find "$(in_bucket "$1")" -mindepth 1 -maxdepth 1 \( -type d -printf "$1%f/\n" -o -printf "$1%f\n" \) 2>/dev/null
}

# Print the state of the request, and advance it by one.
request() {
  local states=''
  [[ ! -f $CLOUD/request ]] || states=$(<"$CLOUD/request")
  [[ $states != *,* ]] || printf '%s' "${states#*,}" >"$CLOUD/request"
  printf '%s' "${states%%,*}"
}

nodes() { find "$CLOUD/hosts" -mindepth 1 -maxdepth 1 -printf '%f\n' 2>/dev/null | sort; }

# Delete virtual machines and kill what runs on them.
power_off() {
  local group
  for group in "$CLOUD"/hosts/*/*/llama_cpt_job/group; do
    [[ ! -f $group ]] || kill -KILL -- "-$(<"$group")" 2>/dev/null || true
  done
  rm -rf "$CLOUD/hosts"
}

power_on() {
  local node worker
  for node in $FAKE_NODES; do
    for ((worker = 0; worker < FAKE_WORKERS; worker++)); do mkdir -p "$CLOUD/hosts/$node/$worker"; done
  done
}

serve_late() { sleep 2 && printf 'ACTIVE' >"$CLOUD/request" && power_on; }

create() {
  local how
  how=$(planned create)
  case $how in
    refused) echo "RESOURCE_EXHAUSTED: quota" >&2 && exit 1 ;;
    late)
      export -f power_on serve_late
      setsid bash -c serve_late >/dev/null 2>&1 &
      sleep 1000
      ;;
    gone) return ;;
    hang) printf 'ACTIVE' >"$CLOUD/request" && power_on && sleep 1000 ;;
    ok) printf 'WAITING_FOR_RESOURCES,PROVISIONING,ACTIVE' >"$CLOUD/request" ;;
    *) printf '%s' "$how" >"$CLOUD/request" ;;
  esac
  power_on
}

delete() {
  [[ $(planned delete) != busy ]] || { echo "FAILED_PRECONDITION" >&2 && exit 1; }
  power_off
  rm -f "$CLOUD/request"
}

list_nodes() {
  local node
  [[ -f $CLOUD/request ]] || [[ -d $CLOUD/hosts ]] || return 0
  for node in $(nodes); do printf '%s\tREADY\t%s\n' "$node" "$FAKE_WORKERS"; done
  printf 'somebody-elses\tREADY\t4\n'
}

# ssh: run the command on every selected host. gcloud exits with 0 even if it did not reach one.
on_hosts() {
  local node=$1 worker=$2 command=$3 how place skipped=''
  how=$(planned ssh)
  [[ $how != hang ]] || sleep 1000
  [[ $(request) == ACTIVE ]] || { echo "cannot connect" >&2 && exit 255; }
  for place in "$CLOUD"/hosts/*/*; do
    [[ $node == all ]] || [[ $place == "$CLOUD"/hosts/*"/$worker" ]] || continue
    [[ $how != deaf || -n $skipped ]] || { skipped=yes && continue; }
    echo "SSH: Attempting to connect to worker ${place##*/}..." >&2
    (cd "$place" && HOME=$place USER=me bash -c "$command" </dev/null 3>&-) || true
  done
}

gcloud() {
  local argument node='' worker='' command='' files=()
  for argument in "$@"; do
    case $argument in
      --node=*) node=${argument#*=} ;;
      --worker=*) worker=${argument#*=} ;;
      --command=*) command=${argument#*=} ;;
      --*) ;;
      *) files+=("$argument") ;;
    esac
  done
  case "$*" in
    "compute tpus queued-resources list"*)
      local state
      [[ $(planned list) != down ]] || { echo "no network" >&2 && exit 1; }
      state=$(request)
      printf 'somebody-elses\tACTIVE\n'
      [[ -z $state ]] || printf '%s\t%s\n' cpt "$state"
      ;;
    "compute tpus tpu-vm list"*) list_nodes ;;
    "compute tpus queued-resources create"*) note "create ${*:5}" && create ;;
    "compute tpus queued-resources delete"*) note delete && delete ;;
    "compute tpus queued-resources scp"*)
      note scp
      for place in "$CLOUD"/hosts/*/*; do cp "${files[4]}" "$place/${files[5]#*:}"; done
      ;;
    "compute tpus queued-resources ssh"*) note "ssh $command" && on_hosts "$node" "$worker" "$command" ;;
    "storage cp"*)
      note cp
      mkdir -p "$(dirname "$(in_bucket "${files[3]}")")"
      cp "${files[2]}" "$(in_bucket "${files[3]}")"
      ;;
    "storage cat"*) cat "$(in_bucket "${files[2]}")" ;;
    "storage ls"*/checkpoints/) list_bucket "${files[2]}" ;;
    "storage ls"*) [[ -e $(in_bucket "${files[2]}") ]] ;;
    "storage rsync"*) note "rsync ${files[2]}" && [[ $(planned rsync) != down ]] ;;
    *) echo "unknown: $*" >&2 && exit 2 ;;
  esac
}

export_model() {
  case $(planned export) in
    nothing) ;;
    hang) trap 'exit 75' TERM && { sleep 1000 & wait $!; } ;;
    78) echo "error: the tokenizer is gone" && exit 78 ;;
    *) mkdir -p "$(in_bucket "$1")" && touch "$(in_bucket "$1")/config.json" ;;
  esac
}

# xpk: the workloads are the lines of a file, printed after other output.
xpk() {
  note "xpk $*"
  [[ $(planned xpk) != fails ]] || exit 1
  case "$*" in
    "workload list"*) printf '[XPK] Starting workload list\nJobset Name   Status\n' && cat "$CLOUD/workloads" 2>/dev/null || true ;;
    "workload create"*) printf 'cpt-2   Admitted\ncpt   Admitted\n' >"$CLOUD/workloads" ;;
    "workload delete"*) rm "$CLOUD/workloads" ;;
  esac
}

# save STEP OUTPUT: write a checkpoint of two processes.
save() {
  local run
  run=$(in_bucket "$2")
  mkdir -p "$run/checkpoints/$1"
  touch "$run/checkpoints/$1/array" "$run/checkpoints/$1".manifest-0000{0,1}-of-00002.json
  echo '{}' >"$run/metrics.jsonl"
}

# Run the training or the export on one host.
python() {
  local attempt host step statuses status
  [[ $* != *to-hf* ]] || { export_model "${*: -1}" && exit; }
  [[ $* == *configs/* ]] || exit 0
  host=$(basename "$(dirname "$HOME")")-$(basename "$HOME")
  attempt=$(cat "$CLOUD/attempts.$host" 2>/dev/null || echo 1)
  echo $((attempt + 1)) >"$CLOUD/attempts.$host"
  printf '%s\n' "$*" >>"$CLOUD/trained.$host"
  read -r step statuses < <(sed -n "${attempt}p" "$CLOUD/plan/train")
  ((step == 0)) || save "$step" "$5"
  read -ra statuses <<<"$statuses"
  status=${statuses[$(find "$CLOUD/hosts" -mindepth 2 -maxdepth 2 | sort | grep -n -x "$HOME" | cut -d: -f1) - 1]:-${statuses[0]}}
  case $status in
    mistake) echo "data.prepared: no such folder; run prepare" && exit 78 ;;
    check) printf '%s\n' "error: run: differs from base" "a warning at the end" && exit 65 ;;
    option) echo "python -m llama_cpt.train: error: argument --profile: expected one argument" && exit 2 ;;
    crash) printf '%s\n' "Traceback (most recent call last):" "error: RuntimeError: INTERNAL: a core halted" && exit 1 ;;
    preempt) printf 'SUSPENDED' >"$CLOUD/request" && exit 75 ;;
    hang) trap 'echo 75 >>"$CLOUD/stopped"; exit 75' TERM && { sleep 1000 & wait $!; } ;;
    134) ulimit -c 0 && kill -ABRT $$ ;;
    *) exit "$status" ;;
  esac
}

# ssh and scp are called by the real gcloud; google_cloud.py gives the hosts their addresses.
host_at() { dirname "$(grep -l -x "${1#*@}" "$CLOUD"/hosts/*/*/address)"; }

ssh() {
  local place=''
  while [[ $1 != -- ]]; do
    [[ $1 != *@* ]] || place=$(host_at "$1")
    shift
  done
  cd "$place" && HOME=$place USER=me exec bash -c "${*:2}" </dev/null
}

scp() {
  local from=${*: -2:1} to=${*: -1}
  cp "$from" "$(host_at "${to%:*}")/${to##*:}"
}

case $CALLED in
  gcloud | python | scp | ssh | xpk) "$CALLED" "$@" ;;
  hostname) printf '%s-%s\n' "$(basename "$(dirname "$HOME")")" "$(basename "$HOME")" ;;
  mountpoint) [[ -L $2 ]] ;;
  gcsfuse)
    # Hosts share the mount and start at the same time, and each makes the folder.
    exec 9>"$CLOUD/mount.lock" && flock 9
    until [[ -L ${*: -1} ]] || ln -sT "$CLOUD/bucket" "${*: -1}"; do rmdir "${*: -1}"; done 2>/dev/null
    ;;
  sudo) [[ $1 != mkdir ]] || "$@" ;;
  uv)
    case "$1 $2" in
      "pip install") printf '%s\n' "$*" >>"$CLOUD/packages" ;;
      "pip freeze") echo "jax==0.10.0" ;;
    esac
    [[ $1 != venv ]] || { mkdir -p "${*: -1}/bin" && ln -s "$CLOUD/bin/python" "${*: -1}/bin/python"; } ;;
esac
