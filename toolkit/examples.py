"""Seeded example Datasets of every kind of run, made with NumPy alone; `toolkit.testing` has them for users.

Pictures mixed with one noise, and what a stand-in for a model would see in it. Variables, dimensions and the
names of the attributes are those of a real run of that kind.
"""

from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from . import __version__
from .dataset import attributes, label, latent_coordinates, moments, rung_coordinates, shift_and_scale
from .errors import bad
from .levels import Levels
from .paths import VE, Path
from .schedules import schedule

CHANNELS = 4
SIGMA_MIN, SIGMA_MAX = 0.0292, 14.6146  # the ends of Stable Diffusion's table
RHO = 7.0  # 2206.00364, eq. 5
SHIFT = 3.0  # of the flow model's levels, as in Stable Diffusion 3
MOST_RHO = 80.0  # noise to signal where a flow has no signal left
PRIOR_STD = 0.9  # of the pictures below, and so of the posterior mean's shrinkage
WHOLLY = 0.95  # share from which a pixel counts as a region's own
NAMES = ("base", "left", "right")  # of the regions
ERRORS = ("error", "accuracy", "aux_gap", "error_without_aux", "std_ratio")  # of a round trip, by sample


class Mixed(NamedTuple):
    """Pictures and noise (sample, channel, y, x), mixed at rising levels (step,)."""

    sigma: np.ndarray
    clean: np.ndarray
    noise: np.ndarray
    path: Path
    levels: Levels
    schedule: str

    def states(self) -> np.ndarray:
        """The pictures as they drown, (step, sample, channel, y, x)."""
        alpha, sigma = (v[:, None, None, None, None] for v in (self.path.alpha(self.sigma), self.sigma))
        return alpha * self.clean + sigma * self.noise

    def seen(self, i: int, clean: np.ndarray | None = None) -> np.ndarray:
        """What a model would see at row i: the picture, blurred and faded as the noise hides it."""
        clean, size = self.clean if clean is None else clean, self.clean.shape[-1]
        s = min(float(self.path.rho(self.sigma[i])), MOST_RHO)  # as on a path that does not fade
        keep = 1 / (1 + (0.15 * s / PRIOR_STD) ** 2)
        blurred = _smooth(clean + s * self.noise, size / 64 * 1.6 * s**0.75)
        return _smooth(clean, size / 64 * 2.2 * s**0.6) * keep + 0.15 * (1 - keep) * blurred

    def answers(self) -> np.ndarray:
        """`seen` at all positive levels, NaN at 0."""
        rows = [self.seen(i) if s > 0 else np.full_like(self.clean, np.nan) for i, s in enumerate(self.sigma)]
        return np.stack(rows)


def _karras(steps: int) -> np.ndarray:
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


