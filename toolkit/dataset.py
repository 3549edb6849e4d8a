"""The labelled record: its schema, what to keep of a run, and reading it back. No torch here.

Dimensions are ``step, sample, channel, y, x``, in this order. A grid of n + 1 levels gives n + 1 rows: row i
is the state at ``sigma[i]`` and the denoiser's opinion there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import xarray as xr

from .errors import bad, unknown

LATENT = ("step", "sample", "channel", "y", "x")
NORMALIZE = ("off", "global", "sample", "channel")
COMPRESSORS = ("blosc", "zstd", "gzip")

# name -> (dims, long_name); every unit here is "1", and is written out in `attributes`.
VARIABLES: dict[str, tuple[tuple[str, ...], str]] = {
    "latent": (LATENT, "state of the solver at this rung"),
    "denoised": (LATENT, "the model's x0 at this rung; NaN where it was not called"),
    "nfe": (("step",), "model calls made until this rung was reached, all passes"),
    "rows": (("step",), "network rows evaluated until this rung was reached, all passes"),
    "mean": (("step", "sample", "channel"), "mean of latent over y and x"),
    "std": (("step", "sample", "channel"), "standard deviation of latent over y and x (population)"),
    "offset": (LATENT, "what the replayed hop that leaves this row adds to the solver's step"),
    "noise": (LATENT, "last draw of the replayed hop that leaves this row, about unit; 0 where none"),
    "aux": (LATENT, "second state of a reversible solver, for the replayed hop that leaves this row"),
    "top": (("sample", "channel", "y", "x"), "state of the last row in float64, where rows are kept in less"),
    "aux_gap": (("step", "sample"), "relative distance of aux from the solver's own first step"),
    "offset_norm": (("step", "sample"), "norm of offset over that of the hop"),
    "noise_scale": (("step",), "factor of noise in the hop that leaves this row"),
    "noise_std": (("step", "sample"), "standard deviation of noise (population)"),
    "noise_lag": (("step", "sample"), "correlation of noise with that of the rung above; 0 for the first"),
    "residual": (("step", "sample"), "relative distance of the step down from the row below it"),
    "iterations": (("step", "sample"), "iterations until the best solution of the step"),
    "sweep_error": (("sweep", "sample"), "round-trip error after each sweep of defect correction"),
    "shift": (("step", "sample", "channel"), "what normalising subtracts from latent"),
    "scale": (("step", "sample", "channel"), "what normalising divides latent by (unbiased std)"),
    "mask": (("sample", "y", "x"), "weight of the model's answer; the rest is the original"),
    "base_mask": (("y", "x"), "where the base sampler of a regional node works"),
    "region_mask": (("region", "y", "x"), "mask of each region on the latent; of a base, what they leave"),
    "weight": (("step", "region", "y", "x"), "share of each region in the answer at this level"),
    "conflict": (
        ("step", "region", "sample"),
        "rms of a region's opinion minus the fused one, where it has weight",
    ),
    "seam_gradient": (("step", "sample"), "mean gradient of denoised where regions meet over that elsewhere"),
}

COORDINATES: dict[str, tuple[str, str]] = {
    "step": ("rung, counted from the first row", "1"),
    "region": ("region, in the order given", "1"),
    "sigma": ("noise level", "1"),
    "timestep": ("the model's clock at this noise level", "1"),
    "alpha": ("scale of the clean signal at this noise level", "1"),
    "log_snr": ("log of the signal to noise ratio, 2 log(alpha/sigma)", "1"),
    "sample": ("position in the batch", "1"),
    "channel": ("latent channel", "1"),
    "y": ("row of the latent", "latent pixel"),
    "x": ("column of the latent", "latent pixel"),
}


@dataclass(frozen=True)
class Save:
    """What a run keeps, and where.

    Parameters
    ----------
    what : sequence of str, optional
        Which of ``"latent"`` and ``"denoised"`` to keep; None keeps both. What an exact replay needs
        (`offset`, `aux`) and the counters are always kept.
    every : int
        Keep each k-th row. The step axis stays whole, rows between are NaN; the first and the last row are
        always kept.
    fn : callable, optional
        ``fn(step) -> dict`` of extra variables, called with each `Step`; scalars, (sample,), (sample,
        channel) or (sample, channel, y, x), written in the row the step starts from.
    store : path, optional
        A folder for a Zarr store, written as the run goes; read it with ``tk.open``. The same call with the
        same store goes on where an unfinished run stopped, and opens a finished one. None keeps the run in
        memory.
    dtype : str or numpy dtype, optional
        Of `latent` and `denoised`: float64 for runs of a solver and float32 for ladders unless said
        otherwise.
    compressor : {"blosc", "zstd", "gzip"}, optional
        Of the store. None, since noise does not compress: 7 to 14 %, at up to 36 times the time.

    Raises
    ------
    ValueError, TypeError
        For a name, a number or a dtype that cannot be kept.

    Examples
    --------
    >>> import toolkit as tk
    >>> tk.Save(every=5, dtype="float32").every
    5
    """

    what: Sequence[str] | None = None
    every: int = 1
    fn: Callable[[Any], Mapping[str, Any]] | None = None
    store: str | PathLike[str] | None = None
    dtype: Any = None
    compressor: str | None = None

    def __post_init__(self) -> None:
        if self.what is not None and not isinstance(self.what, (list, tuple, set, frozenset)):
            raise bad("what", self.what, "a list of names", 'tk.Save(what=["latent"])', TypeError)
        for name in self.what or ():
            if name not in ("latent", "denoised"):
                raise unknown("what", name, ("latent", "denoised"), 'tk.Save(what=["{}"])')
        if isinstance(self.every, bool) or not isinstance(self.every, (int, np.integer)) or self.every < 1:
            raise bad("every", self.every, "a whole number of rows, 1 or more", "tk.Save(every=1)")
        if self.fn is not None and not callable(self.fn):
            raise bad(
                "fn", self.fn, "a function of a Step that returns a dict", "tk.Save(fn=None)", TypeError
            )
        if self.dtype is not None:
            try:
                kind = np.dtype(self.dtype).kind
            except TypeError:
                kind = "?"
            if kind != "f" or np.dtype(self.dtype).itemsize > 8:
                wanted = "float16, float32 or float64"
                raise bad("dtype", self.dtype, wanted, 'tk.Save(dtype="float32")', TypeError)
        if self.store is not None and not isinstance(self.store, (str, PathLike)):
            raise bad("store", self.store, "the path of a folder", 'tk.Save(store="run.zarr")', TypeError)
        if self.compressor is not None and self.compressor not in COMPRESSORS:
            line = 'tk.Save(store="run.zarr", compressor="{}")'
            raise unknown("compressor", self.compressor, COMPRESSORS, line)

    def keeps(self, name: str) -> bool:
        """Whether `name` (latent or denoised) is kept."""
        return self.what is None or name in self.what


def attributes(name: str) -> dict[str, str]:
    """`long_name` and `units` of a variable or coordinate."""
    if name in COORDINATES:
        text, units = COORDINATES[name]
        return {"long_name": text, "units": units}
    return {"long_name": VARIABLES[name][1] if name in VARIABLES else name, "units": "1"}


def rung_coordinates(sigmas: Sequence[float], levels: Any, path: Any) -> dict[str, Any]:
    """Coordinates on `step`: sigma, the model's timestep, alpha and log-SNR, each of shape (step,)."""
    sigma = np.asarray(sigmas, np.float64)
    columns = {
        "step": np.arange(len(sigma)),
        "sigma": sigma,
        "timestep": levels.time(sigma),
        "alpha": path.alpha(sigma) * np.ones_like(sigma),
        "log_snr": path.log_snr(sigma),
    }
    return {name: ("step", values, attributes(name)) for name, values in columns.items()}


