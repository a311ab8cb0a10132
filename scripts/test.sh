#!/usr/bin/env bash
# Checks the style and runs the tests in the project's virtual environment (made if absent, see scripts/environment.sh).
#
#   bash scripts/test.sh [--system] [pytest's arguments]     e.g. bash scripts/test.sh tests/test_hsm.py -k tau
#
# --system takes $PYTHON (python3) as it is, in place of a virtual environment.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

require_compiler
if [ "${1:-}" = --system ]; then
    shift
    use_system_python
else
    use_virtual_environment
fi
"$PYTHON" -m ruff check .
exec "$PYTHON" -m pytest -q --durations=15 "$@"
