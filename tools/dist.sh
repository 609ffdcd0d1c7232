#!/usr/bin/env bash
# bash tools/dist.sh train|test CONFIG GPUS [--checkpoint C] [--work-dir D] [--resume auto] [--cfg-options a.b=1 ...]
# GPUS is the number of processes per machine (4,2 where two machines differ); without GPUs they are gloo ranks.
# Several machines: NNODES, NODE_RANK, MASTER_ADDR, PORT; RESTARTS starts failed ranks again. DEEPSPEED names a strategy, e.g. DEEPSPEED=zero2.
# Exit codes: 0 done, 1 error, 75 asked to stop and saved.
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '2,5s/^# //p' "$0" >&2
    exit 2
fi
verb=$1 config=$2 count=$3
shift 3
case "$verb" in train | test) ;; *) echo "unknown verb '$verb'; valid: train, test" >&2; exit 2 ;; esac
case "$count" in '' | *[!0-9,]* | 0) echo "GPUS must be a number from 1, got '$count'" >&2; exit 2 ;; esac

root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python}
nnodes=${NNODES:-1}
if [ -n "${DEEPSPEED:-}" ] && [ "$count" = 1 ] && [ "$nnodes" = 1 ]; then
    echo "DEEPSPEED=$DEEPSPEED is left out: one process has nobody to share its state with" >&2
elif [ -n "${DEEPSPEED:-}" ] && [ "$verb" = train ]; then
    strategy=${DEEPSPEED#deepspeed_}
    merged=0
    arguments=()
    for argument in "$@"; do
        arguments+=("$argument")
        [ "$argument" = --cfg-options ] && { arguments+=("strategy=$strategy"); merged=1; }
    done
    [ "$merged" = 1 ] || arguments+=(--cfg-options "strategy=$strategy")
    set -- "${arguments[@]}"
fi

if [ "$count" = 1 ] && [ "$nnodes" = 1 ]; then
    exec "$python" "$root/tools/$verb.py" "$config" "$@"
fi
several=()
if [ "$nnodes" != 1 ] || [ -n "${PORT:-}" ]; then
    # Without a port given, ranks of one machine meet at a free one, so that two runs do not disturb each other.
    several=(--nodes "$nnodes" --node-rank "${NODE_RANK:-0}"
        --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${PORT:-29500}")
fi
# It passes SIGTERM, SIGUSR1, SIGHUP and Ctrl-C on to the ranks and ends with their exit code.
exec "$python" -m unimed.engine.launcher --processes "$count" --restarts "${RESTARTS:-0}" ${several[@]+"${several[@]}"} \
    "$root/tools/$verb.py" "$config" "$@"
