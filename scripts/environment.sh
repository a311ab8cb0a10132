# Functions that quickstart.sh, test.sh and install_ext.sh share: find Python, make the virtual environment, check for a compiler.
# Source it from the project's root; afterwards $PYTHON is the interpreter to use.
#
#   PYTHON=/path/to/python  take this interpreter (a bare name works too); without --system it only makes the virtual environment
#   VENV=folder             where the virtual environment lives (.venv)
#   TORCH_INDEX=address     take torch from this package index instead of the default one. On a machine without an NVIDIA GPU, the
#                           CPU index that PyTorch's "Start Locally" page names saves some gigabytes of CUDA libraries.

# An idle OpenMP thread soon sleeps instead of spinning on. On a machine with few cores that does anything else besides, spinning threads
# hold the cores that the working ones wait for, and a training step takes several times as long.
[ -n "${OMP_WAIT_POLICY:-}" ] || export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-20000}

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# The interpreter: $PYTHON if set, else python3; it must be new enough for the versions that requirements.txt pins.
choose_python() {
    PYTHON=${PYTHON:-python3}
    command -v "$PYTHON" >/dev/null || fail "no Python is found as '$PYTHON': apt-get install python3 python3-venv, or name one with PYTHON=..."
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "Python 3.11 or newer is needed and '$PYTHON' is $("$PYTHON" -c 'import platform; print(platform.python_version())'): install one (apt-get install python3.11 python3.11-venv), then PYTHON=python3.11 bash scripts/$(basename "$0")"
}

# The kernels are compiled on first use.
require_compiler() {
    local compiler=${CXX:-g++}
    command -v "${compiler%% *}" >/dev/null || fail "no C++ compiler is found as '$compiler': apt-get install g++, or name one with CXX=..."
}

# An interpreter used as it is (--system): installs nothing, names what it lacks.
use_system_python() {
    choose_python
    local missing
    missing=$("$PYTHON" scripts/missing_requirements.py) || fail "scripts/missing_requirements.py could not be run with '$PYTHON'"
    [ -z "$missing" ] || fail "'$PYTHON' lacks $missing: '$PYTHON -m pip install' them, or run without --system to have a virtual environment made"
}

# The project's virtual environment: made if absent, filled if requirements.txt or the interpreter changed since.
use_virtual_environment() {
    choose_python
    local venv=${VENV:-.venv}
    if ! "$venv/bin/python" -c '' 2>/dev/null; then
        "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null || fail "'$PYTHON' has no venv module: apt-get install python3-venv"
        # A broken environment is emptied and made again; any other folder is not ours to empty.
        if [ -e "$venv" ] && [ ! -f "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
            fail "$venv exists and is no virtual environment: move it away, or choose another folder with VENV=..."
        fi
        echo "Making the virtual environment $venv"
        "$PYTHON" -m venv --clear "$venv" || fail "the virtual environment $venv could not be made (see the lines above)"
    fi
    PYTHON=$PWD/$venv/bin/python
    case $venv in /*) PYTHON=$venv/bin/python ;; esac
    if ! cmp -s requirements.txt "$venv/installed-requirements.txt"; then
        echo "Installing requirements.txt into $venv (once; a few minutes)"
        install_requirements
        cp requirements.txt "$venv/installed-requirements.txt"
    fi
}

# torch goes first and alone: whichever build of it is taken, CPU or CUDA, the other packages then find their torch there and bring none.
install_requirements() {
    local torch
    torch=$(grep '^torch==' requirements.txt)
    "$PYTHON" -m pip install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$torch" || fail "$torch could not be installed (see the lines above)"
    "$PYTHON" -m pip install --quiet -r requirements.txt || fail "requirements.txt could not be installed (see the lines above)"
}
