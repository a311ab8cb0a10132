# Functions that run_vis.sh, run_360.sh, run_synthetic.sh and run_llff.sh share: the kinds of runs, training them, and their report.
# Source it after environment.sh.

# What turns the baseline into each kind of run.
declare -A KINDS=(
    [baseline]=""
    [hsm]="--hsm"
    [uniform]="--hsm --hsm_draw uniform --hsm_budget fixed --hsm_fraction 0.25"
)
# The paper's flags for indoor scenes of Mip-NeRF 360, but for the photos' size.
INDOOR=(--bound 8 --min_near 0.2 --enable_cam_center --enable_cam_near_far --background random)

# The comment at the head of the script, up to line $1.
usage() {
    sed -n "2,$1s/^# \{0,1\}//p" "$0"
}

prepare() {
    require_compiler
    if [ "$SYSTEM" = yes ]; then use_system_python; else use_virtual_environment; fi
}

# train_set SCENE FOLDER KIND FLAGS: one run, into FOLDER/KIND.
train_set() {
    local scene=$1 folder=$2 kind=$3
    shift 3
    echo
    echo "== $(basename "$scene"), $kind ($SECONDS s so far)"
    # shellcheck disable=SC2086 # the kind is several words
    "$PYTHON" main.py "$scene" --workspace "$folder/$kind" "$@" ${KINDS[$kind]}
}

# report FOLDER WORKSPACES: the page, the table and the JSON of all runs.
report() {
    local folder=$1
    shift
    echo
    "$PYTHON" scripts/report.py "$@" --out "$folder"
    echo "Done in $((SECONDS / 60)) min $((SECONDS % 60)) s. All of it is in $folder, beginning with index.html."
}

# Reads the arguments of a script that trains several scenes: DATA, MINUTES, OUT, SYSTEM, SCENES, MORE (flags after --).
# $1: the last line of the script's own help; the rest are its arguments. Defaults must be set before.
read_arguments() {
    local last=$1
    shift
    SYSTEM=no
    MORE=()
    while [ $# -gt 0 ]; do
        case $1 in
            --system) SYSTEM=yes ;;
            --max_training_time | --out | --scenes)
                [ $# -gt 1 ] || fail "$1 needs a value"
                case $1 in --max_training_time) MINUTES=$2 ;; --out) OUT=$2 ;; --scenes) SCENES=$2 ;; esac
                shift ;;
            -h | --help) usage "$last"; exit 0 ;;
            -O2) [ -n "${PRESET:-}" ] || fail "-O2 is for run_360.sh; --help lists the arguments"; PRESET=-O2 ;;
            --) shift; MORE=("$@"); return ;;
            -*) fail "unknown argument $1; --help lists them, and flags of main.py go after --" ;;
            *) DATA=$1 ;;
        esac
        shift
    done
}

# train_scenes: for each of SCENES found in DATA the baseline and mining, with the flags that `scene_flags NAME` puts into FLAGS; then the report.
# A run that was interrupted goes on; one that is done is measured again.
train_scenes() {
    local name workspaces=()
    [ -d "$DATA" ] || fail "no folder $DATA: name the one that holds the scenes ($SCENES)"
    prepare
    for name in $SCENES; do
        if [ ! -d "$DATA/$name" ]; then
            echo "Skipping $name: there is no $DATA/$name."
            continue
        fi
        scene_flags "$name"
        for kind in baseline hsm; do
            train_set "$DATA/$name" "$OUT/$name" "$kind" "${FLAGS[@]}" --max_training_time "$MINUTES" --val_checkpoint 60 --save_cnt 2 "${MORE[@]}"
            workspaces+=("$OUT/$name/$kind")
        done
    done
    [ ${#workspaces[@]} -gt 0 ] || fail "none of the scenes ($SCENES) is in $DATA: nothing was trained"
    report "$OUT/report" "${workspaces[@]}"
}
