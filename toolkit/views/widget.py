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

from ..errors import bad, unknown
from .payload import Payload

FOLDER = Path(__file__).parent
TK_MAP = "tk"  # our own diverging map, whose middle is the paper; any other name is matplotlib's


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

    def _scene(self, scale: float) -> Any:
        """What draws the view at any rung, a `scene.Scene`; None for a view without rungs."""
        return None

    def save(self, path: str | PathLike[str], *, fps: float = 12, rungs: slice | None = None,
             width: int | None = None, progress: bool = True) -> Path:  # fmt: skip
        """Write what the view shows now as a picture or a page, or all its rungs as a film.

        Parameters
        ----------
        path : path
            The suffix says what to make: ``.png``, ``.html``, ``.gif``, ``.mp4`` or ``.webm``. The folder
            must exist; an existing file is replaced once the new one is whole.
        fps : float
            Frames a second of a film. The last frame of a GIF stays for a while.
        rungs : slice, optional
            Which of the rungs that the view holds a film shows; None shows all, one a frame.
        width : int, optional
            Pixels across, of what is drawn rung by rung; None is 928 for films, and twice that for pictures.
        progress : bool
            Show a progress bar over the frames.

        Returns
        -------
        Path
            The file. It is drawn on light paper, in Python, without a browser.

        Raises
        ------
        ValueError, TypeError
            For another suffix, or a film of a view without rungs.
        FileNotFoundError
            Where the folder does not exist.
        RuntimeError
            For ``.mp4`` and ``.webm`` where ffmpeg is neither on the PATH nor installed as `imageio-ffmpeg`.

        Examples
        --------
        >>> import tempfile, toolkit as tk
        >>> view = tk.view(tk.testing.unsample_dataset(steps=4))
        >>> view.save(tempfile.mkdtemp() + "/run.gif", progress=False).name
        'run.gif'
        """
        from .film import save  # it draws with what builds on views

        return save(self, path, fps=fps, rungs=rungs, width=width, progress=progress)


class RungView(View):
    """A view of the rungs of a run: `rung` and `sigma` lead each other, and go to what is in the payload."""

    rung = t.Int(0).tag(sync=True)
    sigma = t.Float(0.0).tag(sync=True)
    sample = t.Int(0).tag(sync=True)

    _run = t.Dict().tag(sync=True)  # what the payload says of itself: rungs, levels, shape, names
    _latent = t.Bytes().tag(sync=True)
    _denoised = t.Bytes().tag(sync=True)
    _floats = t.Bytes().tag(sync=True)

    def __init__(self, dataset: xr.Dataset, payload: Payload, levels: np.ndarray | None = None, **state: Any):
        self._dataset = dataset
        self._levels = levels_of(payload.meta) if levels is None else levels
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
        if not steps and not given:
            return 0  # where it begins, before there is any
        if not -steps <= given < steps:
            wanted = f"there are {steps} rungs, from 0"
            raise bad("rung", given, wanted, f"view.rung = {steps - 1}", t.TraitError)
        return self._reached(int(self._rows[np.abs(self._rows - given % steps).argmin()]))

    @property
    def _rows(self) -> np.ndarray:
        """The rows that one can go to, of which `_levels` are the levels."""
        return np.array(self._run["rungs"], int)

    def _reached(self, row: int) -> int:
        """A row that one goes to; a view that holds not all of them sees to it that it has this one."""
        return row

    @t.validate("sigma")
    def _nearest_sigma(self, proposal: Any) -> float:
        if not np.isfinite(proposal["value"]):
            raise bad("sigma", proposal["value"], "a finite level", "view.sigma = 1.0", t.TraitError)
        if not np.isfinite(self._levels).any():
            return proposal["value"]
        gaps = np.abs(self._levels - proposal["value"])
        return float(self._levels[np.where(np.isnan(gaps), np.inf, gaps).argmin()])

    @t.validate("sample", "channel")
    def _in_range(self, proposal: Any) -> int | None:
        name, given = proposal["trait"].name, proposal["value"]
        size = self._run["shape"][1 if name == "sample" else 2]
        if given is not None and not 0 <= given < size:
            raise bad(name, given, f"there are {size}, from 0", f"view.{name} = {size - 1}", t.TraitError)
        return given

    @t.observe("rung")
    def _follow_rung(self, change: Any) -> None:
        if len(self._rows):
            self.sigma = self._level(change["new"])

    def _level(self, row: int) -> float:
        return float(self._levels[np.searchsorted(self._rows, row)])

    @t.observe("sigma")
    def _follow_sigma(self, change: Any) -> None:
        if (
            len(self._rows) and self._level(self.rung) != change["new"]
        ):  # grids repeat levels: stay, if one is at such a level
            self.rung = int(self._rows[np.abs(self._levels - change["new"]).argmin()])


def levels_of(meta: Mapping[str, Any]) -> np.ndarray:
    """Sigma of the rungs in a payload, which names what is not finite in words."""
    return np.array([float(v) for v in meta["sigma"]])


class ValueView(RungView):
    """A view of rungs with a colour map by name, that tells the exact value under a resting pointer."""

    colormap = t.Unicode(TK_MAP)
    pixel = t.List().tag(sync=True)

    _lut = t.Bytes().tag(sync=True)
    _exact = t.Dict().tag(sync=True)

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
            names = [TK_MAP, "gray", "viridis", "RdBu"]
            raise unknown("colormap", change["new"], names, 'view.colormap = "{}"')
