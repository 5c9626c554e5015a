#!/usr/bin/env bash
# bash train.sh GPUS --options A.yaml B.yaml ... --name NAME --data-path DATA --output-basedir OUT [any option]
#
# GPUS: ids such as 0,1 (one process each), cpu (one process), or cpu:N (N processes).
# Several machines: set NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT, as for torchrun.
# PYTHON: the interpreter. MAIN: a script of your own that registers a method or a data set and then runs main.py (see the
# README); it is run once more before, with DYTOX_CHECK=1, and then ends as soon as main.py has read the options.
# MAX_RESTARTS: how often torchrun may start the job again; it then continues from its newest checkpoint.
# Ends with the exit code of main.py; SIGTERM is passed on, and makes a run save and stop.
if [ -z "${BASH_VERSION:-}" ]; then # another shell reads no further than this
    echo "error: train.sh is a script for bash: bash train.sh ..." >&2
    exit 2
fi
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
main=${MAIN:-$here/main.py}

refuse() {
    echo "error: $1" >&2
    exit 2
}

export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" # for `import continual` in a script in any folder
command -v "$python" >/dev/null || refuse "PYTHON: there is no interpreter $python"
[[ -f $main ]] || refuse "MAIN: there is no file $main"

case ${1:-} in
    cpu) processes=1 device=cpu ;;
    cpu:*) processes=${1#cpu:} device=cpu ;;
    [0-9]*) ids=${1%,} && commas=${ids//[!,]/} && processes=$((${#commas} + 1)) device=cuda ;;
    -h | --help) exec "$python" "$main" --help ;;
    *) refuse "the first argument is GPU ids (0 or 0,1), cpu or cpu:N, not '${1:-}'" ;;
esac
if ! [[ $processes =~ ^[1-9][0-9]*$ ]] || [[ $device == cuda && ! $1 =~ ^[0-9]+(,[0-9]+)*,?$ ]]; then
    refuse "the first argument is GPU ids (0 or 0,1), cpu or cpu:N, not '$1'"
fi
shift
for name in NNODES NODE_RANK MASTER_PORT MAX_RESTARTS; do
    [[ ${!name:-0} =~ ^[0-9]{1,9}$ ]] || refuse "$name: expects a whole number, not '${!name}'"
done
[[ 10#${NNODES:-1} -ge 1 ]] || refuse "NNODES: expects at least 1, not $NNODES"
[[ 10#${MASTER_PORT:-0} -le 65535 ]] || refuse "MASTER_PORT: expects at most 65535, not $MASTER_PORT"
[[ -z ${NNODES:-} || -n ${MASTER_ADDR:-} ]] || refuse "MASTER_ADDR: several machines need the address of the first"

# A wrong option is answered at once, without starting any process.
for word in "$@"; do
    if [[ $word == --help || $word == -h ]]; then exec "$python" "$main" --help; fi
done
DYTOX_CHECK=1 "$python" "$main" "$@" >/dev/null || exit $?

[[ $device == cuda ]] && export CUDA_VISIBLE_DEVICES=$ids
if [[ -z ${OMP_NUM_THREADS:-} ]]; then
    cores=$("$python" -c "import os; print(len(os.sched_getaffinity(0)))")
    export OMP_NUM_THREADS=$((cores / processes > 1 ? cores / processes : 1)) DYTOX_THREADS=chosen # a small model may take one
fi
if [[ -n ${NNODES:-} ]]; then
    where=(--nnodes "$NNODES" --node-rank "${NODE_RANK:-0}" --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}")
else
    where=(--standalone) # a free port of its own
fi

# Where the processes leave word for this script.
DYTOX_JOB=$(mktemp -d 2>/dev/null) || refuse "TMPDIR: cannot make a folder in ${TMPDIR:-/tmp}"
export DYTOX_JOB
trap 'rm -rf "$DYTOX_JOB"' EXIT

# SIGTERM goes to the processes themselves: torchrun would give them 30 seconds and no more. While none listens, to torchrun.
asked=
stop() {
    [[ -n $asked ]] || touch "$DYTOX_JOB/stop" # for processes that torchrun is just starting, or will start again
    asked=yes
    local pids
    pids=$(cat "$DYTOX_JOB"/pid-* 2>/dev/null | tr '\n' ' ')
    # shellcheck disable=SC2086
    { [[ -n $pids ]] && kill -TERM $pids; } 2>/dev/null || { [[ -n $launcher ]] && kill -TERM "$launcher" 2>/dev/null; }
}
launcher=
trap stop TERM INT HUP

set -m # torchrun in a process group of its own: a signal to the whole group reaches it through `stop` alone
"$python" -m torch.distributed.run "${where[@]}" --nproc-per-node "$processes" --max-restarts "${MAX_RESTARTS:-0}" \
    "$main" --device "$device" "$@" &
launcher=$!
set +m

wait "$launcher"
code=$?
while kill -0 "$launcher" 2>/dev/null; do # a signal woke us up: the run is still saving
    wait "$launcher"
    code=$?
done
for _ in {1..100}; do # if torchrun was killed, they end by themselves within seconds
    # shellcheck disable=SC2046
    kill -0 $(cat "$DYTOX_JOB"/pid-* 2>/dev/null) 2>/dev/null || break
    sleep 0.1
done

said=0 # the exit code that the processes left: torchrun knows only 0 and 1
word=$DYTOX_JOB/exit
[[ -s $word ]] || word=$DYTOX_JOB/silent-exit
if [[ -s $word ]]; then { read -r said && read -r reason; } <"$word"; fi
if [[ $said -eq 1 && ($code -eq 0 || ! $word -nt $DYTOX_JOB/stop) ]]; then said=0; fi # of an earlier start than the last
if [[ $said -gt 0 ]]; then
    [[ $code -eq 0 ]] || echo "$reason" >&2 # again, for torchrun had a page to add
    code=$said
elif [[ $code -ne 0 && -n $asked ]]; then
    code=75
    echo "error: stopped before the run could save; continue with --resume from its last checkpoint, if it has one" >&2
fi
exit "$code"
