"""A few hundred VOC photographs in one folder: SSD300 at full width from VGG16's convolutions.

    python train.py --config configs/ssd300_voc_mini.py --data.root VOC --model.init-from vgg16.npz

For a look at the real network on a CPU; conv1 to conv4 stay as they are. 400 steps are a beginning:
the paper takes 120,000. On 192 photographs: mAP 0.0401 on 160 others, 39 minutes on 2 cores with
other work beside it.
"""

import dataclasses

import ssd300_voc0712

from ssd_jax.config import Config, DataConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    """The published network with a schedule of 400 steps of 8 images."""
    config = ssd300_voc0712.get_config()
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, freeze_before="conv5_1", pretrained_scale=0.02),
        data=DataConfig(
            format="voc",
            root="voc",
            train_split="trainval",
            eval_split="test",
            # A network this young learns more from objects that are not small.
            expand_ratio=2.0,
        ),
        optim=OptimConfig(
            learning_rate=5e-3,
            schedule="cosine",
            warmup_steps=40,
            grad_clip_norm=10.0,
            bias_lr_multiplier=2.0,
            decay_biases=False,
        ),
        train=TrainConfig(steps=400, batch_size=8, log_every=5, checkpoint_every=50),
        eval=dataclasses.replace(config.eval, batch_size=8),
    )
