#!/usr/bin/env bash
# SSD300 on two nodes of eight GPUs. From the repository's folder: sbatch examples/slurm.sh
#
# One task per GPU. JAX gives a process the GPU with index SLURM_LOCALID, so every task must see all
# GPUs of the node (--gpus-per-node, not --gpus-per-task).
#SBATCH --job-name=ssd300
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=04:00:00
# Five minutes before the time limit the tasks receive SIGTERM, save and exit with status 75.
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail

export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

# Sixteen times the batch, so 16 times the learning rate and a sixteenth of the steps. A task that
# has ended must not stop the one that still writes the checkpoint (--kill-on-bad-exit, --wait).
srun --kill-on-bad-exit=0 --wait=0 ssd-jax train \
    --config ssd300_voc0712 --workdir runs/ssd300 --resume --distributed \
    --train.batch-size 512 --optim.base-batch-size 32 \
    --train.steps 7500 --optim.milestones 5000 6250 --train.checkpoint-every 500 \
    --model.dtype bfloat16 --data.num-workers 10 "$@"
status=$?

# 75: stopped by a signal and saved; 76: another process was lost. Both resume after requeueing.
case $status in
    75 | 76) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit "$status"
