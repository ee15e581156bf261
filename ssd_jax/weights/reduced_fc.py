"""VGG16's fully connected fc6 and fc7 as SSD's dilated conv6 and 1x1 conv7."""

from jaxtyping import Float
from numpy import ndarray

# Every third of fc6's 7x7 taps, every fourth of the 4096 units: 3x3x512x1024 and 1x1x1024x1024.
_TAPS, _UNITS = 3, 4


def reduce_fc(
    fc6_kernel: Float[ndarray, "7 7 512 4096"],
    fc6_bias: Float[ndarray, " 4096"],
    fc7_kernel: Float[ndarray, "4096 4096"],
    fc7_bias: Float[ndarray, " 4096"],
) -> dict[str, tuple[Float[ndarray, "k k i 1024"], Float[ndarray, " 1024"]]]:
    """Kernel (HWIO) and bias of conv6 and conv7.

    SSD, section 3: "we convert fc6 and fc7 to convolutional layers, subsample parameters from fc6
    and fc7", the a-trous way of DeepLab-LargeFOV (Chen et al., ICLR 2015). The taps that are left
    lie three apart there; SSD dilates by 6. fc6_kernel's axes are row, column, channel and unit,
    fc7_kernel's fc6's unit and its own.
    """
    kernel6 = fc6_kernel[::_TAPS, ::_TAPS, :, ::_UNITS]
    kernel7 = fc7_kernel[::_UNITS, ::_UNITS][None, None]
    return {
        "conv6": (kernel6, fc6_bias[::_UNITS]),
        "conv7": (kernel7, fc7_bias[::_UNITS]),
    }
