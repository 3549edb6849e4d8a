"""All diagnostics of a run in one Dataset. Another one is a function, and a row in the table."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from .common import checked
from .correlation import cosine_matrix, image_correlation, rung_correlation
from .geometry import principal_components, thinning, trajectory
from .noise import normality
from .quality import run_quality
from .spectrum import autocorrelation, power_spectrum
from .statistics import moments
from .texture import texture_error

PLAINEST = 0.25  # part of the pixels that counts as plain: the paper's threshold is of images, not of latents


class Asked(NamedTuple):
    """What `report` was given."""

    ds: xr.Dataset
    x0: Any
    returned: Any


class Row(NamedTuple):
    """A diagnostic, and how its variables are called where another one uses the same name."""

    find: Callable[[Asked], xr.Dataset]
    names: Mapping[str, str] = {}


TABLE: Mapping[str, Row] = {
    "moments": Row(lambda run: moments(run.ds)),
    "normality": Row(lambda run: normality(run.ds, run.x0)),
    "image_correlation": Row(lambda run: image_correlation(run.ds, run.x0)),
    "rung_correlation": Row(
        lambda run: rung_correlation(run.ds, run.x0), {"expected": "expected_correlation"}
    ),
    "cosine_matrix": Row(lambda run: cosine_matrix(run.ds)),
    "power_spectrum": Row(lambda run: power_spectrum(run.ds, x0=run.x0)),
    "autocorrelation": Row(lambda run: autocorrelation(run.ds, run.x0)),
    "texture_error": Row(
        lambda run: texture_error(run.ds, x0=run.x0, quantile=PLAINEST), {"std_ratio": "texture_ratio"}
    ),
    "trajectory": Row(lambda run: trajectory(run.ds)),
    "principal_components": Row(
        lambda run: principal_components(run.ds, every=thinning(run.ds.sizes["step"]))
    ),
    "run_quality": Row(lambda run: run_quality(run.ds, run.returned)),
}


def report(ds: xr.Dataset, x0: Any = None, returned: xr.Dataset | None = None) -> xr.Dataset:
    """Every diagnostic that can be had of a run, in one Dataset, and why of each that can not.

    Parameters
    ----------
    ds : Dataset
        A recorded run or ladder, rising or falling: `latent` (step, sample, channel, y, x), with the
        coordinates `sigma` and `alpha`. It is read a block at a time, once or twice by each diagnostic.
    x0 : array (sample, channel, y, x), optional
        The clean image, in the space of `ds`, from which the noise of a rung is told; None takes the row of
        sigma 0.
    returned : Dataset, optional
        The replay of `ds`, or the Dataset of ``tk.round_trip``, for the round-trip error.

    Returns
    -------
    Dataset
        The variables of `moments`, `normality`, `image_correlation`, `rung_correlation`, `cosine_matrix`,
        `power_spectrum`, `autocorrelation`, `texture_error` (of the plainest quarter), `trajectory`,
        `principal_components` (of at most 2,048 rows) and `run_quality`, each with its definition as
        `long_name`. Two are renamed: what `rung_correlation` calls expected is `expected_correlation`, and
        std_ratio of `texture_error` is `texture_ratio`. `residual_noise`, as large as the run, is not in it.

        ``attrs["left_out"]``, name -> why, lists what could not be had: a diagnostic that such a run does not
        allow, one of which every number is NaN, and what `run_quality` leaves out. ``attrs["settings"]``,
        name -> its own attributes, says how each was taken. ``kind`` is "report".

    Raises
    ------
    TypeError, ValueError
        For what is no Dataset, and one without `latent` or the coordinates of a run; for an x0 or a replay
        that does not fit.

    References
    ----------
    Those of each diagnostic.

    Examples
    --------
    >>> import toolkit as tk
    >>> found = tk.diagnostics.report(tk.testing.ladder_dataset())
    >>> "shapiro_p" in found, found.attrs["left_out"]["aux_gap"]
    (True, 'no variable `aux_gap`: only a reversible solver has a second state')
    """
    line = "tk.diagnostics.report(tk.testing.ladder_dataset())"
    one = ds.isel(step=slice(0, 1)) if isinstance(ds, xr.Dataset) and "step" in ds.dims else ds
    base = checked(one, line, "latent").attrs  # in model space, as what is found
    asked = Asked(ds, x0, returned)
    _fitting(asked)
    parts: list[xr.Dataset] = []
    left_out: dict[str, str] = {}
    settings: dict[str, dict] = {}
    for name, row in TABLE.items():
        try:
            found = row.find(asked)
        except ValueError as exc:  # such a run does not allow it: the error says why, and what to type
            left_out[name] = str(exc)
            continue
        own = {k: v for k, v in found.attrs.items() if k not in base or base[k] != v}
        left_out |= own.pop("left_out", {})
        settings[name] = {k: v for k, v in own.items() if k != "kind" and not k.endswith("_of")}
        if _nothing(found):
            left_out[name] = "every number of it is NaN: it needs other rungs than this run has"
            continue
        parts.append(found.rename({old: new for old, new in row.names.items() if old in found}))
    attrs = {"kind": "report", "report_of": base.get("kind", "")}
    notes = {"left_out": left_out, "settings": {name: own for name, own in settings.items() if own}}
    return together(parts, base | attrs | notes)


def _fitting(asked: Asked) -> None:
    """What was given beside the run is wrong rather than not to be had: its error is not for the list."""
    one = asked.ds.isel(step=slice(0, 1))
    if asked.x0 is not None:
        image_correlation(one, asked.x0)
    if asked.returned is not None:
        run_quality(one, asked.returned)


def together(parts: Iterable[xr.Dataset], attrs: Mapping[str, Any]) -> xr.Dataset:
    """Several diagnostics of one run as one Dataset."""
    data: dict[str, Any] = {}
    coords: dict[str, Any] = {}
    for part in parts:
        data |= dict(part.data_vars)
        coords |= {name: part.coords[name] for name in part.coords if name not in coords}
    return xr.Dataset(
        {n: v.variable for n, v in data.items()}, {n: c.variable for n, c in coords.items()}, attrs
    )


def _nothing(found: xr.Dataset) -> bool:
    """Whether there is not one number in it, of the rungs where it has some a rung."""
    numbers = [v for v in found.data_vars.values() if v.dtype.kind == "f"]
    by_rung = [v for v in numbers if "step" in v.dims]
    return not any(np.isfinite(v.values).any() for v in by_rung or numbers)
