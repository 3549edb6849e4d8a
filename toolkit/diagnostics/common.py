"""What every diagnostic asks of a Dataset, and how it reads one that may be larger than memory."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ..dataset import LATENT
from ..errors import bad
from ..spaces import in_space

BLOCK = 2**23  # values of one variable read and held in float64 at once: 64 MiB

# what a diagnostic finds: name -> (dims, values, long_name, units)
Found = Mapping[str, tuple[Sequence[str], Any, str, str]]


def checked(ds: Any, line: str, *names: str, coords: Sequence[str] = ("sigma", "alpha")) -> xr.Dataset:
    """`ds` in model space, its `names` as (step, sample, channel, y, x); `line` ends the error if not so.

    Raises TypeError for what is no Dataset, ValueError where a variable or a coordinate is missing.
    """
    if not isinstance(ds, xr.Dataset):
        raise bad("ds", ds, "a Dataset of a recorded run", line, TypeError)
    for name in names:
        if name not in ds or set(ds[name].dims) != set(LATENT):
            raise bad("ds", list(ds.data_vars), f"a variable `{name}` ({', '.join(LATENT)})", line)
    if not set(coords) <= set(ds.coords):
        wanted = f"a Dataset with the coordinates {', '.join(coords)} on step"
        raise bad("ds", list(ds.coords), wanted, line)
    if 0 in ds.sizes.values():
        raise bad("ds", dict(ds.sizes), "at least one of each: rungs, samples, channels and pixels", line)
    return in_space(ds, "model") if ds.attrs.get("latent_space") == "vae" else ds


def blocks(array: xr.DataArray) -> Iterator[tuple[slice, np.ndarray]]:
    """The rungs of (step, sample, channel, y, x) a few at a time, float64: a store is not read whole."""
    array = array.transpose(*LATENT)
    rows = max(BLOCK // max(array[0].size, 1), 1)
    for first in range(0, array.sizes["step"], rows):
        part = slice(first, min(first + rows, array.sizes["step"]))
        yield part, array[part].values.astype(np.float64, copy=False)


def labelled(found: Found, ds: xr.Dataset, kind: str, coords: Mapping[str, Any] | None = None) -> xr.Dataset:
    """The Dataset of what was found, with the coordinates of `ds` that fit, and its attributes.

    ``kind`` becomes `kind`, and ``<kind>_of`` names that of `ds`.
    """
    data = {n: (dims, v, {"long_name": text, "units": u}) for n, (dims, v, text, u) in found.items()}
    used = {d for dims, *_ in found.values() for d in dims}
    kept = {n: c for n, c in ds.coords.items() if set(c.dims) <= used and (c.dims or used)}
    attrs = ds.attrs | {"kind": kind, f"{kind}_of": ds.attrs.get("kind", "")}
    return xr.Dataset(data, {**kept, **(coords or {})}, attrs)
