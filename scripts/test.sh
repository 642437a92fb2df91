#!/usr/bin/env bash
# Sets up and passes every check: style, types, tests. Arguments go to pytest, for instance: scripts/test.sh -k encoding
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest "$@"
