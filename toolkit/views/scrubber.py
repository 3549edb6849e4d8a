"""The scrubber: a run in the notebook, with one thumb on its schedule."""

from functools import cache
from typing import Any

import numpy as np
import traitlets as t
import xarray as xr

from ..errors import unknown
from .payload import Payload, build, check
from .sheet import contact_sheet
from .widget import RungView, source

AXES = ("step", "log_sigma", "sigma")
SCALES = ("rung", "fixed")
DECODE = ("denoised", "latent")
INTERPOLATION = ("nearest", "linear")
TK_MAP = "tk"  # our own diverging map, whose middle is the paper; any other name is matplotlib's


@cache
def module() -> str:
    """The scrubber's ES module."""
    return source("rungs.js", "scrub.js")


def defaults(payload: Payload) -> dict[str, Any]:
    """What a view starts with, without a kernel."""
    first = payload.meta["rungs"][0]
    return {
        "rung": first,
        "sigma": float(payload.meta["sigma"][0]),
        "sample": 0,
        "channel": None,
        "axis": AXES[0],
        "scale": SCALES[0],
        "decode": DECODE[0],
        "interpolation": INTERPOLATION[0],
        "pixel": [],
    }


class Scrubber(RungView):
    """A run to look through; made by ``tk.view``.

    Attributes
    ----------
    rung : int
        The row of the Dataset that is shown; setting it moves the thumb, to the nearest rung that was kept.
        Negative numbers count from the end.
    sigma : float
        The level of that rung; setting it goes to the rung nearest to it.
    sample, channel : int
        Which sample is shown, and which channel is focused (None: none).
    axis : {"step", "log_sigma", "sigma"}
        What the rail runs along.
    scale : {"rung", "fixed"}
        Colour limits: three times the std of the rung, or the largest of these over the run.
    decode : {"denoised", "latent"}
        What the decoded image is made of.
    interpolation : {"nearest", "linear"}
        How tiles are enlarged.
    colormap : str
        ``"tk"``, or any name that matplotlib knows.
    pixel : list
        What lies under the pointer or the pin: ``[variable, channel, y, x, rung]``.

    Examples
    --------
    >>> import toolkit as tk
    >>> view = tk.view(tk.testing.unsample_dataset())
    >>> view.sigma = 7
    >>> view, view.rung, round(view.sigma, 3)
    (Scrubber(unsample, 21 rungs, 1 sample, 4 channels), 17, 7.384)
    """

    _esm = module()

    channel = t.Int(None, allow_none=True).tag(sync=True)
    axis = t.Enum(AXES, AXES[0]).tag(sync=True)
    scale = t.Enum(SCALES, SCALES[0]).tag(sync=True)
    decode = t.Enum(DECODE, DECODE[0]).tag(sync=True)
    interpolation = t.Enum(INTERPOLATION, INTERPOLATION[0]).tag(sync=True)
    colormap = t.Unicode(TK_MAP)
    pixel = t.List().tag(sync=True)

    _pictures = t.Bytes().tag(sync=True)
    _lut = t.Bytes().tag(sync=True)
    _exact = t.Dict().tag(sync=True)

    def __init__(self, dataset: xr.Dataset, model: Any = None):
        payload = build(dataset, model)
        self._payload, self._picture = payload, b""
        super().__init__(check(dataset, model), payload, **defaults(payload))

    def _bytes(self, payload: Payload) -> dict[str, bytes]:
        return {**super()._bytes(payload), "_pictures": payload.pictures}

    def _still(self) -> bytes:
        self._picture = self._picture or contact_sheet(self._dataset, images=self._payload.images)
        return self._picture

    @t.observe("pixel")
    def _read_exactly(self, change: Any) -> None:
        """The value itself, where the payload has a code. Runs in another thread: reads, touches nothing."""
        if len(change["new"]) == 5:
            name, channel, y, x, rung = change["new"]
            place = {"step": rung, "sample": self.sample, "channel": channel, "y": y, "x": x}
            value = float(self._dataset[name].isel(place).values)
            self._exact = {"at": change["new"], "sample": self.sample, "value": str(value)}

    @t.observe("colormap")
    def _colour(self, change: Any) -> None:
        import matplotlib  # here, as a view that keeps to our own map does not need it

        if change["new"] == TK_MAP:
            self._lut = b""
        elif change["new"] in matplotlib.colormaps:
            colours = matplotlib.colormaps[change["new"]](np.linspace(0, 1, 256))[:, :3]
            self._lut = (colours * 255).round().astype(np.uint8).tobytes()
        else:
            raise unknown(
                "colormap", change["new"], [TK_MAP, "gray", "viridis", "RdBu"], 'view.colormap = "{}"'
            )


def view(dataset: xr.Dataset, model: Any = None) -> Scrubber:
    """Look through a run: what every rung holds, what the model sees in it, where it is on the schedule.

    Parameters
    ----------
    dataset : Dataset
        A recorded run with `latent` (step, sample, channel, y, x) and the coordinate `sigma`. Where it was
        picked apart (one step, sample or channel), that one is drawn. Above 256 rungs or 16 MB, those shown
        are spread evenly in log sigma.
    model : optional
        Anything with ``decode(latent) -> (sample, y, x, rgb)`` in 0..1; adds decoded images, made at once,
        of up to 64 rungs.

    Returns
    -------
    Scrubber
        A widget whose traits (`rung`, `sigma`, `sample`, ...) can be read, set and linked.

    Raises
    ------
    ValueError, TypeError
        For what cannot be drawn, before a widget exists, with the line to type.

    Examples
    --------
    >>> import toolkit as tk
    >>> tk.view(tk.testing.ladder_dataset())
    Scrubber(ladder, 21 rungs, 1 sample, 4 channels)
    """
    return Scrubber(dataset, model)


scrub = view
