#!/usr/bin/env bash
# Builds the wheel, installs it alone, and asks it for what needs extras.
set -euo pipefail
export PYTHONDONTWRITEBYTECODE=  # pip leaves the byte code to the first import
work=$(mktemp -d)
trap 'rm -rf "$work" &' EXIT  # a minute where disks are slow
.venv/bin/pip wheel -q --no-deps --no-build-isolation -w "$work" .
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile "$work"/*.whl
scene=$PWD/scenes/orchard
cd "$work"
venv/bin/compress3g --help >/dev/null
venv/bin/compress3g doctor
venv/bin/compress3g nerf train "$scene" --steps 5 --log2-hashmap 8 --samples 512 -o run >/dev/null
if venv/bin/compress3g nerf render run -o orbit.mp4 --frames 2 2>message; then
    echo "an mp4 without the nerf extra: the check is void" >&2
    exit 1
fi
grep -q "pip install 'compress3g\[nerf\]'" message
test "$(grep -vc '^render' message)" = 1
if venv/bin/compress3g nerf train /nowhere 2>message; then exit 1; fi
test "$(wc -l <message)" = 1
echo "wheel: installs alone, runs, and says in one line what is missing"
