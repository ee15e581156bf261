"""Train SSD300 on PASCAL VOC 2007+2012: 77.2 mAP on VOC2007 test published, not yet run here.

    ssd-jax data prepare voc/2007 voc/2012
    ssd-jax train --config ssd300_voc0712

The recipe of the paper, section 3.1; mAP is 11-point. VGG16's ImageNet weights, from which it
starts, are downloaded. To read the images from a VOCdevkit instead: --data.format voc --data.root
.../VOCdevkit --data.train-split 2007:trainval+2012:trainval --data.eval-split 2007:test.
"""

import ssd_jax.config as cfg

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


def get_config() -> cfg.Config:
    """Return the paper's recipe; values that equal the defaults are given for reference."""
    return cfg.Config(
        model=cfg.ModelConfig(classes=CLASSES, init_from="vgg16-imagenet"),
        data=cfg.DataConfig(
            format="tfds",
            train_split="voc/2007:train+voc/2007:validation+voc/2012:train+voc/2012:validation",
            eval_split="voc/2007:test",
            num_workers=8,
        ),
        optim=cfg.OptimConfig(
            learning_rate=1e-3,
            milestones=(80_000, 100_000),
            warmup_steps=500,
            bias_lr_multiplier=2.0,
            decay_biases=False,
        ),
        train=cfg.TrainConfig(
            steps=120_000, batch_size=32, log_every=50, eval_every=20_000, checkpoint_every=5000
        ),
        eval=cfg.EvalConfig(batch_size=32, metrics=("voc07",)),
    )
