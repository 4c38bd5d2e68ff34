#!/usr/bin/env bash
# Install gcsfuse, mount the bucket, and install the code and its packages; it can be repeated.
#   install.sh BUCKET MOUNT ARCHIVE      ARCHIVE: path of the code's tar.gz in the bucket
set -euo pipefail
bucket=$1 mount=$2 archive=$3
code=$HOME/llama_cpt venv=$HOME/llama_cpt_venv revision=$HOME/llama_cpt_revision

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc
  sudo curl -fsSL -o "$key" https://packages.cloud.google.com/apt/doc/apt-key.gpg
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  # A new VM updates itself for some minutes and locks apt during that time.
  sudo apt-get -o DPkg::Lock::Timeout=600 -qq update
  sudo apt-get -o DPkg::Lock::Timeout=600 -qq install -y gcsfuse
}

# No file cache, because hundreds of gigabytes of rows do not fit on the host's disk. Attributes are
# cached for an hour, because rows do not change during a run.
mount_bucket() {
  sudo umount -l "$mount" 2>/dev/null || true # A broken mount.
  sudo mkdir -p "$mount"
  sudo chown "$USER" "$mount"
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=3600 --stat-cache-max-size-mb=-1 \
    --type-cache-max-size-mb=-1 "$bucket" "$mount"
}

unpack_code() {
  rm -rf "$code.new"
  mkdir "$code.new"
  tar -xzf "$mount/$archive" -C "$code.new"
  ln -s "$mount/data" "$mount/weights" "$code.new/"
  rm -rf "$code"
  mv "$code.new" "$code"
}

# Install the same versions on every host that gets this commit, at any time.
install_packages() {
  local versions=$mount/${archive%.tar.gz}.versions.txt known=()
  export PATH=$HOME/.local/bin:$PATH
  command -v uv >/dev/null || curl -fsSL https://astral.sh/uv/install.sh | sh
  # The images have Python 3.10, but the code needs 3.11 or newer.
  [[ -x $venv/bin/python ]] || uv venv --quiet --python 3.11 "$venv"
  [[ ! -f $versions ]] || known=(--constraint "$versions")
  uv pip install --quiet --python "$venv/bin/python" "${known[@]}" -e "${code}[tpu,qwix]"
  [[ ! -f $versions ]] || return 0
  uv pip freeze --python "$venv/bin/python" --exclude-editable >"$HOME/versions.txt"
  cp "$HOME/versions.txt" "$versions" || true # Another host may write the same file.
}

if [[ -f $code/launch/on_host/job.sh ]] && bash "$code/launch/on_host/job.sh" state | grep -q ' running$'; then
  [[ $(cat "$revision" 2>/dev/null) == "$(basename "$archive" .tar.gz)" ]] || {
    echo "a job is running on $(hostname); its code is not replaced" >&2
    exit 1
  }
  printf '@installed %s\n' "$(hostname)" && exit
fi
command -v gcsfuse >/dev/null || install_gcsfuse
mountpoint -q "$mount" || mount_bucket
rm -f "$revision" # Until everything is installed.
unpack_code
install_packages
cd "$code"
JAX_PLATFORMS=cpu "$venv/bin/python" -m llama_cpt.train >/dev/null # Prints its help: a test of the installation.
basename "$archive" .tar.gz >"$revision"
printf '@installed %s\n' "$(hostname)"
