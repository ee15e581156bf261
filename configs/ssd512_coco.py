"""Train SSD512 on COCO 2017: 28.8 AP on test-dev published, not yet run here.

    ssd-jax data prepare coco/2017
    ssd-jax train --config ssd512_coco

AP is the mean over IoU thresholds from 0.50 to 0.95.
"""

import dataclasses

import ssd300_coco
import ssd512_voc0712

import ssd_jax.config as cfg


def get_config() -> cfg.Config:
    """Return SSD300's recipe for COCO with the network and priors for 512 pixels."""
    config, large = ssd300_coco.get_config(), ssd512_voc0712.get_config()
    return dataclasses.replace(
        config,
        model=dataclasses.replace(large.model, classes=ssd300_coco.CLASSES),
        priors=dataclasses.replace(
            large.priors, sizes=(20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72)
        ),
        train=dataclasses.replace(config.train, batch_size=24),
    )
