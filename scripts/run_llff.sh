#!/usr/bin/env bash
# The paper's forward-facing scene of LLFF, fern, without and with hard sample mining; results as one page, one JSON and one table.
#
#   bash scripts/run_llff.sh [--system] [--max_training_time M] [--scenes "NAME ..."] [--out DIR] [DATA] [-- FLAGS]
#
# DATA                   folder of the scenes (data/nerf_llff_data); one that is missing is skipped
# --max_training_time M  minutes of training of each run (8)
# --scenes "NAME ..."    scenes to train (fern)
# --out DIR              where the runs and the report go (trial_llff)
# --system               take $PYTHON (python3) as it is, in place of a virtual environment
# -- FLAGS               what main.py gets besides
#
# Running it again goes on where it was interrupted. scripts/environment.sh names the variables that choose Python and the build of torch.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
source scripts/training_sets.sh

DATA=data/nerf_llff_data
MINUTES=8
SCENES=fern
OUT=trial_llff
read_arguments 13 "$@"

scene_flags() {
    FLAGS=(-O --downscale 4 --bound 4)
}

train_scenes
