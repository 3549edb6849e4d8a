"""What every diagnostic asks of a Dataset, and how it reads one that may be larger than memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ..dataset import LATENT
from ..errors import bad, unknown
from ..spaces import in_space

BLOCK = 2**21  # values of one variable read and held in float64 at once: 16 MiB, 128 rungs of 4 x 64 x 64
OF = ("noise", "latent")

# what a diagnostic finds: name -> (dims, values, long_name, units)
Found = Mapping[str, tuple[Sequence[str], Any, str, str]]


def checked(ds: Any, line: str, *names: str, coords: Sequence[str] = ("sigma", "alpha"), rungs: int = 1,
            raw: bool = False) -> xr.Dataset:  # fmt: skip
    """`ds` in model space, its `names` as (step, sample, channel, y, x); `line` ends the error if not so.

    ``rungs`` is the fewest that will do, 0 or 1. Normalised states are in no space: they are refused where
    ``raw`` states are asked for, else left as they are. Raises TypeError for what is no Dataset, ValueError
    where a variable or a coordinate is missing.
    """
    if not isinstance(ds, xr.Dataset):
        raise bad("ds", ds, "a Dataset of a recorded run", line, TypeError)
    for name in names:
        if name not in ds or set(ds[name].dims) != set(LATENT):
            raise bad("ds", list(ds.data_vars), f"a variable `{name}` ({', '.join(LATENT)})", line)
    if not set(coords) <= set(ds.coords):
        wanted = "a Dataset with the coordinates " + ", ".join(f"`{name}`" for name in coords) + " on step"
        raise bad("ds", list(ds.coords), wanted, line)
    if 0 in {n for dim, n in ds.sizes.items() if dim != "step"} or ds.sizes.get("step", rungs) < rungs:
        wanted = "at least one of each: rungs, samples, channels and pixels"
        raise bad("ds", dict(ds.sizes), wanted, line)
    if ds.attrs.get("normalized", "off") != "off":
        if raw:
            wanted = "raw states; normalised ones hold no noise of a known size"
            raise bad("ds", ds.attrs["normalized"], wanted, line)
        return ds
    return in_space(ds, "model") if ds.attrs.get("latent_space") == "vae" else ds


def blocks(array: xr.DataArray, size: int | None = None) -> Iterator[tuple[slice, np.ndarray]]:
    """The rungs of (step, sample, channel, y, x) a few at a time, float64: a store is not read whole.

    ``size`` is how many values at most, `BLOCK` unless given; a single rung may be more. What is handed out
    may be the run's own memory: it is read, never written.
    """
    array = array.transpose(*LATENT)
    rows = max((size or BLOCK) // max(array[:1].size, 1), 1)
    for first in range(0, array.sizes["step"], rows):
        part = slice(first, min(first + rows, array.sizes["step"]))
        yield part, array[part].values.astype(np.float64, copy=False)


@dataclass(frozen=True)
class Rows:
    """The rungs of a run, raw or as their noise, read a block at a time, as often as one iterates.

    ``clean`` is x0 (sample, channel, y, x) in float64, of which the noise n = (x - alpha x0)/sigma is what is
    left; NaN at sigma 0, where there is none. Without it the rungs are the states themselves.
    """

    ds: xr.Dataset
    clean: np.ndarray | None

    def __iter__(self) -> Iterator[tuple[slice, np.ndarray]]:
        return self.read()

    def read(self, size: int | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """Which rungs, and their values (step, sample, channel, y, x): as `blocks`."""
        for part, latent in blocks(self.ds["latent"], size):
            yield part, latent if self.clean is None else self.noise(part, latent)

    def noise(self, part: slice, latent: np.ndarray) -> np.ndarray:
        """What of these states, at the rungs `part`, is noise: (step, sample, channel, y, x)."""
        sigma, alpha = (
            np.asarray(self.ds[name].values[part], np.float64)[:, None, None, None, None]
            for name in ("sigma", "alpha")
        )
        with np.errstate(invalid="ignore"):  # Inf - Inf
            noise = latent - alpha * self.clean
            noise /= np.where(sigma > 0, sigma, np.nan)
        return noise

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of step, sample, channel, y and x."""
        return tuple(self.ds["latent"].sizes[dim] for dim in LATENT)

    def take(self, every: int) -> "Rows":
        """Each `every`-th rung, with the same x0."""
        return Rows(self.ds.isel(step=slice(None, None, every)), self.clean)


def rows(ds: Any, line: str, of: str = "noise", x0: Any = None) -> Rows:
    """The rungs of a run as its noise or its states: checked, in model space.

    ``x0`` is the clean image (sample, channel, y, x), in the space of `ds`; None: the row of sigma 0. Raises
    ValueError for an unknown ``of``, an x0 of another shape, normalised states, and a run without a clean
    row that is given none; TypeError for an x0 that is no array of numbers.
    """
    if of not in OF:
        raise unknown("of", of, OF, line.split("(", 1)[0] + '(run, of="{}")')
    run = checked(ds, line, "latent", raw=of == "noise")
    return Rows(run, _clean(run, ds.attrs.get("latent_space"), x0, line) if of == "noise" else None)


def _clean(run: xr.Dataset, space: str | None, x0: Any, line: str) -> np.ndarray:
    """x0 in model space, (sample, channel, y, x): what was given in this space, or the row of sigma 0."""
    call = line.split("(", 1)[0]
    latent = run["latent"].transpose(*LATENT)
    if x0 is None:
        zero = np.flatnonzero(run["sigma"].values == 0)
        if not zero.size:
            wanted = "this run has no row at sigma 0; give the clean latent (sample, channel, y, x)"
            raise bad("x0", None, wanted, f"{call}(run, x0=latent)")
        return latent[int(zero[0])].values.astype(np.float64)
    wanted = f"an array {LATENT[1:]} of the run's size {latent.shape[1:]}".replace("'", "")
    if isinstance(x0, xr.DataArray):
        if set(x0.dims) != set(LATENT[1:]):
            raise bad("x0", x0.dims, wanted, f"{call}(run, x0=run.latent[0])")
        x0 = x0.transpose(*LATENT[1:]).values
    try:
        values = np.asarray(x0)
        if values.dtype.kind not in "fiu":
            raise TypeError
    except (TypeError, ValueError, RuntimeError):  # a tensor on a GPU, or one that wants a gradient, too
        raise bad("x0", type(x0).__name__, wanted, f"{call}(run, x0=run.latent[0])", TypeError) from None
    if values.shape != latent.shape[1:]:
        raise bad("x0", values.shape, wanted, f"{call}(run, x0=run.latent[0])")
    values = values.astype(np.float64)
    if space == "vae":  # as `in_space` does
        scale, shift = float(run.attrs.get("latent_scale", 1.0)), float(run.attrs.get("latent_shift", 0.0))
        values = (values - shift) * scale
    return values


def labelled(found: Found, ds: xr.Dataset, kind: str, coords: Mapping[str, Any] | None = None) -> xr.Dataset:
    """The Dataset of what was found, with the coordinates of `ds` that fit, and its attributes.

    ``kind`` becomes `kind`, and ``<kind>_of`` names that of `ds`.
    """
    data = {n: (dims, v, {"long_name": text, "units": u}) for n, (dims, v, text, u) in found.items()}
    used = {d for dims, *_ in found.values() for d in dims}
    kept = {n: c for n, c in ds.coords.items() if set(c.dims) <= used and (c.dims or used)}
    attrs = ds.attrs | {"kind": kind, f"{kind}_of": ds.attrs.get("kind", "")}
    return xr.Dataset(data, {**kept, **(coords or {})}, attrs)
