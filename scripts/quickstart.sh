#!/usr/bin/env bash
# From a fresh clone to a reconstructed scene: installs into .venv, makes a small demo scene, learns it without and with hard sample
# mining for a minute each, compares the two and renders a video. Works without a GPU; uses an NVIDIA GPU where there is one.
#
#   bash scripts/quickstart.sh [--system] [--minutes M]
#
# --system     take $PYTHON (python3) as it is, in place of a virtual environment
# --minutes M  minutes of training for each of the two runs (1)
#
# scripts/environment.sh names the variables that choose Python and the build of torch. Running it again keeps the environment and the
# scene and trains anew.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

SCENE=data/demo
RUNS=trial_demo
MINUTES=1
SYSTEM=no
while [ $# -gt 0 ]; do
    case $1 in
        --system) SYSTEM=yes ;;
        --minutes) [ $# -gt 1 ] || fail "--minutes needs a number"; MINUTES=$2; shift ;;
        -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) fail "unknown argument $1; --help lists them" ;;
    esac
    shift
done

step() {
    echo
    echo "== $* (${SECONDS} s so far)"
}

# A GPU is used when torch can use it and the kernels can be compiled for it.
choose_device() {
    "$PYTHON" - <<'PYTHON_END'
import sys

import torch

from kernel_build import BuildError, check_compilers

device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cuda":
    try:
        check_compilers(True)
    except BuildError as error:
        print(f"There is a GPU, but {error} Going on with the CPU.", file=sys.stderr)
        device = "cpu"
print(device)
PYTHON_END
}

# Cameras stand close to what they see in this small room (--min_near). It is also tiny, so it is trained with the sizes that a CPU takes by
# itself, on a GPU too: those for large photos would learn its few by heart.
FLAGS=(-O --min_near 0.05 --num_points 16384 --grid_size 64 --max_steps 256 --log2_table_size 15)

train() {
    local workspace=$1
    shift
    "$PYTHON" main.py "$SCENE" --workspace "$workspace" "${FLAGS[@]}" "$@" --device "$DEVICE" --max_training_time "$MINUTES" --eval_cnt 3 \
        --save_cnt 2 --ckpt scratch
}

step "1/6 Python packages"
require_compiler
if [ "$SYSTEM" = yes ]; then use_system_python; else use_virtual_environment; fi
DEVICE=$(choose_device)
echo "$("$PYTHON" --version), torch $("$PYTHON" -c 'import torch; print(torch.__version__)'), device $DEVICE"

step "2/6 Demo scene"
if [ -f "$SCENE/sparse/0/points3D.bin" ]; then
    echo "$SCENE is there already."
else
    "$PYTHON" scripts/make_demo_scene.py "$SCENE"
fi

step "3/6 Baseline, $MINUTES min of training"
train "$RUNS/baseline"

step "4/6 Hard sample mining, $MINUTES min of training"
train "$RUNS/hsm" --hsm

step "5/6 Video of the second run"
"$PYTHON" main.py "$SCENE" --workspace "$RUNS/hsm" "${FLAGS[@]}" --hsm --device "$DEVICE" --test --video_frames 60

step "6/6 Comparison"
"$PYTHON" scripts/report.py "$RUNS/baseline" "$RUNS/hsm" --out "$RUNS/comparison"
echo
echo "Done in $((SECONDS / 60)) min $((SECONDS % 60)) s. Open $RUNS/comparison/index.html; pictures and videos are in $RUNS/baseline and $RUNS/hsm too."
echo "Your own photos next: python main.py SCENE -O --hsm (see README.md)."
