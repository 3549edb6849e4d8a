"""The scrubber: a run in the notebook, with one thumb on its schedule."""

import threading
from collections.abc import Mapping, Sequence
from functools import cache, partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import traitlets as t
import xarray as xr

from ..errors import bad
from . import live
from .payload import Payload, check, column, cut, picture_room, rows_with_latent, shown
from .scene import Scene, recorded
from .sheet import contact_sheet, placard
from .widget import ValueView, source

AXES = ("step", "log_sigma", "sigma")
SCALES = ("rung", "fixed")
DECODE = ("denoised", "latent")
INTERPOLATION = ("nearest", "linear")
NOTHING = "No rung is there yet."


@cache
def module() -> str:
    """The scrubber's ES module."""
    return source("rungs.js", "scrub.js")


def defaults(payload: Payload) -> dict[str, Any]:
    """What a view starts with, without a kernel."""
    rungs, levels = payload.meta["rungs"], payload.meta["sigma"]
    return {
        "rung": rungs[0] if rungs else 0,
        "sigma": float(levels[0]) if levels else 0.0,
        "sample": 0,
        "channel": None,
        "axis": AXES[0],
        "scale": SCALES[0],
        "decode": DECODE[0],
        "interpolation": INTERPOLATION[0],
        "pixel": [],
    }


