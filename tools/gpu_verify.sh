#!/bin/sh
# What only a machine with a GPU can show, in under 8 minutes: tools/gpu_verify.sh [OUTDIR]; --help says more.
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_verify.py" "$@"
