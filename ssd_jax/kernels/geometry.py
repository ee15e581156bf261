"""Geometry of convolutions."""

from typing import NamedTuple


class ConvGeometry(NamedTuple):
    """Stride, padding and dilation of a convolution, the same along rows and columns."""

    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def output_size(self, size: int, kernel_size: int) -> int:
        """Return the side of the output for an input of side `size` (cells)."""
        reach = (kernel_size - 1) * self.dilation + 1
        return (size + 2 * self.padding - reach) // self.stride + 1
