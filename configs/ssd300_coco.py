"""Train SSD300 on COCO 2017: 25.1 AP on test-dev published, not yet run here.

    ssd-jax data prepare coco/2017
    ssd-jax train --config ssd300_coco

AP is the mean over IoU thresholds from 0.50 to 0.95. To read the images from a folder instead:
--data.format coco --data.root .../coco --data.train-split train2017 --data.eval-split val2017.
"""

import dataclasses

import ssd300_voc0712

import ssd_jax.config as cfg

CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"),
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat"),
    *("dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack"),
    *("umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball"),
    *("kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket"),
    *("bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair"),
    *("couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse"),
    *("remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink"),
    *("refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier"),
    "toothbrush",
)


def get_config() -> cfg.Config:
    """Return the config for VOC with smaller priors and a schedule of 400,000 steps."""
    config = ssd300_voc0712.get_config()
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, classes=CLASSES),
        priors=dataclasses.replace(config.priors, sizes=(21, 45, 99, 153, 207, 261, 315)),
        data=dataclasses.replace(
            config.data,
            train_split="coco/2017:train",
            eval_split="coco/2017:validation",
            max_objects=128,
        ),
        optim=dataclasses.replace(config.optim, milestones=(280_000, 360_000)),
        train=dataclasses.replace(config.train, steps=400_000, eval_every=40_000),
        eval=dataclasses.replace(config.eval, metrics=("coco", "voc")),
    )
