"""Blood cells under a microscope (BCCD, github.com/Shenggan/BCCD_Dataset), from scratch on a CPU.

python train.py --config configs/bccd.py --data.root .../BCCD --workdir runs/bccd
"""

from ssd_jax.config import (
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    PriorConfig,
    RuntimeConfig,
    TrainConfig,
)


def get_config() -> Config:
    """A quarter of SSD300's width, batch norm, three sources, priors for cells of known size."""
    return Config(
        model=ModelConfig(
            width_multiplier=0.25,
            feature_layers=("conv4_3", "conv7", "conv8_2"),
            batch_norm=True,
        ),
        # Platelets (24) and red cells (the root of 24 x 100) both on the finest source, where the
        # dilated conv6 has not yet thinned out what lies around a cell; white cells on conv7.
        priors=PriorConfig(
            sizes=(24, 100, 160, 220),
            steps=(8, 16, 32),
            aspect_ratios=((2,), (2,), (2,)),
        ),
        data=DataConfig(
            format="voc",
            root="BCCD",
            train_split="trainval",
            eval_split="test",
            # Cells have no up, and a canvas of empty space says nothing about them.
            vertical_flip=True,
            expand_ratio=1.0,
            # The microscope's scale is fixed, and round cells are round.
            min_crop_scale=0.6,
            max_crop_aspect_ratio=1.25,
        ),
        optim=OptimConfig(
            learning_rate=0.01, schedule="cosine", warmup_steps=100, grad_clip_norm=10.0
        ),
        train=TrainConfig(steps=700, batch_size=8, log_every=10, checkpoint_every=200),
        eval=EvalConfig(batch_size=8),
        runtime=RuntimeConfig(cpu_conv="direct"),
    )
