"""What a recorded run says of itself: Dataset in, Dataset out, with NumPy, SciPy and xarray alone."""

from .statistics import moments

__all__ = ["moments"]
