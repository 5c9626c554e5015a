#!/usr/bin/env bash
# bash tests/benchmarks/gpu.sh
#
# On a machine with a CUDA device: whether it computes what a CPU computes, resumes bit by bit, and how fast it is. Needs
# python3 with torch, torchvision, timm and scikit-learn; downloads nothing.
# WHEELS: a folder of wheels to install first, such as those of continuum and six. OUT: where speed.json and speed.png go.
# MINUTES: begin nothing after so many. PYTHON: the interpreter.
# Ends with 0 unless nothing at all could be measured.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
out=${OUT:-gpu}

if [[ -n ${WHEELS:-} ]]; then
    shopt -s nullglob
    wheels=("$WHEELS"/*.whl)
    if [[ ${#wheels[@]} -gt 0 ]]; then
        "$python" -m pip install --quiet --no-index --no-deps --find-links "$WHEELS" "${wheels[@]}" ||
            echo "warning: the wheels in $WHEELS could not be installed" >&2
    fi
fi

mkdir -p "$out" || exit 1
"$python" "$here/speed.py" --only cuda --minutes "${MINUTES:-8}" --device cuda --out "$out" >"$out/table.md"
code=$?
echo
cat "$out/table.md"
exit "$code"
