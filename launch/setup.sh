#!/usr/bin/env bash
# Install the code on all hosts and mount the bucket; run it again to install a newer commit.
set -euo pipefail
LAUNCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$LAUNCH/lib/commands.sh"
source "$LAUNCH/lib/settings.sh"
source "$LAUNCH/lib/capacity.sh"
source "$LAUNCH/lib/hosts.sh"

# Upload the commit REVISION (default: HEAD) to the bucket, from which every host installs it.
upload_code() {
  local archive
  revision=$(commit)
  [[ -z $(git -C "$LAUNCH" status --porcelain) ]] || say "warning: uncommitted changes are not uploaded"
  archive=$(mktemp)
  git -C "$LAUNCH/.." archive --format=tar.gz --output="$archive" "$revision"
  call "$QUERY_SECONDS" gcloud storage cp "$archive" "gs://$BUCKET/code/$revision.tar.gz"
  rm "$archive"
}

read_settings
require PROJECT ZONE NAME BUCKET
require_run
where=$(capacity "ready $SLICES") || die "$NAME: gcloud does not report its state"
[[ $where == ready* ]] || die "$NAME is not ready ($where); run launch/create.sh"
hosts=${where#ready }
upload_code
call "$SETUP_SECONDS" gcloud compute tpus queued-resources scp "$LAUNCH/on_host/install.sh" \
  "$NAME:llama_cpt_install.sh" "--project=$PROJECT" "--zone=$ZONE" --node=all --worker=all --quiet \
  "${SSH_FLAGS[@]}" || die "$NAME: cannot copy install.sh to the hosts"
installed=$(answers @installed "$SETUP_SECONDS" \
  "bash llama_cpt_install.sh$(quoted "$BUCKET" "$MOUNT" "code/$revision.tar.gz")")
dry || (($(count "$installed") == hosts)) ||
  die "$NAME: installed on $(count "$installed") of $hosts hosts; see the error above"
report "$NAME: $revision is installed on all hosts"
