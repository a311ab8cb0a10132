#!/usr/bin/env bash
# Compiles the kernel packages ahead of time and leaves each library beside its package, where it is taken before anything else.
# Not needed to run the project (they are compiled at first use); useful for an image or a cluster whose GPU nodes have no compiler.
# Run it again after changing a kernel's source.
#
#   bash scripts/install_ext.sh [--system]
#
# TORCH_CUDA_ARCH_LIST="8.6;9.0" names the GPUs to compile for where none is present.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

require_compiler
if [ "${1:-}" = --system ]; then use_system_python; else use_virtual_environment; fi
for setup in */setup.py; do
    package=$(dirname "$setup")
    echo "Compiling $package"
    (cd "$package" && "$PYTHON" setup.py --quiet build_ext --inplace) || fail "$package could not be compiled (see the lines above)"
done
