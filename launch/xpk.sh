#!/usr/bin/env bash
# Create a cluster and train on Google Kubernetes Engine, through xpk:
# launch/xpk.sh create|run|status|stop|delete
set -euo pipefail
LAUNCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$LAUNCH/lib/commands.sh"
source "$LAUNCH/lib/settings.sh"

on_cluster() {
  local seconds=$1
  shift
  call "$seconds" xpk "$@" "--cluster=$CLUSTER" "--project=$PROJECT" "--zone=$ZONE"
}

create() {
  local flags=()
  case $CAPACITY in
    spot) flags+=(--spot) ;;
    on-demand) flags+=(--on-demand) ;;
    reserved) require RESERVATION && flags+=("--reservation=$RESERVATION") ;;
  esac
  on_cluster "$CREATE_SECONDS" cluster create "--tpu-type=$ACCELERATOR_TYPE" \
    "--num-slices=$SLICES" "${flags[@]}" --enable-workload-identity --enable-gcsfuse-csi-driver ||
    die "$CLUSTER: not created; its parts may be billed until launch/xpk.sh delete"
  on_cluster "$SETUP_SECONDS" storage attach "$BUCKET" --type=gcsfuse "--bucket=$BUCKET" \
    "--mount-point=$MOUNT" --readonly=false --size=1 --auto-mount=false ||
    die "$CLUSTER: gs://$BUCKET is not attached; the cluster is billed until launch/xpk.sh delete"
}

# Print the line of this workload, which remains in the list for some hours after its end, if any.
workload() {
  local listed
  listed=$(on_cluster "$QUERY_SECONDS" workload list) || die "$CLUSTER: its workloads cannot be listed"
  awk -v name="$NAME" '$1 == name' <<<"$listed"
}

# xpk itself restarts after status 42 and 127 to 255 (134 is a lost peer), and after those given here:
# 75, a save before the end, and 1, a bug. Others end the workload: 2, 65 and 78.
run() {
  local command existing
  existing=$(workload)
  [[ -z $existing ]] ||
    { say "$existing" && say "$NAME: already exists; to start it over: launch/xpk.sh stop, then run" && return; }
  # A restart reads the compiled step from the bucket.
  command="export$(quoted "JAX_COMPILATION_CACHE_DIR=$MOUNT/compiled")"
  command+=" && ln -sfn$(quoted "$MOUNT/data") data && ln -sfn$(quoted "$MOUNT/weights") weights"
  command+=" && pip install -q -e '.[tpu,qwix]'"
  command+=" && python -m llama_cpt.train$(quoted "$CONFIG" --output "$OUTPUT" "${TRAIN_ARGS[@]}")"
  on_cluster "$SETUP_SECONDS" workload create "--workload=$NAME" "--tpu-type=$ACCELERATOR_TYPE" \
    "--num-slices=$SLICES" "--max-restarts=$MAX_RESTARTS" --restart-on-exit-codes=1,75 \
    "--termination-grace-period-seconds=$GRACE_SECONDS" \
    --base-docker-image=python:3.11 "--script-dir=$LAUNCH/.." "--storage=$BUCKET" "--command=$command"
}

read_settings
require PROJECT ZONE NAME CLUSTER ACCELERATOR_TYPE CAPACITY SLICES BUCKET CONFIG OUTPUT
require_run
: "${MAX_RESTARTS:=50}"
case ${1:-} in
  create) create ;;
  run) run ;;
  status) on_cluster "$QUERY_SECONDS" workload list ;;
  stop) on_cluster "$SETUP_SECONDS" workload delete "--workload=$NAME" --force ;;
  delete) on_cluster "$CREATE_SECONDS" cluster delete --force ;;
  *) end "$USAGE" "usage: launch/xpk.sh create|run|status|stop|delete" ;;
esac
