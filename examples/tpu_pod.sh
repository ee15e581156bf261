#!/usr/bin/env bash
# SSD300 on a TPU slice: run the same command on every host.
#
#   TPU=ssd300 ZONE=us-west4-a CHIPS=16 bash examples/tpu_pod.sh
#
# Every host needs the repository in ~/ssd_jax with an environment in .venv
# (pip install -e . 'jax[tpu]'), the data and the weights. /mnt/runs is a disk of host 0.
set -euo pipefail

gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker all --command "
    cd ssd_jax && . .venv/bin/activate && exec ssd-jax train \
        --config ssd300_voc0712 --workdir /mnt/runs/ssd300 --resume --distributed \
        --train.batch-size $((32 * CHIPS)) --optim.base-batch-size 32 \
        --train.steps $((120000 / CHIPS)) --train.checkpoint-every 500 \
        --optim.milestones $((80000 / CHIPS)) $((100000 / CHIPS)) --model.dtype bfloat16"
