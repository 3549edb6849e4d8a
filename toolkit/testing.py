"""Seeded example Datasets, made with NumPy alone: for examples, tests and views, without a model.

They follow the schema of every other run (`toolkit.dataset`), and look like pictures that drown in noise.
Beside them two closed-form models to measure solvers on, which import torch when they are made, and what the
table of solvers is measured by: `measured_order` and `variance_bias`, of `toolkit.measured`.
"""

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from .dataset import label, latent_coordinates, moments, rung_coordinates, shift_and_scale
from .errors import bad
from .paths import VE, Path
from .schedules import Levels

if TYPE_CHECKING:
    from .spectral import SpectralMixture

_MEASURES = ("measured_order", "variance_bias")

CHANNELS = 4
SIGMA_MIN, SIGMA_MAX = 0.0292, 14.6146  # the ends of Stable Diffusion's table
RHO = 7.0  # 2206.00364, eq. 5
PRIOR_STD = 0.9  # of the pictures below, and so of the posterior mean's shrinkage
BENCHMARK = (0.03, 14.6)  # sigma_min, sigma_max of the two benchmark models


def _levels(steps: int) -> np.ndarray:
    """A rising Karras grid with a leading 0: (steps + 1,)."""
    ramp = np.linspace(0, 1, steps) if steps > 1 else np.zeros(1)
    top, low = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    return np.concatenate([[0.0], ((top + ramp * (low - top)) ** RHO)[::-1]])


def _smooth(fields: np.ndarray, width: float) -> np.ndarray:
    """Periodic Gaussian blur over y and x, `width` in pixels."""
    if width <= 0:
        return fields
    wave = [np.fft.fftfreq(n) for n in fields.shape[-2:]]
    kernel = np.exp(-2 * (np.pi * width) ** 2 * (wave[0][:, None] ** 2 + wave[1][None, :] ** 2))
    return np.fft.ifft2(np.fft.fft2(fields) * kernel).real


def _pictures(rng: np.random.Generator, samples: int, size: int) -> np.ndarray:
    """Clean latents: a disc with petals on a soft ground, seen differently by each channel."""
    y, x = np.mgrid[:size, :size] / max(size - 1, 1) - 0.5
    ground = _smooth(rng.standard_normal((samples, CHANNELS, size, size)), size / 9)
    ground /= ground.std(axis=(-2, -1), keepdims=True) + 1e-12
    centre = rng.uniform(-0.08, 0.08, (samples, 2, 1, 1))
    dy, dx = y - centre[:, 0], x - centre[:, 1]
    radius, angle = np.hypot(dy, dx), np.arctan2(dy, dx)
    inside = 1 / (1 + np.exp((radius - 0.34) * 40))  # (sample, y, x)
    petals = np.cos(7 * angle + 18 * radius)
    rim = np.exp(-(((radius - 0.34) / 0.035) ** 2))
    shape = np.stack(
        [inside * (0.9 + 0.5 * petals), -1.7 * inside, 1.1 * rim * (dy < 0), 0.9 * rim * np.sign(dx)], 1
    )
    gain = np.array([-0.45, 0.4, 0.12, 0.12])[:, None, None]
    return shape + gain * ground + np.array([-0.6, 0.35, 0.0, 0.0])[:, None, None]


