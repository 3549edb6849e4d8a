"""Seeded example Datasets, made with NumPy alone: for examples, tests and views, without a model.

They follow the schema of every other run (`toolkit.dataset`), and look like pictures that drown in noise.
Beside them two closed-form models to measure solvers on, which import torch when they are made, and what the
table of solvers is measured by: `measured_order` and `variance_bias`, of `toolkit.measured`.
"""

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

from .examples import (
    CHANNELS,
    ladder_dataset,
    regional_dataset,
    round_trip_dataset,
    sample_dataset,
    unsample_dataset,
)
from .levels import Levels
from .paths import VE, Path

if TYPE_CHECKING:
    from .spectral import SpectralMixture

__all__ = [
    "ladder_dataset",
    "power_law",
    "regional_dataset",
    "round_trip_dataset",
    "sample_dataset",
    "sharp_modes",
    "unsample_dataset",
]
_MEASURES = ("measured_order", "variance_bias")

BENCHMARK = (0.03, 14.6)  # sigma_min, sigma_max of the two benchmark models


def _benchmark_levels(path: Path) -> Levels:
    """On VE the range that the published numbers were measured on; on FLOW its usual levels."""
    return Levels.edm(*BENCHMARK) if path == VE else Levels.flow(3.0)


def sharp_modes(path: Path = VE) -> tuple["SpectralMixture", dict[str, np.ndarray]]:
    """Benchmark A: 64 sharp, well separated modes, on which guidance is hard to undo.

    Smooth random pictures 4 x 16 x 16 (a power-law spectrum, each of unit std) with an isotropic variance of
    0.05 around each; component i has label i mod 8.

    Parameters
    ----------
    path : VE or FLOW

    Returns
    -------
    model : SpectralMixture
        ``prompt=3`` is the 8 components of label 3 (0 to 7 there are), None all 64. On VE its levels are
        ``Levels.edm(0.03, 14.6)``.
    images : {"on": (3, 4, 16, 16), "off": (3, 4, 16, 16)}, float64
        Draws around three means of label 3; and three smooth pictures that the model knows nothing of.

    Raises
    ------
    TypeError
        For a path that is none.

    Examples
    --------
    >>> import toolkit as tk
    >>> model, images = tk.testing.sharp_modes()
    >>> tk.round_trip(model, images["on"], schedule="karras", prompt=3, progress=False).sizes["sample"]
    3
    """
    from .spectral import SpectralMixture

    rng, size, labels, var = np.random.default_rng(0), 16, 8, 0.05

    def smooth(n: int) -> np.ndarray:
        waves = np.hypot(np.fft.fftfreq(size)[:, None] * size, np.fft.rfftfreq(size) * size)
        fields = np.fft.rfft2(rng.standard_normal((n, CHANNELS, size, size))) / (1.0 + waves) ** 1.5
        fields = np.fft.irfft2(fields, s=(size, size))
        return fields / fields.std((1, 2, 3), keepdims=True)

    means = smooth(64)
    spread = np.sqrt(var) * np.random.default_rng(5).standard_normal((3, means[0].size))
    images = {"on": means[[3, 11, 19]] + spread.reshape(3, *means.shape[1:]), "off": smooth(3)}
    conditions = {label: range(label, len(means), labels) for label in range(labels)}
    # isotropic, and so the same in any orthonormal basis: nothing needs to be transformed
    return SpectralMixture(means, var, None, conditions, "dct", path, _benchmark_levels(path)), images


def power_law(path: Path = VE) -> tuple["SpectralMixture", dict[str, np.ndarray]]:
    """Benchmark B: 16 components with power-law spectra, on which most of the error is in small structures.

    4 x 32 x 32 coefficients of the orthonormal DCT-II: the state lives there. Component i has the variance
    0.5 (1 + k)^-(1.2 + 0.1 (i mod 8)), scaled to a mean of 0.5, plus 0.001, and the label i mod 4.

    Parameters
    ----------
    path : VE or FLOW

    Returns
    -------
    model : SpectralMixture
        ``prompt=3`` is the 4 components of label 3 (0 to 3 there are), None all 16. On VE its levels are
        ``Levels.edm(0.03, 14.6)``.
    images : {"in": (2, 4, 32, 32), "off": (2, 4, 32, 32)}, float64
        Draws from components 3 and 7; and two states with the spectrum of another model.

    Raises
    ------
    TypeError
        For a path that is none.

    Examples
    --------
    >>> import toolkit as tk
    >>> model, images = tk.testing.power_law()
    >>> model.shape, sorted(images)
    ((4, 32, 32), ['in', 'off'])
    """
    from .spectral import SpectralMixture

    size, count, labels = 32, 16, 4
    shape = (CHANNELS, size, size)
    waves = 1.0 + np.hypot(*np.mgrid[:size, :size])

    def spectrum(power: float) -> np.ndarray:
        return waves**-power / (waves**-power).mean()

    def normal(rng: np.random.Generator, n: int) -> np.ndarray:
        return rng.standard_normal((n, CHANNELS * size * size)).reshape(n, *shape)

    powers = [1.2 + 0.1 * (i % 8) for i in range(count)]
    variances = np.stack([np.broadcast_to(0.5 * spectrum(p) + 0.001, shape) for p in powers])
    means = np.sqrt(0.5 * spectrum(2.0)) * normal(np.random.default_rng(1), count)
    rng = np.random.default_rng(9)
    inside = means[[3, 7]] + np.sqrt(variances[[3, 7]]) * normal(rng, 2)
    images = {"in": inside, "off": np.sqrt(spectrum(1.9)) * normal(rng, 2)}
    conditions = {label: range(label, count, labels) for label in range(labels)}
    return SpectralMixture(means, variances, None, conditions, "dct", path, _benchmark_levels(path)), images


def __getattr__(name: str) -> Any:
    if name in _MEASURES:
        return getattr(importlib.import_module(".measured", __package__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
