"""What a region is: a mask, and what is asked for under it; how masks are fitted to the latents.

Fitting is simple arithmetic, so that others (a page in a browser) can repeat it: bilinear with antialiasing
to the size of the latent, then grown by a disc, then blurred by a Gaussian.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from html import escape
from os import PathLike
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch

from . import inputs
from .errors import bad, unknown
from .fitting import shaped

BASE = "base"  # the name of what the masks leave
METHODS = ("linear", "slerp")  # how the noise of a region's own seed is mixed in
LINE = "tk.Region(tk.box(0.0, 0.0, 0.5, 1.0), prompt=3)"


@dataclass(frozen=True, eq=False, repr=False)
class Region:
    """A part of the canvas with conditions of its own; None is what the run uses.

    Parameters
    ----------
    mask : array (y, x) or (sample, y, x), DataArray, PIL image, or the path of one
        Weights in 0..1, at any resolution; of an image its grey, black is 0. `tk.box` makes one.
    prompt, negative, cfg : optional
        What the model conditions on under the mask, and the guidance scale.
    solver : str or Solver, optional
        For ``tk.regional(mode="step")`` alone; elsewhere all regions share the run's.
    seed : int, optional
        Of noise of its own: of its draws in step mode, and of its start noise as far as `noise_strength`
        says.
    noise_strength : float
        v in 0..1, how much of that noise is mixed into the start noise.
    strength : float
        Above 0, at most 1. At s the region joins at hop round((1 - s) n) of n, as in img2img.
    feather, grow : float
        Standard deviation of a Gaussian blur, and the radius of the disc by which the mask is grown before
        (shrunk, where negative); in latent pixels.
    span : (high, low)
        The range of sigma in which the region is active.
    name : str, optional
        "region 1", "region 2", ... by its place in the list where None.
    weight : float or callable
        A factor of the mask, 0 or more: a number, or a function sigma -> number.
    noise_method : {"linear", "slerp"}
        ((1 - v) N + v M)/sqrt((1 - v)^2 + v^2) of the run's noise N and its own M, or along the arc.
    keep : bool
        Nothing is asked for under this mask, whatever others ask there: the picture that the run starts from
        stays, noised to each level; on the replay of another run, that run's own states.
    differential : bool
        Grey is when, and not how much (2306.00950): a pixel of value m joins at hop round((1 - m) n) of n,
        and one that is kept is let go at hop round(m n).

    Raises
    ------
    ValueError, TypeError
        For a mask that is empty, not finite or outside 0..1, and numbers out of range.

    Examples
    --------
    >>> import toolkit as tk
    >>> tk.Region(tk.box(0.0, 0.0, 0.5, 1.0, size=(8, 8)), prompt=3, cfg=2.0, name="left")
    Region('left', prompt=3, cfg=2.0, mask 8 x 8 covering 50 %)
    """

    mask: Any
    prompt: Any = None
    negative: Any = None
    cfg: float | None = None
    solver: Any = None
    seed: int | None = None
    noise_strength: float = 0.0
    strength: float = 1.0
    feather: float = 0
    grow: float = 0
    span: tuple[float, float] = (math.inf, 0.0)
    name: str | None = None
    weight: float | Callable[[float], float] = 1.0
    noise_method: str = "linear"
    keep: bool = False
    differential: bool = False

    def __post_init__(self) -> None:
        values = mask_values(self.mask)
        samples = values.shape[0] if values.ndim > 2 else 1
        scaled = "tk.Region(mask / 255)" if values.size and values.max() > 1 else LINE
        inputs.mask(values, (samples, 1, *values.shape[-2:]), "cpu", scaled)
        values.setflags(write=False)
        object.__setattr__(self, "mask", values)  # read once: the file may change
        if self.cfg is not None:
            inputs.number("cfg", self.cfg, "tk.Region(mask, cfg=1.0)")
        if self.seed is not None:
            inputs.whole("seed", self.seed, -(2**63), None, "tk.Region(mask, seed=1)")
        _within("noise_strength", self.noise_strength, 0.0, 1.0)
        _within("strength", self.strength, 0.0, 1.0)
        if self.strength == 0:
            why = "above 0: at 0 the region would never join"
            raise bad("strength", self.strength, why, "tk.Region(mask, strength=0.5)")
        _within("feather", self.feather, 0.0, math.inf)
        inputs.number("grow", self.grow, "tk.Region(mask, grow=1)")
        if not callable(self.weight):
            _within("weight", self.weight, 0.0, math.inf)
        if self.noise_method not in METHODS:
            raise unknown("noise_method", self.noise_method, METHODS, 'tk.Region(mask, noise_method="{}")')
        if self.noise_strength > 0 and self.seed is None:
            line = f"tk.Region(mask, noise_strength={self.noise_strength:g}, seed=1)"
            raise bad("seed", None, "noise of its own needs a seed of its own", line)
        if self.name is not None and (not isinstance(self.name, str) or self.name in ("", BASE)):
            why = f'a text other than "{BASE}", which is what the masks leave'
            raise bad("name", self.name, why, 'tk.Region(mask, name="left")')
        object.__setattr__(self, "span", _span(self.span))
        for name in ("keep", "differential"):
            if not isinstance(getattr(self, name), bool):
                raise bad(
                    name, getattr(self, name), "True or False", f"tk.Region(mask, {name}=True)", TypeError
                )
        own = ("prompt", "negative", "cfg", "solver", "seed")
        asked = [name for name in own if getattr(self, name) is not None]
        if self.keep and asked:
            why = "what is kept is the picture as it is: nothing is asked for there"
            raise bad(asked[0], getattr(self, asked[0]), why, "tk.Region(mask, keep=True)")

    def facts(self) -> dict[str, Any]:
        """All but the mask, as plain JSON: what the record says."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("mask", "weight")}
        high, low = self.span
        told["span"] = [None if math.isinf(high) else high, low]
        if self.solver is not None and not isinstance(self.solver, str):
            told["solver"] = self.solver.name
            told["solver_options"] = dict(self.solver.options)
        weight = self.weight
        told["weight"] = getattr(weight, "__qualname__", "a function") if callable(weight) else float(weight)
        return inputs.plain(told)

    def __repr__(self) -> str:
        given = [repr(self.name)] if self.name is not None else []
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name not in ("mask", "name") and value != f.default:
                shown = getattr(value, "__qualname__", "a function") if callable(value) else repr(value)
                given.append(f"{f.name}={shown}")
        size = " x ".join(map(str, self.mask.shape))
        return f"Region({', '.join([*given, f'mask {size} covering {100 * self.mask.mean():.3g} %'])})"

    def _repr_html_(self) -> str:
        told = {"mask": " x ".join(map(str, self.mask.shape)), "covers": f"{100 * self.mask.mean():.3g} %",
                **{k: v for k, v in self.facts().items() if v is not None}}  # fmt: skip
        rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in told.items())
        return f"<table><caption>Region</caption>{rows}</table>"


