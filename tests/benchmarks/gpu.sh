#!/usr/bin/env bash
# bash tests/benchmarks/gpu.sh
#
# On a machine with a CUDA device: whether it computes what a CPU computes, resumes bit by bit, and how fast it is. Needs
# python3 with torch, torchvision, timm and scikit-learn; downloads nothing.
# WHEELS: a folder of wheels to install first, such as those of continuum and six. OUT: where speed.json and speed.png go.
# MINUTES (8): begin nothing after so many. PYTHON: the interpreter.
# Ends with 0 unless nothing at all could be measured.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
out=${OUT:-gpu}
minutes=${MINUTES:-8}
if ! [[ $minutes =~ ^[1-9][0-9]{0,3}$ ]]; then
    echo "error: MINUTES: expects a whole number, not '$minutes'" >&2
    exit 2
fi

if [[ -n ${WHEELS:-} ]]; then
    shopt -s nullglob
    wheels=("$WHEELS"/*.whl)
    if [[ ${#wheels[@]} -gt 0 ]]; then
        "$python" -m pip install --quiet --no-index --no-deps --find-links "$WHEELS" "${wheels[@]}" ||
            echo "warning: the wheels in $WHEELS could not be installed" >&2
    fi
fi

mkdir -p "$out" || exit 1
timeout -k 10 $((60 * (minutes + 2))) "$python" "$here/speed.py" --only cuda --minutes "$minutes" --out "$out" >"$out/table.md"
code=$?
echo
cat "$out/table.md"
if [[ $code -ge 124 && -s $out/cuda.json ]]; then # it hung: what was known before
    cat "$out/cuda.json"
    code=0
fi
exit "$code"
