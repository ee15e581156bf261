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
    TrainConfig,
)


def get_config() -> Config:
    """A tenth of SSD300's input area, an eighth of its width, batch norm, 3 sources."""
    return Config(
        model=ModelConfig(
            image_size=128,
            width=0.25,
            sources=("conv4_3", "conv7", "conv8_2"),
            extras=((256, 512, 3, 2, 1),),
            batch_norm=True,
            cpu_conv="direct",
        ),
        priors=PriorConfig(
            sizes=(18, 36, 60, 84),
            steps=(8, 16, 32),
            aspect_ratios=((2,), (2,), (2,)),
        ),
        data=DataConfig(
            format="shapes", train_split="train:2000", eval_split="test:200", expand_ratio=1.5
        ),
        optim=OptimConfig(learning_rate=0.02, schedule="cosine", warmup_steps=50, clip_norm=10.0),
        train=TrainConfig(steps=300, batch_size=16, log_every=20, checkpoint_every=300),
        eval=EvalConfig(batch_size=20),
    )