def box(left: float, top: float, right: float, bottom: float,
        size: tuple[int, int] = (64, 64)) -> np.ndarray:  # fmt: skip
    """A mask that is 1 inside a box, float64 of shape `size`, (y, x).

    Parameters
    ----------
    left, top, right, bottom : float
        The sides, as fractions of the canvas from its upper left corner. A pixel that is cut has the
        fraction of it that is inside.
    size : (y, x)
        Give the latent's, and the edges lie exactly there; else the mask is resampled, and they are softened
        by about a pixel.

    Raises
    ------
    ValueError, TypeError
        For a box without area, or outside of the canvas.

    Examples
    --------
    >>> import toolkit as tk
    >>> tk.box(0.25, 0.0, 1.0, 0.5, size=(2, 2))
    array([[0.5, 1. ],
           [0. , 0. ]])
    """
    line = "tk.box(0.0, 0.0, 0.5, 1.0, size=(64, 64))"
    sides = [inputs.number(name, value, line)
             for name, value in zip(("left", "top", "right", "bottom"), (left, top, right, bottom),
                                    strict=True)]  # fmt: skip
    if not (0 <= sides[0] < sides[2] <= 1 and 0 <= sides[1] < sides[3] <= 1):
        raise bad("left", tuple(sides), "left < right and top < bottom, all in 0..1", line)
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise bad("size", size, "two whole numbers, (y, x)", line)
    height, width = (inputs.whole("size", n, 1, None, line) for n in size)

    def covered(low: float, high: float, count: int) -> np.ndarray:
        edges = np.arange(count + 1)
        inside = np.clip(edges, low * count, high * count)
        return np.diff(inside)

    return covered(sides[1], sides[3], height)[:, None] * covered(sides[0], sides[2], width)


