"""Train SSD300 from scratch on your own data (VOC, COCO or YOLO) for 20,000 steps on a GPU.

    ssd-jax train --config voc_folder --data.root ~/mydata

The layout is detected automatically, and the classes are read from the annotations of the train
split, or from data.yaml. For COCO, name the splits after the files: --data.train-split train2017
--data.eval-split val2017. For YOLO: --data.train-split train --data.eval-split val. With fewer
than about ten thousand images start from VGG16's weights: --model.init-from
vgg16-imagenet --model.no-batch-norm --optim.learning-rate 1e-3.
"""

import ssd_jax.config as cfg


def get_config() -> cfg.Config:
    """Return SSD300 with batch norm, which trains from scratch."""
    return cfg.Config(
        model=cfg.ModelConfig(batch_norm=True),
        data=cfg.DataConfig(
            format="auto",
            root="mydata",
            train_split="trainval",
            eval_split="test",
            max_objects=128,
            num_workers=4,
        ),
        optim=cfg.OptimConfig(
            learning_rate=0.01, schedule="cosine", warmup_steps=500, grad_clip_norm=10.0
        ),
        train=cfg.TrainConfig(steps=20_000, batch_size=32, eval_every=2000, checkpoint_every=1000),
    )
