"""A few hundred VOC photographs in one folder: SSD300 at full width from VGG16's convolutions.

    python train.py --config configs/ssd300_voc_mini.py --data.root .../voc

For a look at the real network on a CPU; conv1 to conv4 stay as they are.
"""

import dataclasses

import ssd300_voc0712

from ssd_jax.config import Config, DataConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    """The published network with a schedule of 300 steps of 8 images."""
    config = ssd300_voc0712.get_config()
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, trainable_from="conv5_1"),
        data=DataConfig(format="voc", root="voc", train_split="trainval", eval_split="test"),
        optim=OptimConfig(
            learning_rate=1e-3,
            schedule="cosine",
            warmup_steps=30,
            clip_norm=10.0,
            caffe_biases=True,
        ),
        train=TrainConfig(steps=300, batch_size=8, log_every=5, checkpoint_every=50),
        eval=dataclasses.replace(config.eval, batch_size=8),
    )
