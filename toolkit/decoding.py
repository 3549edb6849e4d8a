"""Images of the rungs of a run, as labelled data: one rung at a time, so that only the result needs room."""

from typing import Any

import numpy as np
import xarray as xr

from .errors import bad

MOST = 2**31  # bytes of images; a run has its rungs in 8 x 8 times as few numbers
LINE = "ds.ladder.decode(model)"
SOURCES = ("latent", "denoised")


def decode(ds: xr.Dataset, model: Any, of: str = "latent") -> xr.DataArray:
    """The images that a model's decoder makes of every rung.

    Parameters
    ----------
    ds : Dataset
        A recorded run, or one rung of it.
    model : object with ``decode(latent) -> (sample, y, x, rgb)`` in 0..1
    of : {"latent", "denoised"}
        What is decoded.

    Returns
    -------
    DataArray
        `image` (step, sample, y, x, rgb) in float32, without `step` for one rung; with the coordinates of the
        rungs and samples. NaN where a rung was not kept, or the model was not called.

    Raises
    ------
    ValueError, TypeError
        For a Dataset without the variable, a model that cannot decode, and more than 2 GB of images.

    Examples
    --------
    >>> import toolkit as tk, toolkit.accessor
    >>> model = tk.load()
    >>> run = tk.sample(model, prompt=3, steps=4, progress=False)
    >>> dict(run.ladder.decode(model).sizes)
    {'step': 5, 'sample': 1, 'y': 32, 'x': 32, 'rgb': 3}
    """
    if of not in SOURCES or of not in ds:
        raise bad("of", of, f"there are {[n for n in SOURCES if n in ds]}", f'{LINE[:-1]}, of="latent")')
    if not callable(getattr(model, "decode", None)):
        wanted = "it has no decode(latent) to make images with"
        raise bad("model", model, wanted, "ds.ladder.decode(tk.load())", TypeError)
    latent, single = ds[of], "step" not in ds[of].dims
    latent = latent.expand_dims("step") if single else latent
    latent = latent.transpose("step", ...).drop_vars("step", errors="ignore")
    images = None
    for row in range(latent.sizes["step"]):
        values = latent.isel(step=row)
        if not np.isfinite(values.values).all():
            continue
        made = np.asarray(model.decode(values), np.float32)
        images = _room(latent.sizes["step"], made.shape) if images is None else images
        images[row] = made
    if images is None:
        raise bad("ds", of, "no rung of it is finite", f"{LINE[:-1]}, of={SOURCES[of == 'latent']!r})")
    kept = {n: c for n, c in ds.coords.items() if set(c.dims) <= {"step", "sample"}}
    steps = {n: c for n, c in kept.items() if not single or "step" not in c.dims}
    image = xr.DataArray(images, dims=("step", "sample", "y", "x", "rgb"), name="image")
    image = image.isel(step=0) if single else image
    return image.assign_coords(steps).assign_attrs(long_name=f"{of} as an image", units="1")


def _room(rows: int, shape: tuple[int, ...]) -> np.ndarray:
    """Room for the images of all rows, NaN; or the error that says how many fit."""
    each = 4 * int(np.prod(shape))
    if rows * each > MOST:
        every = -(-rows * each // MOST)
        wanted = f"{rows * each / 2**30:.1f} GB of images; at most {MOST // 2**30}"
        raise bad("ds", rows, wanted, f"ds.isel(step=slice(None, None, {every})).ladder.decode(model)")
    return np.full((rows, *shape), np.nan, np.float32)
