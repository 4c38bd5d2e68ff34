# Sourced, after commands.sh: the checkpoints in OUTPUT.
# shellcheck shell=bash

# Ascending, a line each. Whole is what llama_cpt/checkpoint/manifest.py takes for it: the folder and
# all N of STEP.manifest-PART-of-N.json.
whole_steps() {
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

# 0 before the first.
last_saved_step() { { echo 0 && whole_steps; } | tail -n 1; }
