"""What every view has: a module without imports, one style sheet, a still picture, and a way to files."""

import base64
from collections.abc import Mapping
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets as t
import xarray as xr

from ..errors import bad
from .payload import Payload

FOLDER = Path(__file__).parent


@cache
def source(*names: str) -> str:
    """One ES module without imports: the drawing functions, then what the view adds to them."""
    return "\n".join((FOLDER / name).read_text("utf-8") for name in ("draw.js", *names))


@cache
def style() -> str:
    """The style sheet, which touches nothing outside ``.tk``."""
    return (FOLDER / "style.css").read_text("utf-8")


def some(number: int, noun: str) -> str:
    """A count with its noun: ``1 rung``, ``2 rungs``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


class View(anywidget.AnyWidget):
    """A widget, the picture that stands for it where it cannot run, and its text."""

    _css = style()

    def _still(self) -> bytes:
        """A PNG of the view, drawn without a browser."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        data, metadata = super()._repr_mimebundle_(**kwargs)
        picture = base64.b64encode(self._still()).decode()  # an untrusted notebook shows it
        return data | {"image/png": picture, "text/plain": repr(self)}, metadata

    def to_html(self, path: str | PathLike[str]) -> Path:
        """Write the view, as it stands, as one self-contained page.

        Parameters
        ----------
        path : path
            Where to write; the folder must exist. An existing file is replaced.

        Returns
        -------
        Path
            The file. It asks nothing of the network, and needs no kernel.

        Raises
        ------
        FileNotFoundError
            Where the folder does not exist.
        """
        raise NotImplementedError


class RungView(View):
    """A view of the rungs of a run: `rung` and `sigma` lead each other, and go to what is in the payload."""

    rung = t.Int(0).tag(sync=True)
    sigma = t.Float(0.0).tag(sync=True)
    sample = t.Int(0).tag(sync=True)

    _run = t.Dict().tag(sync=True)  # what the payload says of itself: rungs, levels, shape, names
    _latent = t.Bytes().tag(sync=True)
    _denoised = t.Bytes().tag(sync=True)
    _floats = t.Bytes().tag(sync=True)

    def __init__(self, dataset: xr.Dataset, payload: Payload, **state: Any):
        self._dataset = dataset
        self._levels = _levels(payload.meta)
        super().__init__(_run=payload.meta, **self._bytes(payload), **state)

    def _bytes(self, payload: Payload) -> Mapping[str, bytes]:
        """The payload by the names of the traits that carry it."""
        return {f"_{name}": getattr(payload, name) for name in ("latent", "denoised", "floats")}

    def __repr__(self) -> str:
        _, samples, channels, _, _ = self._run["shape"]
        kind, rungs = self._dataset.attrs.get("kind", "run"), some(self._run["steps"], "rung")
        return (
            f"{type(self).__name__}({kind}, {rungs}, {some(samples, 'sample')}, {some(channels, 'channel')})"
        )

    def _row(self, position: int | np.integer) -> int:
        """The row of the Dataset at a position of the payload."""
        return int(self._run["rungs"][int(position)])

    @t.validate("rung")
    def _nearest_rung(self, proposal: Any) -> int:
        steps, given = self._run["steps"], proposal["value"]
        if not -steps <= given < steps:
            wanted = f"there are {steps} rungs, from 0"
            raise bad("rung", given, wanted, f"view.rung = {steps - 1}", t.TraitError)
        return self._row(np.abs(np.array(self._run["rungs"]) - given % steps).argmin())

    @t.validate("sigma")
    def _nearest_sigma(self, proposal: Any) -> float:
        if not np.isfinite(proposal["value"]):
            raise bad("sigma", proposal["value"], "a finite level", "view.sigma = 1.0", t.TraitError)
        return float(self._levels[np.nanargmin(np.abs(self._levels - proposal["value"]))])

    @t.validate("sample", "channel")
    def _in_range(self, proposal: Any) -> int | None:
        name, given = proposal["trait"].name, proposal["value"]
        size = self._run["shape"][1 if name == "sample" else 2]
        if given is not None and not 0 <= given < size:
            raise bad(name, given, f"there are {size}, from 0", f"view.{name} = {size - 1}", t.TraitError)
        return given

    @t.observe("rung")
    def _follow_rung(self, change: Any) -> None:
        self.sigma = float(self._levels[self._run["rungs"].index(change["new"])])

    @t.observe("sigma")
    def _follow_sigma(self, change: Any) -> None:
        here = self._levels[self._run["rungs"].index(self.rung)]
        if here != change["new"]:  # grids repeat levels: stay where one is, if that is such a level
            self.rung = self._row(np.abs(self._levels - change["new"]).argmin())


def _levels(meta: Mapping[str, Any]) -> np.ndarray:
    """Of the rungs in the payload, which names what is not finite in words."""
    return np.array([float(v) for v in meta["sigma"]])
