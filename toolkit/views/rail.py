"""The rail on paper: the schedule, mean and std of each channel on one axis, and where the thumb goes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb

from ..typefaces import heavy
from . import words
from .paper import Sheet, tokens
from .unpacked import Run

LEFT, RIGHT, HEIGHT = 34, 30, 336  # room for labels beside the plots, and for all of them
LEVEL, MOMENTS, BOTTOM = (
    (26, 124),
    {"mean": (166, 212), "std": (256, 304)},
    312,
)  # tops and bottoms of the plots
NAMED = 6  # more channels than this are not told apart by colour
Scale = Callable[[Any], Any]


def ticks(lo: float, hi: float, wish: int = 3) -> list[float]:
    """About `wish` round numbers between lo and hi."""
    raw = (hi - lo) / wish or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next((m for m in (1, 2, 5, 10) if m * power >= raw * 0.999), 10)
    first, last = math.ceil(lo / step - 1e-9), math.floor(hi / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def decades(lo: float, hi: float, wish: int = 4) -> list[float]:
    """Powers of ten between lo and hi, thinned to about `wish`; 1, 2, 5 where there are fewer than two."""
    first, last = math.ceil(math.log10(lo) - 1e-9), math.floor(math.log10(hi) + 1e-9)
    found = [10.0**k for k in range(first, last + 1, max(1, math.ceil((last - first + 1) / wish)))]
    if len(found) > 1:
        return found
    fine = {m * 10.0**k for k in (first - 1, first, last) for m in (1, 2, 5)}
    return sorted(v for v in fine if lo * 0.999 <= v <= hi * 1.001)


@dataclass
class Axis:
    """A scale value -> 0..1 and the values that are labelled on it."""

    place: Scale
    ticks: list[float]


def linear(lo: float, hi: float, wish: int = 2) -> Axis:
    span = (hi - lo) or 1.0
    return Axis(lambda v: (np.asarray(v, float) - lo) / span, ticks(lo, hi, wish))


def levels(values: np.ndarray, slot: float, wish: int = 4) -> Axis:
    """Log, with a slot of its own for 0 (a share of the length) below it."""
    positive = values[(values > 0) & np.isfinite(values)]
    if not len(positive):
        return linear(0, 1)
    lo, hi = float(positive.min()), float(positive.max())
    hi, slot = (hi if hi > lo else lo * 1.01), slot if (values == 0).any() else 0.0
    span = math.log(hi / lo)

    def place(v: Any) -> Any:
        v = np.asarray(v, float)
        above = slot + (1 - slot) * np.log(np.where(v > 0, v, lo) / lo) / span
        return np.where(np.isnan(v), np.nan, np.where(v > 0, above, 0.0))

    return Axis(place, ([0.0] if slot else []) + decades(lo, hi, wish))


def moments(values: np.ndarray, log: bool) -> Axis:
    """Linear, or log where a std spans most of a decade."""
    real = values[np.isfinite(values)]
    if not len(real):
        return linear(0, 1)
    lo, hi, positive = float(real.min()), float(real.max()), real[real > 0]
    if log and len(positive) and hi > 8 * positive.min():
        return levels(real, 0.15, 2)
    pad = (hi - lo) * 0.06 or 0.5
    return linear(lo - pad, hi + pad)


def apart(wanted: list[float], gap: float, lo: float, hi: float) -> list[float]:
    """Places for labels: near to where they want to be, `gap` apart, within lo..hi."""
    order = np.argsort(wanted, kind="stable")
    out = np.array(wanted, float)[order]
    for k in range(1, len(out)):
        out[k] = max(out[k], out[k - 1] + gap)
    over = out[-1] - hi
    for k in range(len(out) - 1, -1, -1):
        out[k] = min(out[k], hi if k == len(out) - 1 else out[k + 1] - gap) if over > 0 else max(out[k], lo)
    places = np.empty(len(out))
    places[order] = out
    return places.tolist()


def category(c: int, of: int) -> str:
    """The colour of a channel; grey where there are too many."""
    return tokens()[f"cat-{c}"] if of <= NAMED else tokens()["edge"]


def deep(colour: str) -> tuple[float, ...]:
    """A category's colour for text: darker, so that it stays readable."""
    return tuple(0.74 * v for v in to_rgb(colour))