def latent_coordinates(shape: Sequence[int], channels: Sequence[str] | None = None) -> dict[str, Any]:
    """Coordinates of a (sample, channel, y, x) array; channels are c0, c1, ... unless named."""
    samples, count, height, width = shape
    names = list(channels) if channels is not None else [f"c{k}" for k in range(count)]
    columns = {
        "sample": np.arange(samples),
        "channel": np.array(names, dtype=object),
        "y": np.arange(height),
        "x": np.arange(width),
    }
    return {name: (name, values, attributes(name)) for name, values in columns.items()}


def label(data: Mapping[str, Any], coordinates: Mapping[str, Any], attrs: Mapping[str, Any]) -> xr.Dataset:
    """The Dataset of arrays by name: dims from the table of variables, or given as (dims, array)."""
    variables = {}
    for name, value in data.items():
        dims, array = value if isinstance(value, tuple) else (VARIABLES[name][0], value)
        variables[name] = (dims, array, attributes(name))
    return xr.Dataset(variables, coords=dict(coordinates), attrs=dict(attrs))


def moments(latent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population std of each channel: (..., channel, y, x) to two arrays (..., channel), in float64.

    One row at a time gives the same bits as all at once, so that a streamed run equals one in memory.
    """
    lead, flat = (
        latent.shape[:-2],
        latent.reshape(-1, latent.shape[-2] * latent.shape[-1]).astype(np.float64, copy=False),
    )
    mean = flat.mean(axis=1)
    std = np.sqrt(np.square(flat - mean[:, None]).mean(axis=1))
    return mean.reshape(lead), std.reshape(lead)


def shift_and_scale(latent: np.ndarray, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """What `mode` subtracts and divides by: (..., sample, channel, y, x) to two of (..., sample, channel).

    off: 0 and 1. global: one mean and std of the whole batch; sample: one a sample; channel: one a sample and
    channel. The std is the unbiased one; where it is 0 the scale is 1.
    """
    if mode not in NORMALIZE:
        raise unknown("normalize", mode, NORMALIZE, 'normalize="{}"')
    lead = latent.shape[:-2]
    if mode == "off":
        return np.zeros(lead), np.ones(lead)
    axes = {"global": (-4, -3, -2, -1), "sample": (-3, -2, -1), "channel": (-2, -1)}[mode]
    values = latent.astype(np.float64, copy=False)
    shift = values.mean(axis=axes, keepdims=True)
    count = np.prod([latent.shape[k] for k in axes])
    scale = values.std(axis=axes, ddof=1 if count > 1 else 0, keepdims=True)
    scale = np.where(scale > 0, scale, 1.0)
    return tuple(np.broadcast_to(v[..., 0, 0], lead).copy() for v in (shift, scale))


def from_moments(mean: np.ndarray, std: np.ndarray, pixels: int, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """`shift_and_scale` of latents of which mean and population std are known, (..., sample, channel).

    Each is that of so many pixels. The variance over several channels is the mean of theirs and the variance
    of their means. A scale that is nothing but rounding counts as 0.
    """
    if mode == "off":
        return np.zeros(mean.shape), np.ones(mean.shape)
    axes = {"global": (-2, -1), "sample": (-1,), "channel": ()}[mode]
    count = pixels * int(np.prod([mean.shape[k] for k in axes]))
    shift = mean.mean(axis=axes, keepdims=True) if axes else mean
    variance = np.square(std) + np.square(mean - shift)
    variance = variance.mean(axis=axes, keepdims=True) if axes else variance
    scale = np.sqrt(variance * count / max(count - 1, 1))
    scale = np.where(scale > 1e-14 * np.abs(shift), scale, 1.0)
    return tuple(np.broadcast_to(v, mean.shape).copy() for v in (shift, scale))


def normalized(ds: xr.Dataset, mode: str) -> xr.Dataset:
    """The run as `mode` normalises it: the last row (every row, for ladders) minus `shift` over `scale`.

    Parameters
    ----------
    ds : Dataset
        A recorded run; its `latent` holds the raw states.
    mode : {"off", "global", "sample", "channel"}
        Over what mean and unbiased std are taken: all of a rung, each sample, each channel of each sample.

    Returns
    -------
    Dataset
        The same run with `latent`, `mean`, `std`, `shift` and `scale` replaced, and ``attrs["normalized"]``
        set.

    Raises
    ------
    ValueError
        For an unknown mode, a Dataset without `latent`, or one that is normalised already.

    Examples
    --------
    >>> import toolkit as tk
    >>> flat = tk.normalized(tk.testing.ladder_dataset(), "channel")
    >>> bool(abs(flat.latent[-1].mean()) < 1e-6)
    True
    """
    _dataset(ds, "tk.normalized(run, 'global')")
    if "latent" not in ds:
        raise bad(
            "ds",
            list(ds.data_vars),
            "a Dataset with a variable `latent`",
            "tk.normalized(tk.unsample(...), 'global')",
        )
    if ds.attrs.get("normalized", "off") != "off":
        raise bad(
            "ds", ds.attrs["normalized"], "it is normalised already; start from the raw run", "tk.open(path)"
        )
    rows = slice(None) if ds.attrs.get("kind") == "ladder" else slice(-1, None)
    raw = ds.latent.transpose(*LATENT).values
    latent = raw.copy()
    shift, scale = shift_and_scale(raw[rows], mode)
    if mode != "off":
        latent[rows] = (raw[rows] - shift[..., None, None]) / scale[..., None, None]
    mean, std = moments(latent)
    if rows != slice(None):
        shift, scale = shift[0], scale[0]
    dims = ("step", "sample", "channel")[-shift.ndim :]
    new = {"latent": latent, "mean": mean, "std": std, "shift": (dims, shift), "scale": (dims, scale)}
    return ds.assign(label(new, {}, {}).data_vars).assign_attrs(normalize=mode, normalized=mode)


def _dataset(ds: Any, line: str) -> None:
    if not isinstance(ds, xr.Dataset):
        raise bad("ds", ds, "the Dataset of a run", line, TypeError)


def at(ds: xr.Dataset, **where: float) -> xr.Dataset:
    """The rung nearest to a level; the first of equals.

    Parameters
    ----------
    ds : Dataset
        A recorded run, or anything else with `step` and its coordinates.
    **where : float
        One of ``sigma``, ``timestep``, ``alpha``, ``log_snr``, ``step``.

    Returns
    -------
    Dataset
        Without the dimension `step`, which stays as a scalar coordinate.

    Raises
    ------
    ValueError, TypeError
        For no level or more than one, an unknown one, or one that is not a number.

    Examples
    --------
    >>> import toolkit as tk
    >>> round(float(tk.at(tk.testing.ladder_dataset(), sigma=7).sigma), 3)
    7.384
    """
    _dataset(ds, "tk.at(run, sigma=7)")
    if len(where) != 1:
        raise bad("where", where, "exactly one level", "tk.at(ds, sigma=7)", TypeError)
    (name, value), known = next(iter(where.items())), ("sigma", "timestep", "alpha", "log_snr", "step")
    if name not in known:
        raise unknown("where", name, known, "tk.at(ds, {}=7)")
    if not isinstance(value, (int, float, np.number)) or np.isnan(value):
        raise bad(name, value, "a number", f"tk.at(ds, {name}=7)")
    if name not in ds.coords:
        raise bad("ds", list(ds.coords), f"a Dataset with the coordinate {name}", "tk.at(run, sigma=7)")
    axis = np.asarray(ds[name].values, np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.abs(axis - float(value))
    gap[axis == value] = 0.0  # inf - inf is NaN, and is a hit
    return ds.isel(step=int(np.nanargmin(gap)))
