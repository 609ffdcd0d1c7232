#!/usr/bin/env bash
# bash tools/dist.sh train|test CONFIG GPUS [--checkpoint C] [--work-dir D] [--resume auto] [--cfg-options a.b=1 ...]
# GPUS is the number of processes per machine; without GPUs they are gloo ranks on the CPU.
# Several machines: NNODES, NODE_RANK, MASTER_ADDR, PORT. DEEPSPEED names a strategy word, e.g. DEEPSPEED=zero2.
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '2,4s/^# //p' "$0" >&2
    exit 2
fi
verb=$1 config=$2 count=$3
shift 3
case "$verb" in train | test) ;; *) echo "unknown verb '$verb'; valid: train, test" >&2; exit 2 ;; esac
case "$count" in '' | *[!0-9]* | 0) echo "GPUS must be a number from 1, got '$count'" >&2; exit 2 ;; esac

root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python}
nnodes=${NNODES:-1}
if [ -n "${DEEPSPEED:-}" ] && [ "$count" = 1 ] && [ "$nnodes" = 1 ]; then
    echo "DEEPSPEED=$DEEPSPEED is left out: one process has nobody to share its state with" >&2
elif [ -n "${DEEPSPEED:-}" ] && [ "$verb" = train ]; then
    word=${DEEPSPEED#deepspeed_}
    merged=0
    arguments=()
    for argument in "$@"; do
        arguments+=("$argument")
        [ "$argument" = --cfg-options ] && { arguments+=("strategy=$word"); merged=1; }
    done
    [ "$merged" = 1 ] || arguments+=(--cfg-options "strategy=$word")
    set -- "${arguments[@]}"
fi

if [ "$count" = 1 ] && [ "$nnodes" = 1 ]; then
    exec "$python" "$root/tools/$verb.py" "$config" "$@"
fi
# One thread per rank unless the user says otherwise: ranks on one machine share its cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [ "$nnodes" = 1 ] && [ -z "${PORT:-}" ]; then
    # --standalone picks a free port, so that two runs on one machine do not meet.
    exec "$python" -m torch.distributed.run --standalone --nproc_per_node="$count" "$root/tools/$verb.py" "$config" "$@"
fi
exec "$python" -m torch.distributed.run \
    --nnodes="$nnodes" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$count" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$root/tools/$verb.py" "$config" "$@"
