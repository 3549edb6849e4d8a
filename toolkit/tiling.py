"""A model of one size on a larger canvas: asked window by window, its answers fused into one.

A network of fixed size, as a DiT is, knows no other; windows that overlap, averaged, carry it further
(MultiDiffusion, 2302.08113). What comes out is a model again: guidance, regions, solvers and inverses apply.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import product
from types import MethodType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import inputs
from .denoisers import Model
from .errors import bad
from .pipelines.pictures import pixels_of

MODEL = "tk.tiled(tk.load(), size=(8, 20))"


class Windows:
    """Equal windows over a canvas, cut out and fused: ``out = sum_i F_i^-1(q part_i) / sum_i F_i^-1(q)``.

    F_i cuts window i, and q = sin^2(pi (y + 1/2)/h) sin^2(pi (x + 1/2)/w) is the weight of a pixel in it:
    positive everywhere, and least at the edges. There a window has seen least of what surrounds a pixel, and
    there it must fade out: with flat weights the mean jumps where a window ends.

    Parameters
    ----------
    size, window : (y, x)
        Of the canvas and of a window.
    starts : (rows, columns)
        Where windows begin on each axis; the windows are all pairs, row by row.
    """

    def __init__(self, size: Sequence[int], window: Sequence[int], starts: Sequence[Sequence[int]]):
        self.size, self.window, self.starts = tuple(size), tuple(window), tuple(map(tuple, starts))
        self.corners = list(product(*self.starts))  # (y, x) of each window
        # q is a product and the windows are a grid: so are the weights after the division
        axes = zip(self.size, self.window, self.starts, strict=True)
        self._shares = list(product(*(shares(*axis) for axis in axes)))  # (y,), (x,) of each window
        self._sent: dict[Any, list] = {torch.device("cpu"): self._shares}  # by device, each sent there once

    def __len__(self) -> int:
        return len(self.corners)

    def larger(self, factor: Sequence[int]) -> "Windows":
        """The same windows in finer pixels, `factor` to one on each axis."""
        fine = [[k * n for n in axis] for k, axis in zip(factor, self.starts, strict=True)]
        return Windows(*(np.multiply(factor, n).tolist() for n in (self.size, self.window)), fine)

    def boxes(self) -> list[tuple[slice, slice]]:
        """Rows and columns of each window."""
        h, w = self.window
        return [(slice(y, y + h), slice(x, x + w)) for y, x in self.corners]

    def cut(self, canvas: torch.Tensor) -> torch.Tensor:
        """(row, channel, y, x) to (window times row, channel, y, x), the rows of one window after another."""
        if len(self) == 1:
            return canvas
        return torch.cat([canvas[..., rows, columns] for rows, columns in self.boxes()])

    def fuse(self, parts: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """What `cut` makes, back on the canvas: the weighted mean of the windows, summed in `dtype`."""
        if len(self) == 1:
            return parts
        n = len(parts) // len(self)
        out = parts.new_zeros((n, parts.shape[1], *self.size), dtype=dtype)
        if out.device not in self._sent:
            self._sent[out.device] = [(y.to(out.device), x.to(out.device)) for y, x in self._shares]
        there = self._sent[out.device]
        for k, ((rows, columns), (high, wide)) in enumerate(zip(self.boxes(), there, strict=True)):
            out[..., rows, columns] += (high[:, None] * wide).to(dtype) * parts[k * n : (k + 1) * n]
        return out


def shares(size: int, window: int, starts: Sequence[int]) -> torch.Tensor:
    """What a window has of each of its pixels along an axis, (window, pixel), float64; their sum is 1."""
    q = torch.sin(torch.pi * (torch.arange(window, dtype=torch.float64) + 0.5) / window).square()
    total = torch.zeros(size, dtype=torch.float64)
    for at in starts:
        total[at : at + window] += q
    return torch.stack([q / total[at : at + window] for at in starts])


class where_inner_has:
    """A method that is there only where the inner model has those `names`: `hasattr` tells the truth."""

    def __init__(self, *names: str):
        self.names = names

    def __call__(self, method: Callable) -> "where_inner_has":
        self.method = method
        return self

    def __get__(self, tiled: Any, owner: type | None = None) -> Callable:
        if tiled is None:
            return self.method
        for name in self.names:
            getattr(tiled.inner, name)  # its AttributeError is ours
        return MethodType(self.method, tiled)


class Tiled(Model):
    """A model on a larger canvas, window by window; made by `tiled`.

    Attributes
    ----------
    inner : Model
        Whose windows they are; its labels and images are there.
    windows : Windows
    batch : int or None
        Rows that the inner model is asked for at once.
    fingerprint : str or None
        Of the inner model's and of the windows; None where that has none.

    `encode` and `decode` are there where the inner model has them.
    """

    def __init__(self, inner: Model, windows: Windows, stride: tuple[int, int], batch: int | None = None):
        self.inner, self.windows, self.stride, self.batch = inner, windows, stride, batch
        self.path, self.levels, self.prediction = inner.path, inner.levels, inner.prediction
        self.channels, self.shape = inner.channels, (inner.channels, *windows.size)
        self.latent_scale, self.latent_shift = inner.latent_scale, getattr(inner, "latent_shift", 0.0)
        self.rows_each = len(windows) * inner.rows_each
        # with its stride, so that a record says how to make the model again
        self.name = f"{inner.name} in windows of {_by(windows.window)}, stride {_by(stride)}"
        if inner.fingerprint is not None:
            told = repr((inner.fingerprint, windows.size, windows.window, windows.starts))
            self.fingerprint = hashlib.sha256(told.encode()).hexdigest()[:16]

    @property
    def device(self) -> torch.device:
        """Where the inner model is."""
        return self.inner.device

    def recorded(self) -> dict[str, Any]:
        return {**self.inner.recorded(), "batch": self.batch}

    def facts(self) -> dict[str, Any]:
        count = " x ".join(str(len(axis)) for axis in self.windows.starts)
        tiles = {"windows": f"{count} of {_by(self.windows.window)}", "stride": _by(self.stride)}
        batch = {} if self.batch is None else {"batch": self.batch}
        return {**self.inner.facts(), **super().facts(), **tiles, **batch}

    def __repr__(self) -> str:
        return f"Tiled({self.inner.name}, " + ", ".join(f"{k}={v}" for k, v in self.facts().items()) + ")"

    def conditions(self, prompt: Any, samples: int, name: str = "prompt") -> list:
        """The inner model's."""
        return self.inner.conditions(prompt, samples, name)

    def x0(self, x: torch.Tensor, sigma: float, conditions: Sequence) -> torch.Tensor:
        """The windows' x0, each under the condition of its row, fused in the dtype of x."""
        if tuple(x.shape[1:]) != self.shape:  # what no window covers would come out as 0
            sizes = ", ".join(map(str, self.shape))
            raise bad("x", tuple(x.shape), f"the canvas is (row, {sizes})", f"torch.zeros(1, {sizes})")
        tiles, bound = self.windows.cut(x), list(conditions) * len(self.windows)
        parts = [self.inner.x0(tiles[some], sigma, bound[some]) for some in self._batches(len(tiles))]
        return self.windows.fuse(parts[0] if len(parts) == 1 else torch.cat(parts), x.dtype)

    @where_inner_has("encode", "decode")
    def encode(self, image: Any) -> torch.Tensor:
        """Latents of an image in model space: its windows encoded, and averaged by their weights.

        Parameters
        ----------
        image : PIL image, or array (y, x), (y, x, rgb), (sample, y, x) or (sample, y, x, rgb); a list of
        either
            uint8, or floating in 0..1; of the size that the canvas decodes to.

        Returns
        -------
        Tensor (sample, channel, y, x), float64

        Raises
        ------
        ValueError, TypeError
            For another shape, range or kind of image.
        """
        frames, (height, width) = _frames(image), self._fine.size
        for frame in frames:
            if _size(frame) != (height, width):
                wanted = f"this model takes {height} x {width} pixels"
                raise bad("image", _size(frame), wanted, f"image.resize(({width}, {height}))")
        tiles = [_crop(frame, *box) for box in self._fine.boxes() for frame in frames]
        parts = torch.cat([self.inner.encode(tiles[some]) for some in self._batches(len(tiles))])
        return self.windows.fuse(parts, parts.dtype)

    @where_inner_has("decode")
    def decode(self, latent: Any) -> NDArray[np.float32]:
        """Images of latents: (sample, channel, y, x) to (sample, y, x, rgb), float32 in 0..1.

        Each window is decoded by itself; they are blended by the same weights, at the resolution of pixels.
        Raises ValueError or TypeError for what is not such an array (a DataArray comes without `step`).
        """
        x = inputs.latent(self, latent, "latent", "model.decode(run.latent.isel(step=-1))")
        tiles = self.windows.cut(x)
        parts = np.concatenate([self.inner.decode(tiles[some]) for some in self._batches(len(tiles))])
        images = self._fine.fuse(torch.from_numpy(parts).permute(0, 3, 1, 2), torch.float64)
        images = images.permute(0, 2, 3, 1).numpy().astype(np.float32)
        return np.ascontiguousarray(images.clip(0.0, 1.0))  # a mean may be above 1 in its last bit

    @cached_property
    def _fine(self) -> Windows:
        """The windows in pixels of images, whose size the inner model alone knows: it is asked once."""
        one = self.inner.decode(torch.zeros((1, self.channels, *self.windows.window), dtype=torch.float64))
        height, width = self.windows.window
        return self.windows.larger((one.shape[1] // height, one.shape[2] // width))

    def _batches(self, count: int) -> list[slice]:
        most = self.batch or count
        return [slice(at, at + most) for at in range(0, count, most)]


def tiled(model: Model, size: Sequence[int], stride: int | Sequence[int] | None = None,
          window: Sequence[int] | None = None, batch: int | None = None) -> Tiled:  # fmt: skip
    """A model on a canvas larger than its own: windows that overlap, asked in one batch, fused into one x0.

    D(x) = sum_i F_i^-1(q D_i(F_i x)) / sum_i F_i^-1(q), where F_i cuts window i out of the canvas. The weight
    q is sin^2 on both axes: least at the edges of a window, where it has seen least of what surrounds a
    pixel. One window that covers the canvas gives the model's own answer, bit for bit.

    Parameters
    ----------
    model : Model
    size : (y, x)
        Of the canvas, in latent pixels.
    stride : int or (y, x), optional
        From one window to the next, at most a window; the last one ends where the canvas does. None is three
        quarters of a window.
    window : (y, x), optional
        None is the model's own size; a model that takes any size has none, and must be told.
    batch : int, optional
        Network rows in a forward, at most: windows times samples times conditions. None is all at once.

    Returns
    -------
    Tiled
        A model with `shape` (channel, *size); its path, levels and conditions are those of `inner`, and so is
        whether it can `encode` and `decode`. `rows` of a record counts network rows, one a window.

    Raises
    ------
    ValueError, TypeError
        For a canvas smaller than a window, a stride that leaves gaps, a window that is not the model's size,
        and for what is not a Model: conditions are bound to the canvas, not to its windows.

    Source: MultiDiffusion (2302.08113), equation 5, which fuses the steps of windows. Here their x0 is fused:
    for Euler that is the same, and other solvers keep their history.

    Examples
    --------
    >>> import toolkit as tk
    >>> wide = tk.tiled(tk.load(), size=(8, 20))
    >>> wide.shape, wide.stride, wide.windows.corners
    ((4, 8, 20), (6, 6), [(0, 0), (0, 6), (0, 12)])
    >>> run = tk.sample(wide, prompt=3, steps=2, progress=False)
    >>> wide.decode(run.latent[-1]).shape, int(run.rows[-1])
    ((1, 32, 80, 3), 6)
    """
    if not isinstance(model, Model):
        why = "a model is tiled before its conditions are bound, and a function has no windows"
        raise bad("model", model, why, MODEL, TypeError)
    if model.channels is None:
        raise bad("model", model, "it does not say how many channels it has", "model.channels = 4")
    size = _pair("size", size, MODEL)
    window = _window(model, size, window)
    line = f"tk.tiled(model, size={tuple(map(max, size, window))}, window={window}"
    if any(n < w for n, w in zip(size, window, strict=True)):
        raise bad("size", size, f"a canvas holds at least one window of {_by(window)}", f"{line})")
    usual = tuple(max(1, 3 * n // 4) for n in window)
    asked = usual if stride is None else stride if isinstance(stride, (tuple, list)) else (stride, stride)
    steps = _pair("stride", asked, f"{line}, stride={usual})", stride)
    if any(s > n for s, n in zip(steps, window, strict=True)):
        why = f"it leaves gaps between windows of {_by(window)}"
        raise bad("stride", stride, why, f"{line}, stride={usual})")
    if batch is not None:
        batch = inputs.whole("batch", batch, 1, None, f"{line}, batch=64)")
    starts = [_starts(*axis) for axis in zip(size, window, steps, strict=True)]
    return Tiled(model, Windows(size, window, starts), steps, batch)


def _window(model: Model, size: tuple[int, int], given: Any) -> tuple[int, int]:
    """The size of a window: the model's own, or what was asked for of one that has none."""
    line = f"tk.tiled(model, size={size}, window={tuple(min(n, 64) for n in size)})"
    if model.shape is None:
        if given is None and model.usual_shape is not None:
            return tuple(model.usual_shape[1:])
        if given is None:
            raise bad("window", None, "this model takes any size, and does not say which it is good at", line)
        pair, patch = _pair("window", given, line), model.multiple
        if any(n % patch for n in pair):
            near = tuple(max(patch, n - n % patch) for n in pair)
            why = f"multiples of {patch}, as sides of this model's latents are"
            raise bad("window", given, why, f"tk.tiled(model, size={size}, window={near})")
        return pair
    own = tuple(model.shape[1:])
    line = f"tk.tiled(model, size={tuple(map(max, size, own))})"
    if given is not None and _pair("window", given, line) != own:
        raise bad("window", given, f"this model takes {_by(own)} and no other", line)
    return own


def _pair(name: str, given: Any, line: str, shown: Any = None) -> tuple[int, int]:
    """Two whole numbers from 1, (y, x); `shown` is what the user gave where that is something else."""
    shown = given if shown is None else shown
    whole = isinstance(given, (tuple, list)) and len(given) == 2
    if not whole or any(isinstance(n, bool) or not isinstance(n, (int, np.integer)) for n in given):
        raise bad(name, shown, "whole numbers, (y, x) in latent pixels", line, TypeError)
    if min(given) < 1:
        raise bad(name, shown, "1 or more", line)
    return int(given[0]), int(given[1])


def _starts(size: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one axis: at multiples of the stride, the last flush with the edge."""
    at = list(range(0, size - window + 1, stride))
    return at if at[-1] == size - window else [*at, size - window]


def _by(pair: Sequence[int]) -> str:
    return " x ".join(map(str, pair))


def _frames(image: Any) -> list[Any]:
    """The pictures in what a user calls an image, each PIL's or (y, x, colour).

    Not as pixels in one form: how colour becomes grey, say, is the inner model's affair.
    """
    if isinstance(image, (list, tuple)) and image:
        return [frame for one in image for frame in _frames(one)]
    pixels_of(image, 3)  # raises for what is no image
    if inputs.is_picture(image):
        return [image]
    array = inputs.host(image)
    if not (array.ndim in (3, 4) and array.shape[-1] in (1, 3)):
        array = array[..., None]
    return list(array) if array.ndim == 4 else [array]


def _size(frame: Any) -> tuple[int, int]:
    """(y, x) in pixels."""
    return frame.size[::-1] if inputs.is_picture(frame) else frame.shape[:2]


def _crop(frame: Any, rows: slice, columns: slice) -> Any:
    if inputs.is_picture(frame):
        return frame.crop((columns.start, rows.start, columns.stop, rows.stop))
    return frame[rows, columns]