def _mixed(seed: int, steps: int, size: int, samples: int, path: Path, kind: str) -> Mixed:
    """The pictures and the noise of a seed, or the error for what they cannot be made of."""
    line = f"tk.testing.{kind}_dataset(seed=0, steps=20, size=16, samples=1)"
    for name, value in (("steps", steps), ("size", size), ("samples", samples)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise bad(name, value, "a whole number, 1 or more", line)
    if not isinstance(path, Path):
        raise bad("path", path, "tk.VE or tk.FLOW", line.replace(")", ", path=tk.FLOW)"), TypeError)
    rng = np.random.default_rng(seed)
    clean = _pictures(rng, samples, size)
    noise = rng.standard_normal(clean.shape)
    if path == VE:
        return Mixed(_karras(steps), clean, noise, path, Levels.scaled_linear(), "karras")
    levels = Levels.flow(SHIFT)
    return Mixed(schedule(levels, "simple", steps).sigma.values[::-1], clean, noise, path, levels, "simple")


def _common(mixed: Mixed, direction: str) -> dict[str, Any]:
    """The attributes that every run has."""
    return {
        "schedule": mixed.schedule,
        "steps": len(mixed.sigma) - 1,
        "direction": direction,
        "path": mixed.path.name,
        "levels": mixed.levels.describe(),
        "prediction": "x0",
        "latent_space": "model",
        "latent_scale": 1.0,
        "latent_shift": 0.0,
        "model": "toolkit.testing",
        "fingerprint": None,
        "versions": {"toolkit": __version__},
    }


def _solved(calls: int, rows: int) -> dict[str, Any]:
    """The attributes of what a solver ran, with one condition and what it cost."""
    asked = {"solver": "euler", "solver_options": {}, "cfg": 1.0, "prompt": None, "negative": None}
    return asked | {"model_calls": calls, "network_rows": rows}


def _dataset(data: dict[str, Any], sigma: np.ndarray, mixed: Mixed, attrs: dict[str, Any]) -> xr.Dataset:
    """Statistics, coordinates and attributes as a run writes them."""
    mean, std = moments(data["latent"])
    coordinates = rung_coordinates(sigma, mixed.levels, mixed.path)
    coordinates |= latent_coordinates(data["latent"].shape[1:])
    return label(data | {"mean": mean, "std": std}, coordinates, attrs)


def ladder_dataset(seed: int = 0, steps: int = 20, size: int = 16, samples: int = 1,
                   path: Path = VE) -> xr.Dataset:  # fmt: skip
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
    path : VE or FLOW
        How picture and noise mix: on VE up to sigma 14.6, on FLOW up to 1, where no picture is left.

    Returns
    -------
    Dataset
        `latent` (step, sample, channel, y, x) in float32, with `nfe`, `rows` (0), `mean`, `std`, `shift`,
        `scale` and all coordinates; no `denoised`, since no model is asked.

    Raises
    ------
    ValueError
        For a size that is not a whole number above 0. TypeError for a path that is none.

    Examples
    --------
    >>> import toolkit as tk
    >>> dict(tk.testing.ladder_dataset().sizes)
    {'step': 21, 'sample': 1, 'channel': 4, 'y': 16, 'x': 16}
    """
    mixed = _mixed(seed, steps, size, samples, path, "ladder")
    latent = mixed.states().astype(np.float32)
    shift, scale = shift_and_scale(latent, "off")
    never = np.zeros(len(mixed.sigma), int)
    data = {"latent": latent, "shift": shift, "scale": scale, "nfe": never, "rows": never}
    attrs = {"kind": "ladder", "coupling": "shared", "seed": seed, "normalize": "off"}
    return _dataset(data, mixed.sigma, mixed, attrs | _common(mixed, "up"))


def unsample_dataset(seed: int = 0, steps: int = 20, size: int = 16, samples: int = 1,
                     path: Path = VE) -> xr.Dataset:  # fmt: skip
    """A run from a picture to noise, with what a model would see at each rung.

    The model is a stand-in: its answer is the picture, blurred and faded as the noise hides it.

    Parameters
    ----------
    seed, steps, size, samples, path
        As for `ladder_dataset`.

    Returns
    -------
    Dataset
        `latent` and `denoised` (step, sample, channel, y, x) in float64, with `nfe`, `rows`, `mean`, `std`,
        `shift`, `scale` and all coordinates. `denoised` is NaN at both ends, where no model is called.

    Raises
    ------
    ValueError
        For a size that is not a whole number above 0. TypeError for a path that is none.

    Examples
    --------
    >>> import toolkit as tk
    >>> run = tk.testing.unsample_dataset()
    >>> int(run.nfe[-1]), bool(run.denoised[0].isnull().all())
    (19, True)
    """
    return _up(_mixed(seed, steps, size, samples, path, "unsample"), seed)


def _up(mixed: Mixed, seed: int) -> xr.Dataset:
    latent, denoised = mixed.states(), mixed.answers()
    denoised[-1] = np.nan  # nothing is asked at the top: there the run ends
    called, samples = np.clip(np.arange(len(latent)) - 1, 0, None), latent.shape[1]
    shift, scale = ((("sample", "channel"), values) for values in shift_and_scale(latent[-1], "off"))
    data = {"latent": latent, "denoised": denoised, "nfe": called, "rows": called * samples}
    attrs = {"kind": "unsample", "inverse": "reverse", "via": "euler", "seed": seed, "normalize": "off"}
    attrs |= {"sigma_shift": 0.0, "bottom": "alpha * x"} | _solved(int(called[-1]), int(called[-1]) * samples)
    return _dataset(data | {"shift": shift, "scale": scale}, mixed.sigma, mixed, attrs | _common(mixed, "up"))


def sample_dataset(seed: int = 0, steps: int = 20, size: int = 16, samples: int = 1,
                   path: Path = VE) -> xr.Dataset:  # fmt: skip
    """The way back of `unsample_dataset`: the same rungs downwards, and what the model sees at the lowest.

    Parameters
    ----------
    seed, steps, size, samples, path
        As for `ladder_dataset`.

    Returns
    -------
    Dataset
        `latent` and `denoised` (step, sample, channel, y, x) in float64, with `nfe`, `rows`, `mean`, `std`
        and all coordinates; sigma falls to 0. `denoised` is NaN at the last row, where no model is called.

    Raises
    ------
    ValueError
        For a size that is not a whole number above 0. TypeError for a path that is none.

    Examples
    --------
    >>> import toolkit as tk
    >>> run = tk.testing.sample_dataset()
    >>> round(float(run.sigma[0]), 1), float(run.sigma[-1]), int(run.nfe[-1])
    (14.6, 0.0, 20)
    """
    return _down(_mixed(seed, steps, size, samples, path, "sample"), seed)


def _down(mixed: Mixed, seed: int) -> xr.Dataset:
    latent, denoised = mixed.states()[::-1].copy(), mixed.answers()[::-1].copy()
    latent[-1] = denoised[-2]  # the last hop lands on the answer
    called, samples = np.arange(len(latent)), latent.shape[1]
    data = {"latent": latent, "denoised": denoised, "nfe": called, "rows": called * samples}
    attrs = {"kind": "sample", "inverse": "reverse", "start": "unsample", "edited": [], "seed": seed}
    attrs |= _solved(int(called[-1]), int(called[-1]) * samples)
    return _dataset(data, mixed.sigma[::-1], mixed, attrs | _common(mixed, "down"))


def round_trip_dataset(seed: int = 0, steps: int = 20, size: int = 16, samples: int = 1,
                       path: Path = VE) -> xr.Dataset:  # fmt: skip
    """What `unsample_dataset` and `sample_dataset` make of a picture together, as ``tk.round_trip`` tells it.

    Parameters
    ----------
    seed, steps, size, samples, path
        As for `ladder_dataset`.

    Returns
    -------
    Dataset
        (sample): `error`, `accuracy` (NaN), `aux_gap` (NaN), `error_without_aux` (NaN), `std_ratio`;
        (direction): `calls`, `network_rows`; (sample, channel, y, x): `given`, `top`, `returned`.

    Raises
    ------
    ValueError
        For a size that is not a whole number above 0. TypeError for a path that is none.

    Examples
    --------
    >>> import toolkit as tk
    >>> trip = tk.testing.round_trip_dataset()
    >>> trip.calls.values.tolist(), bool(trip.error[0] < 0.05)
    ([19, 20], True)
    """
    mixed = _mixed(seed, steps, size, samples, path, "round_trip")
    up, down, every = _up(mixed, seed), _down(mixed, seed), (1, 2, 3)
    given, top, returned = up.latent[0].values, up.latent[-1].values, down.latent[-1].values
    far, long = (np.sqrt(np.square(v).sum(every)) for v in (returned - given, given))
    spread = np.sqrt(top.var(every)) / float(up.sigma[-1])
    unknown = np.full(samples, np.nan)
    whole = ("sample", "channel", "y", "x")
    data = dict.fromkeys(ERRORS, (("sample",), unknown))
    data |= {"error": (("sample",), far / long), "std_ratio": (("sample",), spread)}
    for name, told in (("calls", "model_calls"), ("network_rows", "network_rows")):
        data[name] = (("direction",), np.array([up.attrs[told], down.attrs[told]]))
    data |= {"given": (whole, given), "top": (whole, top), "returned": (whole, returned)}
    ways = ("direction", np.array(["there", "back"], dtype=object), attributes("way of the run"))
    coordinates = {name: up.coords[name] for name in whole} | {"direction": ways}
    return label(data, coordinates, up.attrs | {"kind": "round_trip", "truth": None, "bitwise": None})


def regional_dataset(seed: int = 0, steps: int = 20, size: int = 16, samples: int = 1,
                     path: Path = VE) -> xr.Dataset:  # fmt: skip
    """A run from noise with two regions, left and right, and a base between them that has what they leave.

    Each asks for another picture. The right one joins late, below the middle of the levels.

    Parameters
    ----------
    seed, steps, size, samples, path
        As for `ladder_dataset`.

    Returns
    -------
    Dataset
        As of ``tk.regional``: `latent` and `denoised` (step, sample, channel, y, x), `weight` (step, region,
        y, x), `region_mask` (region, y, x), `conflict` (step, region, sample), `seam_gradient` (step,
        sample), and the counters and moments of every run. What depends on an answer is NaN where none is.

    Raises
    ------
    ValueError
        For a size that is not a whole number above 0. TypeError for a path that is none.

    Examples
    --------
    >>> import toolkit as tk
    >>> run = tk.testing.regional_dataset()
    >>> run.region.values.tolist(), round(float(run.weight[-1, :, 8, 15].sum()), 6)
    (['base', 'left', 'right'], 1.0)
    """
    mixed = _mixed(seed, steps, size, samples, path, "regional")
    masks, rows = _region_masks(size), len(mixed.sigma)
    asked = np.stack(
        [mixed.clean, *(_pictures(np.random.default_rng([seed, k]), samples, size) for k in (1, 2))]
    )
    joins = float(mixed.sigma[(rows - 1) // 2])
    weight, denoised, conflict, seam = [], [], [], []
    for i in range(rows - 1, -1, -1):
        share = masks * np.array([1.0, 1.0, float(mixed.sigma[i] <= joins)])[:, None, None]
        share[0] = 1.0 - share[1:].sum(0)
        weight.append(share)
        opinions = np.stack([mixed.seen(i, clean) for clean in asked])
        fused = (share[:, None, None] * opinions).sum(0)
        answer = mixed.sigma[i] > 0
        denoised.append(fused if answer else np.full_like(fused, np.nan))
        conflict.append(
            _conflict(opinions, fused, share) if answer else np.full((len(NAMES), samples), np.nan)
        )
        seam.append(_seam(fused, share) if answer else np.full(samples, np.nan))
    fused = (weight[-1][:, None, None] * asked).sum(0)
    latent = mixed._replace(clean=fused).states()[::-1].copy()
    latent[-1] = denoised[-2]
    called = np.arange(rows)
    present = np.cumsum([0, *((np.array(w) > 0).any((1, 2)).sum() for w in weight[:-1])]) * samples
    data = {"latent": latent, "denoised": np.stack(denoised), "conflict": np.stack(conflict)}
    data |= {"seam_gradient": np.stack(seam), "weight": np.stack(weight), "nfe": called, "rows": present}
    data["region_mask"] = masks
    attrs = {"kind": "regional", "mode": "denoiser", "start": "noise", "seed": seed}
    attrs |= _solved(int(called[-1]), int(present[-1])) | _common(mixed, "down")
    attrs |= {"regions": [_region("left", 3, None), _region("right", 7, joins)]}
    run = _dataset(data, mixed.sigma[::-1], mixed, attrs | {"grid": mixed.sigma[::-1].tolist()})
    return run.assign_coords(region=("region", np.array(NAMES, dtype=object), attributes("region")))


def _region_masks(size: int) -> np.ndarray:
    """What the regions leave, and a soft third at the left and at the right: (region, y, x)."""
    x = (np.arange(size) + 0.5) / size
    left = np.broadcast_to(1 / (1 + np.exp((x - 0.36) * 40)), (size, size))
    right = left[:, ::-1]
    return np.stack([1.0 - left - right, left, right])


def _region(name: str, prompt: int, joins: float | None) -> dict[str, Any]:
    """What a record says of a region; it is asked from sigma `joins` down."""
    return {
        "prompt": prompt,
        "negative": None,
        "cfg": None,
        "solver": None,
        "seed": None,
        "noise_strength": 0.0,
        "strength": 1.0,
        "feather": 0,
        "grow": 0,
        "span": [joins, 0.0],
        "name": name,
        "noise_method": "linear",
        "keep": False,
        "differential": False,
        "weight": 1.0,
        "active": [joins, 0.0],
    }


def _conflict(opinions: np.ndarray, fused: np.ndarray, share: np.ndarray) -> np.ndarray:
    """rms of an opinion minus the fused one over the pixels where it counts; NaN for who is not asked."""
    inside = share > 0  # (region, y, x)
    far = np.square(opinions - fused).mean(2) * inside[:, None]
    count = inside.sum((1, 2))[:, None]
    return np.where(count > 0, np.sqrt(far.sum((2, 3)) / np.maximum(count, 1)), np.nan)


def _seam(answer: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Mean gradient where neighbours are not both wholly of one region, over that elsewhere: (sample,)."""
    wholly = share >= WHOLLY
    slopes, alike = [], []
    for axis in (-1, -2):
        slopes.append(np.abs(np.diff(answer, axis=axis)).mean(1).reshape(len(answer), -1))
        first, second = (np.take(wholly, range(k, wholly.shape[axis] - 1 + k), axis) for k in (0, 1))
        alike.append((first & second).any(0).ravel())
    slope, same = np.concatenate(slopes, 1), np.concatenate(alike)
    if same.all() or not same.any():
        return np.full(len(answer), np.nan)
    return slope[:, ~same].mean(1) / slope[:, same].mean(1)
