"""Generated scenes of coloured shapes: a look at everything in minutes, on a CPU.

python train.py --config configs/quickstart.py
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
    """A tenth of SSD300's pixels and a quarter of its width, batch norm, three sources."""
    return Config(
        model=ModelConfig(
            image_size=96,
            width_multiplier=0.25,
            feature_layers=("conv4_3", "conv7", "conv8_2"),
            batch_norm=True,
        ),
        priors=PriorConfig(
            sizes=(16, 54, 66, 80),
            steps=(8, 16, 32),
            aspect_ratios=((2,), (2,), (2,)),
        ),
        data=DataConfig(
            format="shapes",
            # Every scene is new, so there is nothing for augmentation to make more of.
            train_split="train:8000",
            eval_split="test:200",
            max_objects=16,
            augment="none",
        ),
        optim=OptimConfig(
            learning_rate=0.012, schedule="cosine", warmup_steps=30, grad_clip_norm=10.0
        ),
        train=TrainConfig(steps=1000, batch_size=8, log_every=50, checkpoint_every=1000),
        eval=EvalConfig(batch_size=20),
        runtime=RuntimeConfig(cpu_conv="direct"),
    )
