#!/usr/bin/env bash
# The paper's scenes of Mip-NeRF 360, each without and with hard sample mining; results as one page, one JSON and one table.
#
#   bash scripts/run_360.sh [--system] [-O2] [--max_training_time M] [--scenes "NAME ..."] [--out DIR] [DATA] [-- FLAGS]
#
# DATA                   folder of the scenes (data/360); one that is missing is skipped
# --max_training_time M  minutes of training of each run (4)
# --scenes "NAME ..."    scenes to train (room bonsai kitchen counter garden stump bicycle; with -O2 room bonsai kitchen)
# -O2                    proposal networks in contracted space, in place of the occupancy grid
# --out DIR              where the runs and the report go (trial_360, with -O2 trial_360_O2)
# --system               take $PYTHON (python3) as it is, in place of a virtual environment
# -- FLAGS               what main.py gets besides, such as --num_points 1048576, the paper's batch
#
# Running it again goes on where it was interrupted. scripts/environment.sh names the variables that choose Python and the build of torch.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
source scripts/training_sets.sh

DATA=data/360
MINUTES=4
PRESET=-O
SCENES=
OUT=
read_arguments 14 "$@"
if [ "$PRESET" = -O2 ]; then
    SCENES=${SCENES:-room bonsai kitchen}
    OUT=${OUT:-trial_360_O2}
else
    SCENES=${SCENES:-room bonsai kitchen counter garden stump bicycle}
    OUT=${OUT:-trial_360}
fi

scene_flags() {
    if [ "$PRESET" = -O2 ]; then
        FLAGS=(-O2 --downscale 4 --min_near 0.2 --enable_cam_center)
        return
    fi
    case $1 in
        garden | stump | bicycle) FLAGS=(-O --downscale 8 --bound 16 --min_near 0.2 --enable_cam_center --enable_cam_near_far --background random) ;;
        *) FLAGS=(-O --downscale 4 "${INDOOR[@]}") ;;
    esac
}

train_scenes
