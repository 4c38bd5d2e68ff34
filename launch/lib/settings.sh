# Sourced by every script, after commands.sh: the settings of the run, checked.
# shellcheck shell=bash disable=SC2034 # what is set here is for the scripts

SETTINGS=${SETTINGS:-$LAUNCH/settings.env}

# Times are in seconds; what is set in the file or the environment stands.
read_settings() {
  [[ -f $SETTINGS ]] || reject "$SETTINGS is missing: copy launch/settings.env.example to it and fill it in"
  TRAIN_ARGS=() CREATE_FLAGS=() SSH_FLAGS=()
  # What it uses and does not set, ``require`` names.
  set +u
  # shellcheck source=/dev/null
  source "$SETTINGS"
  set -u
  OUTPUT=${OUTPUT:-} EXPORT=${EXPORT:-}
  OUTPUT=${OUTPUT%/} EXPORT=${EXPORT%/}
  : "${SLICES:=1}" "${MOUNT:=/mnt/llama_cpt}" "${COLLECTED:=collected}"
  : "${POLL_SECONDS:=60}"     # between two looks at what is waited for
  : "${QUERY_SECONDS:=120}"   # for one call of gcloud
  : "${SSH_SECONDS:=300}"     # for one command on all hosts; gcloud tries ten times itself
  : "${SETUP_SECONDS:=1800}"  # to install on all hosts
  : "${CREATE_SECONDS:=86400}" # in the queue
  : "${DELETE_SECONDS:=1800}" # until nothing is left
  : "${GRACE_SECONDS:=300}"   # from the first host's end until the others are stopped
  : "${MAX_MISSES:=5}"        # looks in a row that not all hosts answer
  : "${MAX_STALLS:=5}"        # restarts in a row without a newer checkpoint
}

# require NAME...: stop, and name every setting that is missing.
require() {
  local setting missing=()
  for setting in "$@"; do
    [[ -n ${!setting:-} ]] || missing+=("$setting")
  done
  ((${#missing[@]} == 0)) ||
    reject "$SETTINGS: missing: ${missing[*]}; launch/settings.env.example says what each is"
  [[ $NAME =~ ^[a-z]([-a-z0-9]{0,48}[a-z0-9])?$ ]] ||
    reject "$SETTINGS: NAME=$NAME: use small letters, digits and -, a letter first"
  [[ $SLICES =~ ^[1-9][0-9]*$ ]] || reject "$SETTINGS: SLICES=$SLICES is no number of slices"
}

# What would be found out when TPUs are there already. Not for delete.sh, which needs none of it.
require_run() {
  local setting word
  [[ ${CAPACITY:-spot} =~ ^(spot|reserved|on-demand)$ ]] ||
    reject "$SETTINGS: CAPACITY=$CAPACITY: use spot, reserved or on-demand"
  [[ ${BUCKET:-} != *[:/]* ]] || reject "$SETTINGS: BUCKET=$BUCKET: give its bare name, without gs://"
  for setting in OUTPUT EXPORT; do
    [[ ${!setting:-gs://} == gs://* ]] ||
      reject "$SETTINGS: $setting=${!setting} would be lost with the hosts: use gs://\$BUCKET/..."
    [[ ! ${!setting:-} =~ ^gs://(BUCKET)?/ ]] ||
      reject "$SETTINGS: $setting=${!setting} names no bucket: fill in BUCKET, and write gs://\$BUCKET/..."
  done
  for word in "${TRAIN_ARGS[@]}" "${CREATE_FLAGS[@]}" "${SSH_FLAGS[@]}"; do
    [[ ! $word =~ ^--([^=]*\ |.*\ --) ]] ||
      reject "$SETTINGS: \"$word\" is one word: write a list in parentheses, such as ($word)"
  done
}

# The commit that the hosts are to hold: REVISION, or HEAD.
commit() { git -C "$LAUNCH" rev-parse --short=12 "${REVISION:-HEAD}"; }

# Hosts get a commit, not the working tree: CONFIG has to be in it. After a restart of run.sh, which
# gives REVISION, the working tree may have changed.
require_committed() {
  git -C "$LAUNCH/.." cat-file -e "${REVISION:-HEAD}:./$CONFIG" 2>/dev/null ||
    reject "$SETTINGS: CONFIG=$CONFIG is not in the commit ${REVISION:-HEAD}: git add and commit it"
  [[ -n ${REVISION:-} ]] || git -C "$LAUNCH/.." diff --quiet HEAD -- "$CONFIG" ||
    reject "$SETTINGS: CONFIG=$CONFIG differs from what is committed, which the hosts get: commit it"
}