class Rail:
    """The rail of a sample, its top left corner at (x, y): draws what stays, knows where the rest goes.

    Attributes
    ----------
    at : array (R,)
        Where the hairline stands at each rung.
    level : array (R,)
        The height of the thumb there.
    dots : list of (colour, array (R,))
        The heights of the curves there.
    labels : list of (x, text)
        Under the axis; which of them the thumb leaves room for changes.
    titles : list of (left, top, right, bottom)
        Where the plots are named, once they are drawn.
    """

    def __init__(
        self, x: float, y: float, width: float, run: Run, sample: int, axis: str, focused: int | None
    ):
        self.x, self.y, self.left, self.right = x, y, x + LEFT, x + width - RIGHT
        self.run, self.sample, self.focused, last = run, sample, focused, run.meta["planned"] - 1
        if axis == "step":
            across, where, self.name = linear(0, last, 4), run.rungs, "rung"
            self.minor = np.arange(last + 1)
        else:
            log = axis == "log_sigma"
            across = levels(run.sigma, 0.06, 5) if log else linear(0, run.sigma.max(), 5)
            where, self.name = run.sigma, "log σ" if log else "σ"
            self.minor = run.sigma
        px = lambda v: self.left + (self.right - self.left) * across.place(v)  # noqa: E731
        self.at, self.minor = px(where), np.sort(px(self.minor))
        whole = [v for v in across.ticks if axis != "step" or v == int(v)]
        self.labels = [(float(px(v)), words.count(int(v)) if axis == "step" else f"{v:g}") for v in whole]
        if run.meta["stopped"] and axis == "step":
            self.end = float(self.at[-1])
        else:
            self.end = None
        self.titles: list[tuple[float, float, float, float]] = []
        self.scale = levels(run.sigma, 0.1)
        self.level = self._down(LEVEL, self.scale, run.sigma)
        self.curves = {name: self._curve(name) for name in MOMENTS}
        self.dots = [dot for _, ys in self.curves.values() for dot in zip(self._colours(), ys.T, strict=True)]

    def _colours(self) -> list[str]:
        return [category(c, self.run.C) for c in range(self.run.C)]

    def _down(self, place: tuple[float, float], axis: Axis, values: Any) -> Any:
        top, bottom = place
        return self.y + bottom - axis.place(values) * (bottom - top)

    def _curve(self, name: str) -> tuple[Axis, np.ndarray]:
        """The scale of a moment, and its heights (R, C)."""
        values = self.run.table[f"latent.{name}"][:, self.sample]
        axis = moments(values, name == "std")
        return axis, self._down(MOMENTS[name], axis, np.where(np.isfinite(values), values, np.nan))

    def area(self) -> list[tuple[float, float]]:
        """The corners of what lies under the schedule."""
        solid = self.run.sigma > 0
        if not solid.any():
            return []
        xs, foot = self.at[solid], self.y + LEVEL[1]
        return [*zip(xs, self.level[solid], strict=True), (xs[-1], foot), (xs[0], foot)]

    def draw(self, sheet: Sheet) -> None:
        self._grid(sheet, "σ", "the schedule", LEVEL, self.scale)
        self._schedule(sheet)
        for name, (axis, ys) in self.curves.items():
            self._grid(sheet, name, "per channel", MOMENTS[name], axis)
            self._lines(sheet, MOMENTS[name], ys)
        self._ticks(sheet)

    def _grid(self, sheet: Sheet, name: str, unit: str, place: tuple[float, float], axis: Axis) -> None:
        bold = sheet.text(self.left, self.y + place[0] - 14, name, 11, fontweight=heavy())
        more = sheet.text(sheet.beside(bold, 5), self.y + place[0] - 14, unit, 11, "muted")
        self.titles.append(
            (self.left - 2, self.y + place[0] - 24, sheet.beside(more, 3), self.y + place[0] - 10)
        )
        before = math.inf
        for value in axis.ticks:
            y = float(self._down(place, axis, value))
            if not self.y + place[0] - 1 <= y <= self.y + place[1] + 1:
                continue
            if value != 0 or place != LEVEL:
                sheet.rule(self.left, self.right, y, "grid")
            if before - y >= 11:
                sheet.text(self.left - 8, y + 3.5, words.minus(f"{value:g}"), 10.5, "muted", ha="right")
                before = y

    def _schedule(self, sheet: Sheet) -> None:
        ground, ink, sigma = sheet.ground, tokens()["solid"], self.run.sigma
        if self.area():
            ground.fill(*zip(*self.area(), strict=True), color=tokens()["wash"], linewidth=0)
        if self.end is not None:
            top, foot = self.y + LEVEL[0] - 4, self.y + LEVEL[1]
            corners = [self.end, self.right, self.right, self.end], [top, top, foot, foot]
            ground.fill(*corners, color=tokens()["error"], alpha=0.08, linewidth=0)
            ground.plot([self.end] * 2, [top, foot], color=tokens()["error"], linewidth=1.1)
        line = np.where(sigma > 0, self.level, np.nan)
        ground.plot(self.at, line, color=ink, linewidth=1.1, solid_joinstyle="round")
        for k in range(1, len(sigma)):  # level 0 is not on the log axis: joined by dots
            if (sigma[k] == 0) != (sigma[k - 1] == 0):
                pair = slice(k - 1, k + 1)
                ground.plot(
                    self.at[pair], self.level[pair], color=ink, linewidth=1.1, linestyle=(0, (1.2, 2.2))
                )
        crowded = len(sigma) > 1 and np.ptp(self.at) / (len(sigma) - 1) < 5
        faults = np.isin(
            np.arange(len(sigma)), [f[0] for f in self.run.meta["faults"] if f[1] == self.sample]
        )
        dots = ~faults & ((sigma == 0) | (not crowded))
        ground.plot(self.at[dots], self.level[dots], "o", color=ink, markersize=2.7, markeredgewidth=0)
        crosses = {"color": tokens()["warn"], "markersize": 5.8, "markeredgewidth": 1.1}
        ground.plot(self.at[faults], self.level[faults], "x", **crosses)

    def _lines(self, sheet: Sheet, place: tuple[float, float], ys: np.ndarray) -> None:
        """The curves of one moment, each named at its end; `all` where the ends cannot be told apart."""
        for c, colour in enumerate(self._colours()):
            width = 1.9 if c == self.focused else 1.15
            sheet.ground.plot(self.at, ys[:, c], color=colour, linewidth=width, solid_joinstyle="round")
        end = int(self.at.argmax())
        named = [c for c in range(self.run.C) if self.run.C <= NAMED or c == self.focused]
        named = [c for c in named if np.isfinite(ys[end, c])]
        wanted, x = [float(ys[end, c]) for c in named], float(self.at[end]) + 8
        if len(named) > 1 and max(wanted) - min(wanted) < 4:
            sheet.text(x, wanted[0] + 3.5, "all", 10.5, "muted")
        elif named:
            free = apart(wanted, 11.5, self.y + place[0] - 6, self.y + place[1] + 6)
            for c, y in zip(named, free, strict=True):
                label = sheet.text(x, y + 3.5, self.run.names[c][:4], 11, fontweight=heavy())
                label.set_color(deep(category(c, self.run.C)) if self.run.C <= NAMED else tokens()["ink"])

    def _ticks(self, sheet: Sheet) -> None:
        """A tick for each rung where there is room, longer at the labels."""
        bottom, before = self.y + BOTTOM, -math.inf
        for x in self.minor:
            if x - before >= 3:
                self._tick(sheet, x, bottom - 2)
                before = x
        for x, _ in self.labels:
            self._tick(sheet, x, bottom)

    def _tick(self, sheet: Sheet, x: float, to: float) -> None:
        foot = self.y + BOTTOM - 5
        sheet.ground.plot([x, x], [foot, to], color=tokens()["edge"], linewidth=0.72, solid_capstyle="butt")
