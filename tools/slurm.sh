#!/usr/bin/env bash
# sbatch --nodes=2 --gpus-per-node=8 tools/slurm.sh train CONFIG 8 [options of tools/dist.sh]
# One launcher per machine. The signal five minutes before the end lets the run save; --requeue then starts it again,
# and --resume auto goes on where it stopped.
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
root=${SLURM_SUBMIT_DIR:-$(cd "$(dirname "$0")/.." && pwd)}
export NNODES=${SLURM_NNODES:-1}
export PORT=${PORT:-$((20000 + ${SLURM_JOB_ID:-0} % 10000))}
MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
export MASTER_ADDR
extra=()
[ "$1" = train ] && extra=(--resume auto)
# exec: a signal to the batch script is one to srun, which passes it on to the launchers.
exec srun --kill-on-bad-exit=1 bash -c 'NODE_RANK=$SLURM_NODEID exec bash "$0" "$@"' "$root/tools/dist.sh" "$@" "${extra[@]}"