def _mixed(
    seed: int, steps: int, size: int, samples: int, line: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Levels (step,), pictures (sample, channel, y, x), and both mixed with one noise (step, sample, ...)."""
    for name, value in (("steps", steps), ("size", size), ("samples", samples)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise bad(name, value, "a whole number, 1 or more", line)
    rng, sigma = np.random.default_rng(seed), _levels(steps)
    clean = _pictures(rng, samples, size)
    noise = rng.standard_normal(clean.shape)
    return sigma, clean, clean + sigma[:, None, None, None, None] * noise


def _dataset(data: dict[str, Any], sigma: np.ndarray, attrs: dict[str, Any]) -> xr.Dataset:
    """Statistics, coordinates and attributes as a run writes them."""
    levels, (mean, std) = Levels.scaled_linear(), moments(data["latent"])
    coordinates = rung_coordinates(sigma, levels, VE) | latent_coordinates(data["latent"].shape[1:])
    common = {
        "schedule": "karras",
        "steps": len(sigma) - 1,
        "direction": "up",
        "normalize": "off",
        "path": VE.name,
    }
    common |= {
        "levels": levels.describe(),
        "prediction": "x0",
        "latent_space": "model",
        "latent_scale": 1.0,
        "latent_shift": 0.0,
        "model": "toolkit.testing",
    }
    return label(data | {"mean": mean, "std": std}, coordinates, attrs | common)


def ladder_dataset(seed: int = 0, steps: int = 20, size: int = 16, samples: int = 1) -> xr.Dataset:
    """A noise ladder: one picture and one noise, mixed at ever higher levels.

    Parameters
    ----------
    seed : int
        Of the picture and of the noise.
    steps : int
        Positive levels; there are ``steps + 1`` rungs, of which rung 0 is the picture.
    size : int
        Height and width, in latent pixels.
    samples : int
        Pictures in the batch.

    Returns
    -------
    Dataset
        `latent` (step, sample, channel, y, x) in float32, with `nfe`, `rows` (0), `mean`, `std`, `shift`,
        `scale` and all coordinates; no `denoised`, since no model is asked.

    Raises
    ------
    ValueError
        For a size that is not a whole number above 0.

    Examples
    --------
    >>> import toolkit as tk
    >>> dict(tk.testing.ladder_dataset().sizes)
    {'step': 21, 'sample': 1, 'channel': 4, 'y': 16, 'x': 16}
    """
    line = "tk.testing.ladder_dataset(seed=0, steps=20, size=16, samples=1)"
    sigma, _, latent = _mixed(seed, steps, size, samples, line)
    latent = latent.astype(np.float32)
    shift, scale = shift_and_scale(latent, "off")
    never = np.zeros(steps + 1, int)
    data = {"latent": latent, "shift": shift, "scale": scale, "nfe": never, "rows": never}
    return _dataset(data, sigma, {"kind": "ladder", "coupling": "shared", "seed": seed})


def unsample_dataset(seed: int = 0, steps: int = 20, size: int = 16, samples: int = 1) -> xr.Dataset:
    """A run from a picture to noise, with what a model would see at each rung.

    The model is a stand-in: its answer is the picture, blurred and faded as the noise hides it.

    Parameters
    ----------
    seed, steps, size, samples : int
        As for `ladder_dataset`.

    Returns
    -------
    Dataset
        `latent` and `denoised` (step, sample, channel, y, x) in float64, with `nfe`, `rows`, `mean`, `std`,
        `shift`, `scale` and all coordinates. `denoised` is NaN at both ends, where no model is called.

    Raises
    ------
    ValueError
        For a size that is not a whole number above 0.

    Examples
    --------
    >>> import toolkit as tk
    >>> run = tk.testing.unsample_dataset()
    >>> int(run.nfe[-1]), bool(run.denoised[0].isnull().all())
    (19, True)
    """
    line = "tk.testing.unsample_dataset(seed=0, steps=20, size=16, samples=1)"
    sigma, clean, latent = _mixed(seed, steps, size, samples, line)
    denoised = np.full_like(latent, np.nan)
    for i, s in enumerate(sigma[1:-1], start=1):
        keep = 1 / (1 + (0.15 * s / PRIOR_STD) ** 2)
        blurred = _smooth(latent[i], size / 64 * 1.6 * s**0.75)
        denoised[i] = _smooth(clean, size / 64 * 2.2 * s**0.6) * keep + 0.15 * (1 - keep) * blurred
    called = np.clip(np.arange(len(sigma)) - 1, 0, None)
    shift, scale = ((("sample", "channel"), values) for values in shift_and_scale(latent[-1], "off"))
    data = {"latent": latent, "denoised": denoised, "nfe": called, "rows": called * samples}
    attrs = {"kind": "unsample", "solver": "euler", "solver_options": {}, "inverse": "reverse", "cfg": 1.0}
    return _dataset(data | {"shift": shift, "scale": scale}, sigma, attrs | {"prompt": None, "seed": seed})


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
