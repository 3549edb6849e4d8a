"""The normalise comparator: a run as it was recorded beside the same run normalised."""

from functools import cache
from os import PathLike
from pathlib import Path

import numpy as np
import traitlets as t
import xarray as xr
from scipy.special import ndtri

from ..dataset import NORMALIZE, shift_and_scale
from ..errors import bad, unknown
from .page import PAGE_BYTES, SIX_BITS, packed_bytes, place, write
from .payload import TOP, Payload, build, check
from .scene import Column, Scene, coded
from .sheet import contact_sheet
from .unpacked import Run
from .widget import ValueView, source

SHOWS = ("split", "blink", "difference")
LINE = "tk.views.normalize(run)"
LIMIT = 4.0  # of the colours of a still picture, as of the view's


@cache
def module() -> str:
    """The comparator's ES module."""
    return source("rungs.js", "normal.js")


def unit(sigma: np.ndarray) -> np.ndarray:
    """What a raw state is divided by to be held against N(0, 1): sigma, and 1 where there is less noise."""
    return np.where(sigma > 1, sigma, 1.0)


def distances(values: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Wasserstein-1 distance of (values - shift) / scale to N(0, 1), (..., channel, y, x) to (..., channel).

    N(0, 1) stands as its quantiles in the middle of each of n equal parts, so that the distance is the mean
    gap of sorted values: ``scipy.stats.wasserstein_distance`` of values and quantiles. NaN stays NaN.
    """
    flat = np.sort(values.reshape(*values.shape[:-2], -1).astype(np.float64), axis=-1)
    count = flat.shape[-1]
    quantiles = ndtri((np.arange(count) + 0.5) / count)
    with np.errstate(invalid="ignore"):  # a state that ran to infinity
        return np.abs((flat - shift[..., None]) / scale[..., None] - quantiles).mean(axis=-1)


def tables(latent: np.ndarray, sigma: np.ndarray) -> dict[str, np.ndarray]:
    """Of each mode, `shift`, `scale` and the distance `w1` of (rung, sample, channel), from the values.

    A mode does to every rung what ``tk.normalized`` does to the last one, or to every one of a ladder. `off`
    has the scale of `unit`. One rung at a time: sorting all at once takes several times the memory.
    """
    out = {
        f"{mode}.{name}": np.zeros(latent.shape[:3])
        for mode in NORMALIZE
        for name in ("shift", "scale", "w1")
    }
    for row, values in enumerate(latent):
        for mode in NORMALIZE:
            with np.errstate(invalid="ignore"):
                shift, scale = shift_and_scale(values, mode)
            scale = scale * unit(sigma[row]) if mode == "off" else scale
            columns = {"shift": shift, "scale": scale, "w1": distances(values, shift, scale)}
            for name, column in columns.items():
                out[f"{mode}.{name}"][row] = column
    return out


def pack(dataset: xr.Dataset, top: int = TOP) -> Payload:
    """The payload of the scrubber without denoised, and with the tables of all modes."""
    try:
        # mean and std are taken anew: those of a run of which a part was picked are of the whole
        ds = check(dataset).drop_vars(["denoised", "mean", "std"], errors="ignore")
        payload = build(ds, top=top)
    except (ValueError, TypeError) as error:  # the line to type is another one here
        raise type(error)(str(error).replace("tk.view(", "tk.views.normalize(")) from None
    if ds.attrs.get("normalized", "off") != "off":
        wanted = "raw states, and this run is normalised already; start from the run as it was recorded"
        raise bad("dataset", ds.attrs["normalized"], wanted, LINE)
    rows = payload.meta["rungs"]
    extra = tables(ds.latent[rows].values, np.atleast_1d(np.asarray(ds.sigma.values, np.float64))[rows])
    payload.meta["floats"] += [[name, table.size] for name, table in extra.items()]
    payload.meta["ladder"] = ds.attrs.get("kind") == "ladder"
    payload.floats += np.concatenate([table.ravel() for table in extra.values()]).astype("<f4").tobytes()
    return payload


class Normalizer(ValueView):
    """A run beside itself normalised; made by ``tk.views.normalize``.

    Attributes
    ----------
    rung : int
        The row of the Dataset that is shown, at first the last one; setting it goes to the nearest rung that
        was kept. Negative numbers count from the end.
    sigma : float
        The level of that rung; setting it goes to the rung nearest to it.
    mode : {"off", "global", "sample", "channel"}
        What the right of the divider is normalised by.
    channel, sample : int
        What the large picture shows.
    divider : float
        Where the divider stands, 0 (left) to 1.
    show : {"split", "blink", "difference"}
        How the large picture compares the two.
    colormap : str
        ``"tk"``, or any name that matplotlib knows.
    pixel : list
        What lies under a resting pointer or the pin: ``["latent", channel, y, x, rung]``.

    Examples
    --------
    >>> import toolkit as tk
    >>> view = tk.views.normalize(tk.testing.unsample_dataset())
    >>> view.sigma = 7
    >>> view, view.rung, view.mode
    (Normalizer(unsample, 21 rungs, 1 sample, 4 channels), 17, 'channel')
    """

    _esm = module()

    channel = t.Int(0).tag(sync=True)
    mode = t.Enum(NORMALIZE, "channel").tag(sync=True)
    show = t.Enum(SHOWS, SHOWS[0]).tag(sync=True)
    divider = t.Float(0.5, min=0.0, max=1.0).tag(sync=True)

    def __init__(self, dataset: xr.Dataset, mode: str = "channel"):
        if mode not in NORMALIZE:
            raise unknown("mode", mode, NORMALIZE, 'tk.views.normalize(run, "{}")')
        payload = pack(dataset)
        self._picture = b""
        last = {"rung": payload.meta["rungs"][-1], "sigma": float(payload.meta["sigma"][-1])}
        super().__init__(check(dataset), payload, mode=mode, **last)

    def _still(self) -> bytes:
        self._picture = self._picture or contact_sheet(self._dataset)
        return self._picture

    def _scene(self, scale: float) -> Scene:
        return Scene(self, self._columns, scale)

    def _columns(self, run: Run) -> list[Column]:
        """The two sides, each with all channels, on one scale."""
        mine = {name: run.table[f"latent.{name}"][:, self.sample] for name in ("lo", "hi")}

        def side(mode: str, title: str, second: str) -> Column:
            shift, by = (run.table[f"{mode}.{name}"][:, self.sample] for name in ("shift", "scale"))

            def ends(k: int, c: int) -> tuple[float, float]:
                lo, hi = ((mine[name][k, c] - shift[k, c]) / by[k, c] for name in ("lo", "hi"))
                return float(lo), float(hi)

            def reach(k: int) -> float:
                return LIMIT

            return Column(mode, title, second, coded(run, "latent", self, ends, reach), reach)

        mode = self.mode if self.mode != "off" else "channel"
        return [side("off", "Off", "as recorded, over σ above 1"), side(mode, "Normalised", f"by {mode}")]

    def to_html(self, path: str | PathLike[str]) -> Path:
        path = place(path)
        payload = pack(self._dataset)
        packed, layout = packed_bytes(payload)
        if len(packed) > PAGE_BYTES:
            payload = pack(self._dataset, SIX_BITS)
            packed, layout = packed_bytes(payload)
        names = ("rung", "sample", "channel", "mode", "show", "divider")
        state = {name: getattr(self, name) for name in names} | {"_run": payload.meta}
        return write(path, ["Normalise", *payload.meta["words"]], state, packed, layout, module())


def normalize(dataset: xr.Dataset, mode: str = "channel") -> Normalizer:
    """Compare a run with itself normalised: pictures, distributions, mean and std, and the difference.

    Parameters
    ----------
    dataset : Dataset
        A recorded run with the raw `latent` (step, sample, channel, y, x) and the coordinate `sigma`.
    mode : {"off", "global", "sample", "channel"}
        Over what mean and unbiased std are taken, as in ``tk.normalized``; here at whichever rung is shown.

    Returns
    -------
    Normalizer
        A widget whose traits (`rung`, `sigma`, `mode`, `channel`, `sample`, `divider`, `show`) can be read,
        set and linked. Raw states are shown over sigma where sigma is above 1, so that both sides are held
        against N(0, 1) on one scale. ``view.to_html(path)`` writes it as a page.

    Raises
    ------
    ValueError, TypeError
        For an unknown mode, a run that is normalised already, and what cannot be drawn.

    Examples
    --------
    >>> import toolkit as tk
    >>> tk.views.normalize(tk.testing.ladder_dataset(), "global")
    Normalizer(ladder, 21 rungs, 1 sample, 4 channels)
    """
    return Normalizer(dataset, mode)