class Scrubber(ValueView):
    """A run to look through; made by ``tk.view``.

    Attributes
    ----------
    rung : int
        The row of the Dataset that is shown; setting it moves the thumb, to the nearest rung that was kept.
        Of a long run any kept rung can be set: one that the browser lacks is sent to it.
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

    _pictures = t.Bytes().tag(sync=True)
    _kernel = t.Bool(True).tag(sync=True)  # a page has none
    _version = t.Int(0).tag(sync=True)  # of the payload: a browser that has an older one asks for all of it
    _ask = t.Dict().tag(sync=True)

    _quiet: frozenset[str] = frozenset()  # traits that the browser has by another way at this moment
    _rows: Any = None  # all that were kept: more of a long run than the payload has

    def __init__(self, dataset: xr.Dataset | str | PathLike[str], model: Any = None):
        self._turn = threading.RLock()  # what the browser asks is answered in another thread
        dataset, self._source = live.opened(dataset)
        ds = check(dataset, model, self._unfinished)
        self._model, self._picture, self._span = model, b"", None
        self._rows = rows_with_latent(ds)
        self._payload = cut(ds, model, shown(ds, self._rows), self._rows, plan=self._planned)
        self._payload.meta |= live.state(self._source, ds.sizes["step"])
        levels, state = column(ds, "sigma")[self._rows], defaults(self._payload)
        if self._payload.meta["live"] and len(levels):  # the newest, which it follows
            state |= {"rung": int(self._rows[-1]), "sigma": float(levels[-1])}
        super().__init__(ds, self._payload, levels, **state)

    @property
    def _unfinished(self) -> bool:
        return self._source is not None and self._source.unfinished

    @property
    def _planned(self) -> int:
        return len(self._source.sigma) if self._unfinished else 0

    def _bytes(self, payload: Payload) -> dict[str, bytes]:
        return {**super()._bytes(payload), "_pictures": payload.pictures}

    def _still(self) -> bytes:
        if not len(self._rows):
            return placard(self._payload.meta["title"], NOTHING)
        self._picture = self._picture or contact_sheet(self._dataset, images=self._payload.images)
        return self._picture

    def _scene(self, scale: float) -> Scene:
        return Scene(self, partial(recorded, self), scale, self._pictures)

    def to_html(self, path: str | PathLike[str]) -> Path:
        from .page import place, scrubbed  # which builds on this module

        names = ("rung", "sigma", "sample", "channel", "axis", "scale", "decode", "interpolation")
        state = {name: getattr(self, name) for name in names}
        return scrubbed(self._dataset, self._payload, place(path), self._lut, **state)

    def refresh(self) -> None:
        """Read the store again, and show what was recorded since.

        The browser is sent the new rungs alone. A view that is at the newest rung stays at the newest; where
        one has scrubbed away, it stays there. Sample, channel, zoom and pin stay as they are.

        Raises
        ------
        ValueError
            For a view of a Dataset in memory or of a part of a store, and where another run is in its place.
        FileNotFoundError
            Where the store is gone.

        Examples
        --------
        >>> import tempfile, toolkit as tk
        >>> store = tempfile.mkdtemp() + "/run.zarr"
        >>> run = tk.sample(tk.load(), steps=2, save=tk.Save(store=store), progress=False)
        >>> view = tk.view(store)
        >>> view.refresh()  # adds rungs, while another process or thread is writing the run
        >>> view
        Scrubber(sample, 3 rungs, 1 sample, 4 channels)
        """
        if self._source is None:
            why = "it shows a Dataset in memory, or a part of a store: there is nothing to read again"
            raise bad("view", repr(self), why, 'tk.view("run.zarr")')
        with self._turn:
            dataset, source = live.again(self._source)
            ds, before, self._source = check(dataset, self._model, True), self._rows, source
            follows = not len(before) or self.rung == before[-1]
            kept = before[:-1]  # the last row of a run that stopped may not be kept once that goes on
            later = rows_with_latent(ds, int(kept[-1]) + 1 if len(kept) else 0)
            self._rows = np.concatenate([kept, later])
            self._dataset, self._picture, self._levels = ds, b"", column(ds, "sigma")[self._rows]
            room = max(picture_room(ds) - len(live.pictured(self._payload)), 1)
            self._take(before[-1:].tolist(), later[-room:])
            if follows and len(self._rows):
                self.rung = int(self._rows[-1])

    def _reached(self, row: int) -> int:
        with self._turn:
            if row not in self._run["rungs"]:
                self._take(always=row)
        return row

    def _take(self, again: Sequence[int] = (), decode: Sequence[int] = (), always: int | None = None) -> None:
        """Another payload, of which the browser is sent what it lacks."""
        ds, old = self._dataset, self._payload
        always = (self.rung if always is None else always, *live.pictured(old))
        rows = shown(ds, self._rows, span=self._span, always=always)
        decode = [row for row in decode if row in rows]
        made = live.patch(old, ds, self._model, rows, self._rows, again, self._span, decode, self._planned)
        self._payload = made.whole
        more = live.state(self._source, ds.sizes["step"])
        self._payload.meta |= {**more, "version": self._version + 1}
        told = {"base": self._version, "version": self._version + 1, "index": made.index}
        self._tell(told, made.parts)

    def _tell(self, told: Mapping[str, Any], parts: Sequence[bytes]) -> None:
        """Sends a patch, and takes the payload over without sending that."""
        traits = {"_run": self._payload.meta, **self._bytes(self._payload)}
        self.send({**told, "meta": self._payload.meta}, parts)
        self._quiet = frozenset(traits)
        try:
            self._version = told["version"]
            for name, value in traits.items():
                setattr(self, name, value)
        finally:
            self._quiet = frozenset()

    def _should_send_property(self, key: str, value: Any) -> bool:
        return key not in self._quiet and super()._should_send_property(key, value)

    @t.observe("_ask")
    def _answer(self, change: Any) -> None:
        """What a browser asks: the store again, the rungs of a range, or all of a payload that it lacks."""
        asked, p = change["new"], self._payload
        try:
            with self._turn:
                if asked.get("refresh"):
                    self.refresh()
                elif "span" in asked:
                    self._span = tuple(asked["span"]) if asked["span"] else None
                    self._take()
                elif asked:
                    told = {
                        "base": None,
                        "version": self._version,
                        "index": list(range(len(p.meta["rungs"]))),
                    }
                    self._tell(told, [p.latent, p.denoised, p.floats, p.pictures])
        except (OSError, ValueError) as error:  # nobody could catch it: it is told in the foot of the view
            self.send({"error": str(error)})


def view(dataset: xr.Dataset | str | PathLike[str], model: Any = None) -> Scrubber:
    """Look through a run: what every rung holds, what the model sees in it, where it is on the schedule.

    Parameters
    ----------
    dataset : Dataset or path
        A recorded run with `latent` (step, sample, channel, y, x) and the coordinate `sigma`, or its store.
        Where it was picked apart (one step, sample or channel), that one is drawn. Above 256 rungs or 16 MB,
        those shown are spread evenly in log sigma; zooming the rail, or setting `rung`, loads others.
        A store that is still being written shows what is there; ``view.refresh()`` shows what came since.
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
    FileNotFoundError
        For a path where nothing is.

    Examples
    --------
    >>> import toolkit as tk
    >>> tk.view(tk.testing.ladder_dataset())
    Scrubber(ladder, 21 rungs, 1 sample, 4 channels)
    """
    return Scrubber(dataset, model)


scrub = view
