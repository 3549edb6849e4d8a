"""The region inspector: masks over an image, as the sampler sees them, to correct by sliders and by hand."""

import threading
from base64 import b64decode
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import traitlets as t
import xarray as xr

from .. import fitting
from ..errors import bad, unknown
from .overlays import DEFAULTS, Masked, curves, gather, pictures, still
from .page import packed, place, write
from .payload import Payload
from .widget import RungView, some, source

MODES = ("inspect", "brush", "erase")
BLOBS = ("latent", "denoised", "floats", "masks", "fits", "image")
GROUNDS = ("image", "latent", "rung")
DEFAULT_BRUSH = 0.08  # of the latent's shorter side


@cache
def module() -> str:
    """The inspector's ES module."""
    return source("rungs.js", "masks.js", "overlay.js", "hand.js", "regions.js")


class RegionInspector(RungView):
    """Regions over what they are regions of; made by ``tk.views.regions``.

    Attributes
    ----------
    order : list of str
        The names of the regions, the first one first.
    shown : list of str
        Those that are drawn over the picture.
    focused : str
        The region whose sliders are open, and which is painted.
    settings : dict
        ``{"sky": {"feather": 6.0, "grow": 2.0, "strength": 1.0}}``; what is set is merged into what stands.
    mode : {"inspect", "brush", "erase"}
        What the pointer does.
    brush : float
        Diameter of the brush, in latent pixels.
    ground : {"image", "latent", "rung"}
        What is under the masks: of the latent and the rung there is a run.
    rung, sigma, sample, channel
        Of the run.
    pixel : list
        The latent pixel ``[y, x]`` whose weights are told; empty for none.

    Examples
    --------
    >>> import toolkit as tk
    >>> sky, sea = tk.box(0, 0, 1, 0.5, size=(8, 8)), tk.box(0, 0.5, 1, 1, size=(8, 8))
    >>> view = tk.views.regions([tk.Region(sky, name="sky"), tk.Region(sea, name="sea")])
    >>> view.settings = {"sea": {"feather": 1.0}}
    >>> view.order = ["sea", "sky"]
    >>> view.regions[0]
    Region('sea', feather=1.0, mask 8 x 8 covering 50 %)
    """

    _esm = module()

    order = t.List(t.Unicode()).tag(sync=True)
    shown = t.List(t.Unicode()).tag(sync=True)
    focused = t.Unicode().tag(sync=True)
    settings = t.Dict().tag(sync=True)
    mode = t.Enum(MODES, MODES[0]).tag(sync=True)
    brush = t.Float(1.0).tag(sync=True)
    ground = t.Unicode().tag(sync=True)
    channel = t.Int(0).tag(sync=True)
    pixel = t.List(t.Int()).tag(sync=True)

    _regions = t.Dict().tag(sync=True)  # what the masks are called, their sizes, and where their bytes lie
    _masks = t.Bytes().tag(sync=True)  # uint8, (region, sample, y, x), each at its own resolution
    _fits = t.Bytes().tag(sync=True)  # float32, (region, sample, y, x), on the latent: Python's answer
    _image = t.Bytes().tag(sync=True)
    _strokes = t.List().tag(sync=True)  # what was painted and is not yet heard: rectangles of codes
    _answer = t.Dict().tag(sync=True)  # which settings and strokes the fits are of
    _page = t.Bool(False).tag(sync=True)

    def __init__(self, given: Masked, payload: Payload):
        self._lock = threading.RLock()  # strokes come in another thread
        self._given = {region.name: region for region in given.regions}
        self._arrays = {name: np.array(_planes(region)) for name, region in self._given.items()}
        self._codes = {name: coded(array) for name, array in self._arrays.items()}
        self._size, self._samples, self._heard = given.size, payload.meta["shape"][1], 0
        self._run_given = given.run
        names = list(self._given)
        images, image = pictures(given)
        settings = {name: {k: float(getattr(r, k)) for k in DEFAULTS} for name, r in self._given.items()}
        grounds = [g for g, there in zip(GROUNDS, (images, given.run, given.run), strict=True) if there]
        facts = {
            "size": list(given.size),
            "whence": given.whence,
            "image": images,
            "picture": list(given.image.shape[:2]) if given.image is not None else [],
            "grounds": grounds,
            "curves": curves(given.run, payload.meta["rungs"]) if given.run is not None else {},
        }
        facts["regions"], offset = [], 0
        for name, region in self._given.items():
            entry = _entry(region) | {"size": list(self._arrays[name].shape), "offset": offset}
            facts["regions"].append(entry)
            offset += self._arrays[name].size
        state = {"order": names, "shown": names, "focused": names[0], "settings": settings}
        state |= {"ground": grounds[0] if grounds else "", "brush": max(1.0, DEFAULT_BRUSH * min(given.size))}
        last = {"rung": payload.meta["rungs"][-1], "sigma": float(payload.meta["sigma"][-1])}
        self._known, self._grounds = names, grounds
        blobs = {"_masks": self._coded(), "_fits": self._fitted(settings), "_image": image}
        answer = {"settings": settings, "heard": 0}
        super().__init__(given.run, payload, _regions=facts, _answer=answer, **blobs, **state, **last)

    def __repr__(self) -> str:
        y, x = self._size
        return f"RegionInspector({some(len(self._known), 'region')}, latent {y} x {x})"

    # ---- what Python takes from it

    @property
    def masks(self) -> list[np.ndarray]:
        """The masks as they stand, before growing and feathering: float64, each at its own resolution."""
        with self._lock:
            return [self._own(name).copy() for name in self.order]

    @property
    def regions(self) -> list[Any]:
        """The regions as they stand, in their order: what ``tk.regional(model, view.regions)`` takes."""
        with self._lock:
            return [
                self._given[name].changed(self._own(name), self.settings[name], name) for name in self.order
            ]

    @property
    def fits(self) -> np.ndarray:
        """The masks on the latent as the sampler sees them, (region, sample, y, x), in their order."""
        flat = np.frombuffer(self._fits, "<f4").reshape(len(self._known), self._samples, *self._size)
        return flat[[self._known.index(name) for name in self.order]]

    def paint(self, name: str, mask: Any, sample: int | None = None) -> None:
        """Put another mask in the place of one, as if it had been painted.

        Parameters
        ----------
        name : str
            Of the region.
        mask : array (y, x), or (sample, y, x)
            Weights in 0..1 of the same resolution.
        sample : int, optional
            Which one to replace, where a region has a mask a sample.

        Raises
        ------
        ValueError
            For unknown names, another size, and weights outside of 0..1.
        """
        line = f"view.paint({name!r}, view.masks[0])"
        if name not in self._known:
            raise unknown("name", name, self._known, 'view.paint("{}", mask)')
        values = np.asarray(mask, np.float64)
        with self._lock:
            stack = self._arrays[name]
            if sample is not None and not 0 <= sample < len(stack):
                raise bad("sample", sample, f"there are {len(stack)}, from 0", line)
            place = stack if sample is None else stack[sample]
            if values.shape not in (place.shape, stack.shape[1:]):
                raise bad("mask", values.shape, f"of the region's own shape {stack.shape[1:]}", line)
            if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
                raise bad("mask", "other values", "weights in 0..1", line)
            place[...] = values
            self._codes[name] = coded(stack)
            with self.hold_sync():
                self._masks = self._coded()
                self._tell()

    def _own(self, name: str) -> np.ndarray:
        stack = self._arrays[name]
        return stack if self._given[name].mask.ndim == 3 else stack[0]

    def _coded(self) -> bytes:
        return b"".join(self._codes[name].tobytes() for name in self._given)

    def _fitted(self, settings: Mapping[str, Mapping[str, float]]) -> bytes:
        fits = np.zeros((len(self._given), self._samples, *self._size), "<f4")
        for k, (name, own) in enumerate(settings.items()):
            planes = fitting.resampled(self._arrays[name], self._size)
            fits[k] = fitting.shaped(planes, own["grow"], own["feather"])
        return fits.tobytes()

    def _tell(self) -> None:
        """Python's answer to what was moved or painted."""
        with self._lock, self.hold_sync():
            settings = {name: dict(self.settings[name]) for name in self._given}
            self._fits = self._fitted(settings)
            self._answer = {"settings": settings, "heard": self._heard}

    # ---- what it hears

    @t.observe("settings")
    def _refit(self, change: Any) -> None:
        if self._answer.get("settings") != change["new"]:
            self._tell()

    @t.observe("_strokes")
    def _hear(self, change: Any) -> None:
        """Rectangles of codes; a pixel that a stroke did not touch keeps its exact value."""
        with self._lock:
            fresh = [stroke for stroke in change["new"] if stroke["serial"] > self._heard]
            for stroke in fresh:
                name, (top, left, bottom, right) = self._known[stroke["region"]], stroke["box"]
                area = (stroke["sample"], slice(top, bottom), slice(left, right))
                codes = np.frombuffer(b64decode(stroke["codes"]), np.uint8).reshape(
                    bottom - top, right - left
                )
                first = _planes(self._given[name])[area]  # undone, it is what was given, to the last bit
                told = np.where(codes == coded(first), first, codes / 255.0)
                changed = codes != self._codes[name][area]
                self._arrays[name][area] = np.where(changed, told, self._arrays[name][area])
                self._codes[name][area] = codes
                self._heard = stroke["serial"]
            if fresh:
                # the browser painted into these bytes itself: kept for one that connects later, and not sent
                self._trait_values["_masks"] = self._coded()
                self._tell()

    @t.validate("settings")
    def _possible(self, proposal: Any) -> dict[str, dict[str, float]]:
        line = 'view.settings = {"' + self._known[0] + '": {"feather": 2.0}}'
        given = proposal["value"]
        kept = {name: dict(self.settings.get(name, DEFAULTS)) for name in self._known}
        for name, own in given.items():
            self._check(name, "settings", 'view.settings = {"{}": {"feather": 2.0}}')
            if not isinstance(own, Mapping) or not set(own) <= set(DEFAULTS):
                raise bad("settings", given, f"of each region {', '.join(DEFAULTS)}", line, t.TraitError)
            for key, value in own.items():
                real = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
                low, high = {"feather": (0, 1e4), "grow": (-1e4, 1e4), "strength": (1e-9, 1)}[key]
                if not real or not low <= value <= high:
                    wanted = {"feather": "0 or more", "strength": "above 0, at most 1"}.get(key, "a number")
                    raise bad(key, value, wanted, line, t.TraitError)
                kept[name][key] = float(value)
        return kept

    @t.validate("order")
    def _permuted(self, proposal: Any) -> list[str]:
        if sorted(proposal["value"]) != sorted(self._known):
            wanted = f"each of {', '.join(self._known)} once"
            raise bad("order", proposal["value"], wanted, f"view.order = {self._known}", t.TraitError)
        return proposal["value"]

    @t.validate("shown", "focused")
    def _are_known(self, proposal: Any) -> Any:
        trait, value = proposal["trait"].name, proposal["value"]
        for name in [value] if trait == "focused" else value:
            self._check(name, trait, 'view.focused = "{}"' if trait == "focused" else 'view.shown = ["{}"]')
        return value if trait == "focused" else list(dict.fromkeys(value))

    @t.validate("ground")
    def _is_there(self, proposal: Any) -> str:
        if self._grounds and proposal["value"] not in self._grounds:
            raise t.TraitError(str(unknown("ground", proposal["value"], self._grounds, 'view.ground = "{}"')))
        return proposal["value"] if self._grounds else ""

    @t.validate("brush")
    def _in_reach(self, proposal: Any) -> float:
        if not 0 < proposal["value"] <= 4 * max(self._size):
            wanted = f"above 0 and at most {4 * max(self._size)} latent pixels"
            raise bad("brush", proposal["value"], wanted, "view.brush = 4.0", t.TraitError)
        return proposal["value"]

    @t.validate("pixel")
    def _inside(self, proposal: Any) -> list[int]:
        place, (height, width) = proposal["value"], self._size
        if place and not (len(place) == 2 and 0 <= place[0] < height and 0 <= place[1] < width):
            wanted = f"[y, x] on a latent of {height} x {width}, or []"
            raise bad("pixel", place, wanted, "view.pixel = [0, 0]", t.TraitError)
        return place

    def _check(self, name: str, trait: str, line: str) -> None:
        if name not in self._known:
            raise t.TraitError(str(unknown(trait, name, self._known, line)))

    # ---- files

    def _still(self) -> bytes:
        return still(self)

    def to_html(self, path: str | PathLike[str]) -> Path:
        path = place(path)
        blobs = {f"_{name}": getattr(self, f"_{name}") for name in BLOBS}
        data, layout = packed(blobs, {"_latent": len(self._latent) // len(self._run["rungs"])})
        names = ("order", "shown", "focused", "settings", "mode", "brush", "ground", "channel", "pixel")
        names += ("rung", "sigma", "sample", "_run", "_regions", "_answer")
        state = {name: getattr(self, name) for name in names} | {"_strokes": [], "_page": True}
        words = ["Regions", *self.order[:6]]
        return write(path, words, state, data, layout, module())


def coded(values: np.ndarray) -> np.ndarray:
    """Weights in 0..1 as uint8."""
    return (values * 255.0).round().astype(np.uint8)


def _planes(region: Any) -> np.ndarray:
    return region.mask if region.mask.ndim == 3 else region.mask[None]


def _entry(region: Any) -> dict[str, Any]:
    """What the list says of a region; texts are only ever texts."""
    return {"name": region.name, "words": region.words, "kept": region.keep, "factor": region.factor}


def regions(
    regions: Sequence[Any] | xr.Dataset | None,
    image: Any = None,
    run: xr.Dataset | None = None,
    model: Any = None,
    size: Iterable[int] | None = None,
) -> RegionInspector:
    """Look at regions over their image, correct their masks, and see what the sampler will see of them.

    Parameters
    ----------
    regions : list of Region, or Dataset
        As for ``tk.regional``; or a recorded run with regions, whose masks are shown as they were fitted.
    image : array (y, x, rgb), PIL image or path, optional
        What lies under the masks: of an array uint8, or floats in 0..1.
    run : Dataset, optional
        A recorded run. Its states may lie under the masks, and of one with regions conflict and shares are
        drawn over its rungs.
    model : optional
        Anything with ``decode(latent)``; makes the image where there is but a run.
    size : (y, x), optional
        Of the latent. None: the run's, else an eighth of the image, else that of the first mask.

    Returns
    -------
    RegionInspector
        A widget. ``view.masks`` are the arrays as they stand, ``view.regions`` the regions with all that was
        moved or painted, for ``tk.regional(model, view.regions)``; ``view.paint`` sets a mask from Python;
        ``view.to_html(path)`` writes a page.

    Raises
    ------
    ValueError, TypeError
        For no regions, what is none, an image of another shape than the latent, and what cannot be drawn,
        before a widget exists, with the line to type.

    Examples
    --------
    >>> import toolkit as tk
    >>> left = tk.Region(tk.box(0.0, 0.0, 0.5, 1.0), prompt=3, feather=1, name="left")
    >>> tk.views.regions([left], size=(53, 80))
    RegionInspector(1 region, latent 53 x 80)
    """
    given, payload = gather(regions, image, run, model, size)
    return RegionInspector(given, payload)
