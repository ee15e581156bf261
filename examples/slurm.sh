#!/usr/bin/env bash
# SSD300 on two nodes of eight GPUs: sbatch examples/slurm.sh, from the repository's folder.
#
# A task a GPU: under SLURM JAX gives each process the one GPU of its number on the node, so every
# task must see all GPUs of the node (--gpus-per-node, not --gpus-per-task).
#SBATCH --job-name=ssd300
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=04:00:00
# Five minutes before the time is up the tasks get SIGTERM, save and end with status 75.
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail

export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

# Sixteen times the batch: the rate is as many times as large, and the steps are as many times
# fewer. A task that has ended must not end the one that still writes the checkpoint.
srun --kill-on-bad-exit=0 --wait=0 python train.py \
    --config configs/ssd300_voc0712.py --workdir runs/ssd300 --resume --distributed \
    --train.batch-size 512 --optim.base-batch-size 32 \
    --train.steps 7500 --optim.milestones 5000 6250 --train.checkpoint-every 500 \
    --model.dtype bfloat16 --data.num-workers 10 "$@"
status=$?

# 75: stopped by a signal and saved; 76: another process was lost. Both go on where they were saved.
case $status in
    75 | 76) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit "$status"
