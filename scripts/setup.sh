#!/usr/bin/env bash
# A virtual environment in .venv with isopull and what its tests and demo need: pip only, no compiler, repeatable.
# PYTHON chooses the interpreter; EXTRAS (default demo,test) what to install beside the product itself.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
  echo "error: $("$python" --version) is too old; set PYTHON to Python 3.10 or newer" >&2
  exit 2
}
[ -x .venv/bin/python ] || "$python" -m venv .venv
stamp=.venv/isopull-installed
wanted=$(cat pyproject.toml constraints.txt | cksum; echo "${EXTRAS:-demo,test}")
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable ".[${EXTRAS:-demo,test}]"
  echo "$wanted" > "$stamp"
fi
echo "ready: $PWD/.venv/bin/mvrecon and $PWD/.venv/bin/pointrecon"
