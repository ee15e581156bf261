"""Tables of layers: VGG16 as the base of SSD, and SSD's extra layers.

Simonyan and Zisserman, 2015, with the changes of SSD, section 3. The Flax modules, the exporters
and the name maps of weights all walk these tables.
"""

from typing import Literal, NamedTuple

from ssd_jax.config import ModelConfig
from ssd_jax.kernels.geometry import ConvGeometry


class ConvLayer(NamedTuple):
    """Convolution."""

    name: str
    channels: int
    kernel_size: int = 3
    geometry: ConvGeometry = ConvGeometry(stride=1, padding=1)

    def output_size(self, size: int) -> int:
        """Return the side of the output for an input of side `size` (cells)."""
        return self.geometry.output_size(size, self.kernel_size)


class PoolLayer(NamedTuple):
    """Max pool: 2x2 with stride 2, or 3x3 with stride 1."""

    kernel_size: Literal[2, 3] = 2
    ceil: bool = False
    """Keep an odd last row or column of a 2x2 pool."""

    def output_size(self, size: int) -> int:
        """Return the side of the output for an input of side `size` (cells)."""
        return size if self.kernel_size == 3 else (size + self.ceil) // 2


VGG16_LAYERS: tuple[ConvLayer | PoolLayer, ...] = (
    ConvLayer("conv1_1", 64),
    ConvLayer("conv1_2", 64),
    PoolLayer(),
    ConvLayer("conv2_1", 128),
    ConvLayer("conv2_2", 128),
    PoolLayer(),
    ConvLayer("conv3_1", 256),
    ConvLayer("conv3_2", 256),
    ConvLayer("conv3_3", 256),
    PoolLayer(ceil=True),  # 75 cells become 38
    ConvLayer("conv4_1", 512),
    ConvLayer("conv4_2", 512),
    ConvLayer("conv4_3", 512),
    PoolLayer(),
    ConvLayer("conv5_1", 512),
    ConvLayer("conv5_2", 512),
    ConvLayer("conv5_3", 512),
    PoolLayer(kernel_size=3),  # instead of 2x2 with stride 2
    ConvLayer("conv6", 1024, geometry=ConvGeometry(padding=6, dilation=6)),  # fc6, reduced
    ConvLayer("conv7", 1024, kernel_size=1, geometry=ConvGeometry()),  # fc7, reduced
)
"""Layers of the base in order; the names of the convolutions are `config.BASE_LAYERS`."""


def extra_layers(config: ModelConfig) -> tuple[ConvLayer, ...]:
    """List the layers after the base: pairs of a 1x1 and a wider convolution, from conv8_1 on.

    Layers after the last feature layer are left out: they would not get a gradient.
    """
    layers: list[ConvLayer] = []
    for k, extra in enumerate(config.extras, start=8):
        geometry = ConvGeometry(extra.stride, extra.padding)
        layers += [
            ConvLayer(f"conv{k}_1", extra.squeeze_channels, 1, ConvGeometry()),
            ConvLayer(f"conv{k}_2", extra.channels, extra.kernel_size, geometry),
        ]
    names = ["", *(layer.name for layer in layers)]
    last = config.feature_layers[-1]
    return tuple(layers[: names.index(last) if last in names else 0])
