#!/bin/sh
# Make .venv with the Python named in $1, or say in one sentence what this machine lacks.
set -eu
python=${1:-}
fail() {
    echo "$1" >&2
    exit 1
}
[ -n "$python" ] || fail "No python3 was found: install Python 3.11 or newer, or run make PYTHON=/path/to/python."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is older than Python 3.11: install a newer one, or run make PYTHON=/path/to/python."
# A half-made one is removed: the next make would take it for a whole one.
if ! said=$("$python" -m venv --clear .venv 2>&1); then
    rm -rf .venv
    fail "$said
$python cannot make virtual environments: install its venv package (Debian and Ubuntu: apt-get install python3-venv)."
fi
