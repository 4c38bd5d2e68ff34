# Sourced, after commands.sh: the checkpoints in OUTPUT.
# shellcheck shell=bash

# Print the steps of the complete checkpoints, ascending, one per line. As in
# llama_cpt/checkpoint/manifest.py, a checkpoint is complete if its folder and all N files
# STEP.manifest-PART-of-N.json exist.
complete_steps() {
  call "$QUERY_SECONDS" gcloud storage ls "$OUTPUT/checkpoints/" 2>/dev/null | awk -F/ '
    $NF == "" { folders[$(NF - 1)] }
    $NF ~ /^[0-9]+\.manifest-[0-9]+-of-[0-9]+\.json$/ {
      split($NF, word, /\.manifest-|-of-|\.json/)
      step = word[1]
      mixed[step] += step in parts && parts[step] != word[3]
      parts[step] = word[3]
      found[step]++
    }
    END {
      for (step in found)
        if (step in folders && !mixed[step] && found[step] == parts[step] + 0) print step
    }
  ' | sort -n || true
}

# Print the step of the last complete checkpoint, 0 if there is none.
last_saved_step() { { echo 0 && complete_steps; } | tail -n 1; }
