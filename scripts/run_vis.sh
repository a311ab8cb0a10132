#!/usr/bin/env bash
# The paper's claims on one scene: trains the baseline, hard sample mining, and a control that learns from a quarter of the samples drawn
# uniformly, each for the same time and with the same validation clock; then makes one page and one video of the three, side by side.
#
#   bash scripts/run_vis.sh [--system] [--max_training_time M] [--val_checkpoint S] [--out DIR] [SCENE] [-- FLAGS]
#
# SCENE                  folder of the scene (data/bonsai)
# --max_training_time M  minutes of training of each run (4)
# --val_checkpoint S     seconds of training between validations (5)
# --out DIR              where the runs and the report go (trial_vis)
# --system               take $PYTHON (python3) as it is, in place of a virtual environment
# -- FLAGS               what main.py gets, in place of: -O; and for a scene named bonsai the paper's flags for it
#
# scripts/environment.sh names the variables that choose Python and the build of torch. Every call trains anew.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
source scripts/training_sets.sh

SCENE=
MINUTES=4
CLOCK=5
OUT=trial_vis
SYSTEM=no
FLAGS=()
while [ $# -gt 0 ]; do
    case $1 in
        --system) SYSTEM=yes ;;
        --max_training_time | --val_checkpoint | --out)
            [ $# -gt 1 ] || fail "$1 needs a value"
            case $1 in --max_training_time) MINUTES=$2 ;; --val_checkpoint) CLOCK=$2 ;; --out) OUT=$2 ;; esac
            shift ;;
        -h | --help) usage 14; exit 0 ;;
        --) shift; FLAGS=("$@"); break ;;
        -*) fail "unknown argument $1; --help lists them, and flags of main.py go after --" ;;
        *) [ -z "$SCENE" ] || fail "two scenes given, $SCENE and $1: name one"; SCENE=$1 ;;
    esac
    shift
done
SCENE=${SCENE:-data/bonsai}
[ -d "$SCENE" ] || fail "no scene at $SCENE: name the folder of one, such as data/demo, which scripts/quickstart.sh makes"
if [ ${#FLAGS[@]} -eq 0 ]; then
    FLAGS=(-O)
    if [ "$(basename "$SCENE")" = bonsai ]; then
        # Half size, as in the paper's script, where the data set's half-size photos are there; else the photos as they are.
        FLAGS+=("${INDOOR[@]}" --seed 1)
        if [ -d "$SCENE/images_2" ]; then FLAGS+=(--downscale 2); fi
    fi
fi

prepare
for SET in baseline hsm uniform; do
    train_set "$SCENE" "$OUT" "$SET" "${FLAGS[@]}" --max_training_time "$MINUTES" --val_checkpoint "$CLOCK" --save_cnt 2 --ckpt scratch
done
report "$OUT/report" "$OUT/baseline" "$OUT/hsm" "$OUT/uniform"
