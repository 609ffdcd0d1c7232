#!/usr/bin/env bash
# sbatch --nodes=2 --gpus-per-node=8 tools/slurm.sh train CONFIG 8 [options of tools/dist.sh]
# One launcher per machine. The signal five minutes before the end lets the run save; the job is then put back into the
# queue, and --resume auto goes on where it stopped. A job that is canceled is not.
#SBATCH --job-name=unimed
#SBATCH --ntasks-per-node=1
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

if [ $# -lt 3 ]; then
    sed -n '2,4s/^# //p' "$0" >&2
    exit 2
fi
if [ -z "${SLURM_JOB_NODELIST:-}" ] && [ -z "${MASTER_ADDR:-}" ]; then
    echo "this is no job of Slurm; start it with: sbatch --nodes=2 --gpus-per-node=8 tools/slurm.sh $*" >&2
    exit 2
fi
root=${SLURM_SUBMIT_DIR:-$(cd "$(dirname "$0")/.." && pwd)}
export NNODES=${SLURM_NNODES:-1}
export PORT=${PORT:-$((20000 + ${SLURM_JOB_ID:-0} % 10000))}
hosts=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST")}
export MASTER_ADDR=${hosts%%$'\n'*}
extra=()
[ "$1" = train ] && extra=(--resume auto)
set -m # else what runs in the background ignores Ctrl-C
srun --kill-on-bad-exit=1 bash -c 'NODE_RANK=$SLURM_NODEID exec bash "$0" "$@"' "$root/tools/dist.sh" "$@" "${extra[@]}" &
step=$!
asked=
# What the script is told, srun is: it passes signals on to the launchers.
for name in TERM USR1 HUP INT; do
    # shellcheck disable=SC2064
    trap "asked=\${asked:-$name}; kill -s $name $step 2>/dev/null || true" "$name"
done
code=0
wait "$step" || code=$?
# A signal ends `wait`, not the step.
while kill -0 "$step" 2>/dev/null; do
    code=0
    wait "$step" || code=$?
done
# 75: stopped and saved. Slurm itself puts back what it preempts with SIGTERM; `scancel` sends the same.
if [ "$code" = 75 ] && [ "$asked" != TERM ] && [ "$asked" != INT ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
