"""The error of files of weights."""

from ssd_jax.config import UserError


class WeightsError(UserError):
    """A file of weights that cannot be used; the message names it and the correction."""
