"""Train SSD512 on PASCAL VOC 2007+2012: 79.8 mAP on VOC2007 test published, not yet run here.

    ssd-jax data prepare voc/2007 voc/2012
    ssd-jax train --config ssd512_voc0712

mAP is 11-point. SSD512 has one more feature layer than SSD300.
"""

import dataclasses

import ssd300_voc0712

import ssd_jax.config as cfg


def get_config() -> cfg.Config:
    """Return SSD300's recipe with the network and priors for 512 pixels."""
    config = ssd300_voc0712.get_config()
    return dataclasses.replace(
        config,
        model=dataclasses.replace(
            config.model,
            image_size=512,
            feature_layers=(*config.model.feature_layers, "conv12_2"),
            extras=(
                cfg.ExtraBlock(256, 512, stride=2, padding=1),
                *[cfg.ExtraBlock(128, 256, stride=2, padding=1)] * 3,
                cfg.ExtraBlock(128, 256, kernel_size=4, padding=1),
            ),
        ),
        priors=cfg.PriorConfig(
            sizes=(35.84, 76.8, 153.6, 230.4, 307.2, 384, 460.8, 537.6),
            steps=(8, 16, 32, 64, 128, 256, 512),
            aspect_ratios=((2,), *[(2, 3)] * 4, (2,), (2,)),
        ),
        train=dataclasses.replace(config.train, batch_size=24),
    )