def mask_values(given: Any) -> np.ndarray:
    """The numbers of a mask, (y, x) or (sample, y, x), float64: of an array, an image, or the path of one."""
    if isinstance(given, (str, PathLike)):
        from PIL import Image, UnidentifiedImageError

        line = 'tk.Region("mask.png")'
        if not FilePath(given).is_file():
            raise bad("mask", str(given), "there is no such file", line, FileNotFoundError)
        try:
            with Image.open(given) as image:
                return _grey(image)
        except UnidentifiedImageError:
            raise bad("mask", str(given), "this file is no image", line) from None
    if inputs.is_picture(given):
        return _grey(given)
    if hasattr(given, "dims"):
        if set(given.dims) not in ({"y", "x"}, {"sample", "y", "x"}):
            raise bad("mask", given.dims, "a DataArray with dims y, x or sample, y, x", LINE)
        given = given.transpose(*(d for d in ("sample", "y", "x") if d in given.dims)).values
    values = inputs.host(given)
    if not isinstance(values, np.ndarray):
        why = "an array (y, x) or (sample, y, x), a PIL image, or the path of one"
        raise bad("mask", type(given), why, LINE, TypeError)
    if values.dtype.kind not in "biuf":
        raise bad("mask", str(values.dtype), "real weights in 0..1", LINE, TypeError)
    if values.ndim == 4 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim not in (2, 3):
        raise bad("mask", values.shape, "of shape (y, x), or (sample, y, x)", LINE)
    return np.array(values, np.float64)


def _grey(image: Any) -> np.ndarray:
    """0 (black) to 1 (white)."""
    if image.mode.startswith("I"):  # 16 bits; of 32, as Pillow reads some of 16 into
        values = np.asarray(image, np.float64)
        return values / (65535.0 if image.mode != "I" or values.max() > 255 else 255.0)
    if image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
        why = "parts of it are transparent: whether grey or transparency is the mask, it does not say"
        line = 'tk.Region(image.convert("L")), or tk.Region(image.getchannel("A"))'
        raise bad("mask", image.mode, why, line)
    if image.mode == "F":
        return np.asarray(image, np.float64)
    return np.asarray(image.convert("L"), np.float64) / 255.0


def _within(name: str, given: Any, low: float, high: float) -> None:
    line = f"tk.Region(mask, {name}={low if name != 'strength' else 1.0:g})"
    value = inputs.number(name, given, line)
    if not low <= value <= high:
        wanted = f"a number from {low:g} to {high:g}" if math.isfinite(high) else f"{low:g} or more"
        raise bad(name, given, wanted, line)


def _span(given: Any) -> tuple[float, float]:
    line = "tk.Region(mask, span=(float('inf'), 0.0))"
    pair = tuple(given) if isinstance(given, (tuple, list)) else ()
    real = [isinstance(v, (int, float, np.number)) and not isinstance(v, bool) for v in pair]
    if len(pair) != 2 or not all(real) or not 0 <= pair[1] < pair[0]:
        raise bad("span", given, "two sigmas (high, low), the higher one first", line)
    return float(pair[0]), float(pair[1])


def fitted(region: Region, shape: Sequence[int], samples: int) -> torch.Tensor:
    """The mask of a region on the latents, (samples, 1, y, x): resampled, grown, feathered.

    `samples` is 1 for one that all share; `shape` is that of the latents.
    """
    own = region.mask.ndim == 3 and len(region.mask) > 1
    whose = f'of "{region.name}", ' if region.name else ""
    m = inputs.mask(region.mask, shape if own else (1, *shape[1:]), "cpu", LINE, whose)
    planes = m[:, 0].numpy()
    planes = shaped(planes, region.grow, region.feather)
    if not planes.any():
        name, value = ("grow", region.grow) if region.grow < 0 else ("mask", "0 on the latent")
        raise bad(name, value, "nothing of the mask is left", "tk.Region(mask, grow=0)")
    planes = torch.from_numpy(planes)[:, None]
    return planes.expand(samples, -1, -1, -1).contiguous()


def named(regions: Any) -> list[Region]:
    """The regions of a list, each with a name; raises for none, for what is none, and for equal names."""
    line = f"regions=[{LINE}]"
    if isinstance(regions, Region) or not isinstance(regions, (list, tuple)):
        raise bad("regions", regions, "a list of tk.Region", line, TypeError)
    if not regions:
        raise bad("regions", regions, "a list of at least one region", line)
    for region in regions:
        if not isinstance(region, Region):
            raise bad("regions", region, "a list of tk.Region", line, TypeError)
    names = [r.name or f"region {k}" for k, r in enumerate(regions, 1)]
    for name in names:
        if names.count(name) > 1:
            raise bad("regions", names, f'two are called "{name}"', 'tk.Region(mask, name="left")')
    given = [{f.name: getattr(r, f.name) for f in fields(r)} for r in regions]
    return [Region(**{**g, "name": name}) for g, name in zip(given, names, strict=True)]
