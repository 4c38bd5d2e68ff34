# Sourced by every script, after commands.sh: reading and validation of the settings of a run.
# shellcheck shell=bash disable=SC2034 # The variables are used by the scripts.

SETTINGS=${SETTINGS:-$LAUNCH/settings.env}

# Set the defaults; the file and the environment take precedence. Times are in seconds.
read_settings() {
  [[ -f $SETTINGS ]] || reject "$SETTINGS is missing; copy launch/settings.env.example to it and fill it in"
  TRAIN_ARGS=() CREATE_FLAGS=() SSH_FLAGS=()
  # Variables that the file uses without setting them are reported by require.
  set +u
  # shellcheck source=/dev/null
  source "$SETTINGS"
  set -u
  OUTPUT=${OUTPUT:-} EXPORT=${EXPORT:-}
  OUTPUT=${OUTPUT%/} EXPORT=${EXPORT%/}
  : "${SLICES:=1}" "${MOUNT:=/mnt/llama_cpt}" "${COLLECTED:=collected}"
  : "${POLL_SECONDS:=60}"     # between two polls
  : "${QUERY_SECONDS:=120}"   # for one call of gcloud
  : "${SSH_SECONDS:=300}"     # for one command on all hosts; gcloud itself retries ten times
  : "${SETUP_SECONDS:=1800}"  # to install on all hosts
  : "${CREATE_SECONDS:=86400}" # in the queue
  : "${DELETE_SECONDS:=1800}" # until nothing is left
  : "${GRACE_SECONDS:=300}"   # after the first host's end, before the others are stopped
  : "${MAX_MISSES:=5}"        # consecutive polls without an answer of all hosts
  : "${MAX_STALLS:=5}"        # consecutive restarts without a newer checkpoint
}

# require NAME...: end, naming every missing setting, unless all are set.
require() {
  local setting missing=()
  for setting in "$@"; do
    [[ -n ${!setting:-} ]] || missing+=("$setting")
  done
  ((${#missing[@]} == 0)) ||
    reject "$SETTINGS: missing: ${missing[*]}; launch/settings.env.example describes them"
  [[ $NAME =~ ^[a-z]([-a-z0-9]{0,48}[a-z0-9])?$ ]] ||
    reject "$SETTINGS: NAME=$NAME must be lowercase letters, digits and -, starting with a letter"
  [[ $SLICES =~ ^[1-9][0-9]*$ ]] || reject "$SETTINGS: SLICES=$SLICES must be a number of slices, at least 1"
  # An arithmetic expression would evaluate any other text.
  for setting in {QUERY,SSH,SETUP,CREATE,DELETE,GRACE,COLLECT}_SECONDS MAX_{MISSES,STALLS,RESTARTS}; do
    [[ ${!setting:-0} =~ ^[0-9]+$ ]] || reject "$SETTINGS: $setting=${!setting} must be a whole number"
  done
  [[ $POLL_SECONDS =~ ^[0-9]+(\.[0-9]+)?$ ]] ||
    reject "$SETTINGS: POLL_SECONDS=$POLL_SECONDS must be a number of seconds"
}

# Validate settings whose errors would appear only after the TPUs are created. delete.sh does not need
# them.
require_run() {
  local setting word
  [[ ${CAPACITY:-spot} =~ ^(spot|reserved|on-demand)$ ]] ||
    reject "$SETTINGS: CAPACITY=$CAPACITY must be spot, reserved or on-demand"
  [[ ${BUCKET:-} != *[:/]* ]] || reject "$SETTINGS: BUCKET=$BUCKET must be a bare name, without gs://"
  for setting in OUTPUT EXPORT; do
    [[ ${!setting:-gs://} == gs://* ]] ||
      reject "$SETTINGS: $setting=${!setting} would be lost with the hosts; use gs://\$BUCKET/..."
    [[ ${!setting:-} != *[]*?[#]* ]] ||
      reject "$SETTINGS: $setting=${!setting} must not contain * ? [ ] #, which storage clients interpret"
    [[ ! ${!setting:-} =~ ^gs://(BUCKET)?/ ]] ||
      reject "$SETTINGS: $setting=${!setting} does not name a bucket; fill in BUCKET, and write gs://\$BUCKET/..."
  done
  for word in "${TRAIN_ARGS[@]}" "${CREATE_FLAGS[@]}" "${SSH_FLAGS[@]}"; do
    [[ ! $word =~ ^--([^=]*\ |.*\ --) ]] ||
      reject "$SETTINGS: \"$word\" is one word; write a list in parentheses, such as ($word)"
  done
}

# Print the commit for the hosts: REVISION, or HEAD.
commit() { git -C "$LAUNCH" rev-parse --short=12 "${REVISION:-HEAD}"; }

# Hosts get a commit, not the working tree, so that CONFIG must be committed. With REVISION, which
# run.sh sets for its restarts, the working tree may have changed.
require_committed() {
  local file=$CONFIG
  [[ $file != *.py:* ]] || file=${file%:*} # FILE.py:NAME is a variable of the file
  git -C "$LAUNCH/.." cat-file -e "${REVISION:-HEAD}:./$file" 2>/dev/null ||
    reject "$SETTINGS: CONFIG=$CONFIG is not in the commit ${REVISION:-HEAD}; git add and commit it"
  [[ -n ${REVISION:-} ]] || git --literal-pathspecs -C "$LAUNCH/.." diff --quiet HEAD -- "$file" ||
    reject "$SETTINGS: CONFIG=$CONFIG differs from the commit, which the hosts get; commit it"
}
