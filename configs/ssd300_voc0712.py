"""Train SSD300 on PASCAL VOC 2007+2012: 77.2 mAP on VOC2007 test published, not yet run here.

    python train.py --config configs/ssd300_voc0712.py --data.root .../VOCdevkit

The recipe of the paper, section 3.1; mAP is 11-point. Needs VGG16's ImageNet weights in vgg16.npz,
see docs/recipe.md; --model.init-from names another file.
"""

from ssd_jax.config import Config, DataConfig, EvalConfig, ModelConfig, OptimConfig, TrainConfig

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


def get_config() -> Config:
    """Return the paper's recipe; values that equal the defaults are given for reference."""
    return Config(
        model=ModelConfig(classes=CLASSES, pretrained="vgg16.npz"),
        data=DataConfig(
            format="voc",
            root="VOCdevkit",
            train_split="2007:trainval+2012:trainval",
            eval_split="2007:test",
            num_workers=8,
        ),
        optim=OptimConfig(
            learning_rate=1e-3,
            milestones=(80_000, 100_000),
            warmup_steps=500,
            bias_lr_multiplier=2.0,
            decay_biases=False,
        ),
        train=TrainConfig(
            steps=120_000, batch_size=32, log_every=50, eval_every=20_000, checkpoint_every=5000
        ),
        eval=EvalConfig(batch_size=32, metrics=("voc07",)),
    )
