"""Your own data: a folder in the layout of VOC or COCO, found by looking.

    python train.py --config configs/voc_folder.py --data.root ~/mydata

Nothing else needs an edit: the classes are the ones found in the annotations of the train split.
COCO's splits are named after its files: --data.train-split train2017 --data.eval-split val2017.
With fewer than some ten thousand images start from VGG16's weights: --model.init-from vgg16.npz
--model.no-batch-norm --optim.learning-rate 1e-3, and --model.pretrained-scale 0.02 where the file
has no conv6.
"""

from ssd_jax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    """SSD300 with batch norm, which trains from scratch, for data of any kind."""
    return Config(
        model=ModelConfig(batch_norm=True),
        data=DataConfig(
            format="auto",
            root="mydata",
            train_split="trainval",
            eval_split="test",
            max_objects=128,
            num_workers=4,
        ),
        optim=OptimConfig(
            learning_rate=0.01, schedule="cosine", warmup_steps=500, grad_clip_norm=10.0
        ),
        train=TrainConfig(steps=20_000, batch_size=32, eval_every=2000, checkpoint_every=1000),
    )
