#!/bin/sh
# Make .venv with a Python from 3.10 to 3.13, or say in a sentence what is missing.
set -eu
wanted='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'

suits() {
    command -v "$1" >/dev/null 2>&1 && "$1" -c "$wanted" >/dev/null 2>&1
}

found=
for python in ${1:-python3 python3.13 python3.12 python3.11 python3.10 python}; do
    if suits "$python"; then
        found=$python
        break
    fi
done
if [ -z "$found" ]; then
    if [ -n "${1:-}" ]; then
        echo "minillama: $1 is no Python from 3.10 to 3.13." >&2
    else
        echo "minillama needs Python 3.10, 3.11, 3.12 or 3.13, and none was found." >&2
        echo "Install one from python.org, or with your system's packages" \
            "(Debian, Ubuntu: apt install python3 python3-venv), and call again." >&2
    fi
    exit 1
fi
if ! "$found" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    version=$("$found" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "minillama: $found (Python $version) cannot make virtual environments." >&2
    echo "On Debian and Ubuntu: apt install python$version-venv, and call again." >&2
    exit 1
fi
"$found" -m venv .venv
echo "made .venv with $("$found" --version)"
