"""What a recorded run says of itself: Dataset in, Dataset out, with NumPy, SciPy and xarray alone."""

from .compared import comparison
from .correlation import cosine_matrix, image_correlation, rung_correlation
from .geometry import principal_components, trajectory
from .noise import normality, residual_noise
from .overview import report
from .pairs import difference
from .plots import (
    plot_comparison,
    plot_cosine,
    plot_moments,
    plot_normality,
    plot_report,
    plot_spectrum,
    plot_trajectory,
)
from .quality import run_quality
from .regional import plot_regions
from .spectrum import autocorrelation, power_spectrum
from .statistics import moments
from .texture import texture_error

__all__ = [
    "autocorrelation",
    "comparison",
    "cosine_matrix",
    "difference",
    "image_correlation",
    "moments",
    "normality",
    "plot_comparison",
    "plot_cosine",
    "plot_moments",
    "plot_normality",
    "plot_regions",
    "plot_report",
    "plot_spectrum",
    "plot_trajectory",
    "power_spectrum",
    "principal_components",
    "report",
    "residual_noise",
    "run_quality",
    "rung_correlation",
    "texture_error",
    "trajectory",
]
