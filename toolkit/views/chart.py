"""The solver atlas drawn: which names return, which are accurate, what they cost."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..typefaces import heavy
from .marks import KNOWN, RETURNS, Mark, front, marks_of, measured_part, shown
from .paper import SCALE, Sheet, tokens
from .words import minus

WORST = 1.0  # error of the darkest cell; the image is gone
BEST = 1e-5  # of the lightest cell that does not return

BLOCKS = ("auto", "reverse")  # inverses of the table on the right

# strategy -> marker, colour; fill says whether the image comes back, so colour is never alone
MARKS = {
    "offsets": ("o", "cat-0"),
    "reverse": ("o", "cat-1"),
    "algebraic": ("D", "cat-2"),
    "noise": ("s", "cat-3"),
    "fixed_point": ("^", "cat-4"),
    "defect": ("v", "cat-5"),
}
WIDTH, PLOT_LEFT, PLOT_RIGHT, TOP = 1080, 84, 600, 142  # pixels
STRIP, TITLE, GAP = 58, 20, 14  # the band of what aims at no ODE: its height, its title's, the room under it
ROW, CELL, TABLE_RIGHT = 13, 36, 1040
NEAR = (10, 15, 22, 32, 44, 58, 74, 92)  # pixels from a mark to its label, tried in turn
TURNS = (0, 180, 45, -45, 135, -135, 90, -90, 20, -20, 160, -160, 65, -65, 115, -115)  # degrees, in turn
LEADER = 18  # a label that is farther than this gets a line
TICKS = ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8))  # times powers of ten: the first that give enough
ENOUGH = 3


def atlas_chart(
    ds: xr.Dataset, *, model: str | None = None, cfg: float | None = None, steps: int | None = None
) -> Figure:
    """Accuracy against cost of every solver and inverse, and beside it what comes back at which guidance.

    Left, at one cfg: a mark a (solver, inverse), filled where the image comes back (error below 1e-9), hollow
    with its error where it does not; the line joins those that return and that no other one beats. A band
    above holds what aims at no ODE. Right, all cfgs: the error, a dot where the image comes back.

    Parameters
    ----------
    ds : Dataset
        Of ``tk.atlas``.
    model, cfg, steps : optional
        Of those in the Dataset; None: the first one, and 20 steps where they were taken.

    Returns
    -------
    Figure
        matplotlib's, 1080 pixels wide; ``figure.savefig("atlas.png")``.

    Raises
    ------
    ValueError, TypeError
        For another Dataset, or a model, cfg or number of steps that was not measured.

    Examples
    --------
    >>> import toolkit as tk
    >>> model, images = tk.testing.sharp_modes()
    >>> ds = tk.atlas({"A": (model, images["on"], 3, None)}, ["euler"], steps=[5], progress=False)
    >>> tk.views.atlas_chart(ds, cfg=1.0)
    <Figure size 2160x1240 with 1 Axes>
    """
    part, asked = measured_part(ds, model, cfg, steps)
    solvers = _rows(part)
    height = max(400, ROW * len(solvers))
    sheet = Sheet(WIDTH, TOP + height + 78)
    heading = sheet.text(PLOT_LEFT - 32, 42, "Solver atlas", 14, fontweight=heavy())
    calls = f"{asked['steps']} steps" + (f" · {ds.attrs['schedule']}" if "schedule" in ds.attrs else "")
    sheet.text(sheet.beside(heading, 10), 42, f"{asked['model']} · {calls}", 12, "muted")
    marks = marks_of(part.sel(cfg=asked["cfg"], drop=True))
    _plot(sheet, marks, asked["cfg"], TOP, height)
    _table(sheet, part, solvers, asked["cfg"], TOP)
    return sheet.figure


# --- the plot ----


class _Scale:
    """A log axis in pixels."""

    def __init__(self, values: list[float], start: float, end: float, pad: float):
        low, high = math.log10(min(values)), math.log10(max(values))
        room = max(high - low, 0.6) * pad
        self.low, self.high, self.start, self.end = low - room, high + room, start, end

    def __call__(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Powers of ten, with as many between them as it takes to have three."""
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        for factors in TICKS:
            values = [m * 10.0**p for p in powers for m in factors]
            inside = [v for v in values if self.low <= math.log10(v) <= self.high]
            if len(inside) >= ENOUGH:
                break
        return inside


def _plot(sheet: Sheet, marks: list[Mark], cfg: float, top: float, height: float) -> None:
    """Accuracy against calls, with the band of what aims at no ODE over it."""
    aimed = [m for m in marks if math.isfinite(m.accuracy) and m.accuracy > 0]
    other = [m for m in marks if not math.isfinite(m.accuracy)]
    bottom, under = top + height, top + (STRIP + GAP if other else 0)
    x = _Scale([m.calls for m in marks] or [10.0, 100.0], PLOT_LEFT, PLOT_RIGHT, 0.1)
    y = _Scale([m.accuracy for m in aimed] or [1e-3, 1.0], bottom, under, 0.06)
    heading = sheet.text(
        PLOT_LEFT - 32, top - 50, f"Accuracy against cost at cfg {cfg:g}", 12, fontweight=heavy()
    )
    about = "how far x_T is from the true ODE's, against model calls there and back"
    sheet.text(sheet.beside(heading), top - 50, about, 11, "muted")
    _legend(sheet, top - 26, marks)
    for value in y.ticks():
        sheet.rule(PLOT_LEFT, PLOT_RIGHT, y(value), "grid")
        text = f"{value:g}" if value >= 1e-3 else minus(f"1e{round(math.log10(value))}")
        sheet.text(PLOT_LEFT - 8, y(value) + 4, text, 10.5, "muted", ha="right")
    for value in x.ticks():
        sheet.text(x(value), bottom + 18, f"{value:g}", 10.5, "muted", ha="center")
        sheet.ground.plot([x(value)] * 2, [bottom, bottom + 4], color=tokens()["edge"], linewidth=0.72)
    sheet.rule(PLOT_LEFT, PLOT_RIGHT, bottom, "edge")
    sheet.text(PLOT_LEFT, bottom + 38, "model calls, there and back", 11, "muted")
    said = "line: the best of those that return · +2: and two more there"
    sheet.text(PLOT_RIGHT, bottom + 38, said, 10.5, "muted", ha="right")
    places = {m: (x(m.calls), y(m.accuracy)) for m in aimed}
    if other:
        band = (PLOT_LEFT, top), PLOT_RIGHT - PLOT_LEFT, STRIP
        sheet.ground.add_patch(Rectangle(*band, facecolor=tokens()["wash"], linewidth=0))
        sheet.text(
            PLOT_LEFT + 6,
            top + 13,
            "x_T solves no ODE: stochastic names, and below them cfg++",
            10.5,
            "muted",
        )
        rows = {m: 0.84 if m.strategy == "offsets" else 0.52 for m in other}
        places |= {m: (x(m.calls), top + STRIP * row) for m, row in rows.items()}
    best, line = front(marks), []
    if len(best) > 1:
        line = [places[mark] for mark in best]
        xs = [line[0][0], *(v for a, b in pairwise(line) for v in (b[0], b[0]))]
        ys = [line[0][1], *(v for a, b in pairwise(line) for v in (a[1], b[1]))]
        sheet.ground.plot(xs, ys, color=tokens()["solid"], linewidth=1.1, alpha=0.3, zorder=2)
        line = list(zip(xs, ys, strict=True))
    for mark, place in places.items():
        _draw(sheet, mark, place)
    _labels(sheet, places, best, line, (PLOT_LEFT, top + (TITLE if other else 0), PLOT_RIGHT + 16, bottom))


def _draw(sheet: Sheet, mark: Mark, place: tuple[float, float]) -> None:
    marker, token = MARKS[mark.strategy]
    colour, paper = tokens()[token], tokens()["paper"]
    size = {"D": 5.4, "s": 5.8}.get(marker, 6.4)
    if mark.returns:  # with a ring of paper, over the hollow ones
        size, look = size + 1.2, {"markerfacecolor": colour, "markeredgecolor": paper, "zorder": 4}
    else:
        look = {"markerfacecolor": paper, "markeredgecolor": colour, "zorder": 3}
    sheet.ground.plot(*place, marker, markersize=size, markeredgewidth=1.2, gid="mark", **look)


def _legend(sheet: Sheet, y: float, marks: list[Mark]) -> None:
    """The strategies that are there, each as it is drawn."""
    x = PLOT_LEFT - 27
    for strategy, (marker, token) in MARKS.items():
        mine = [m for m in marks if m.strategy == strategy]
        if not mine:
            continue
        full = any(m.returns for m in mine)
        fill = tokens()[token] if full else tokens()["paper"]
        sheet.ground.plot(
            x, y - 4, marker, markersize=6, markerfacecolor=fill, markeredgecolor=tokens()[token]
        )
        x = sheet.beside(sheet.text(x + 10, y, strategy, 11), 18)
    sheet.text(x, y, "filled: the image comes back · hollow: off by its number", 11, "muted")


def _labels(
    sheet: Sheet, places: dict[Mark, tuple], best: list[Mark], line: list[tuple], frame: tuple
) -> None:
    """Names of the front and of those that are looked for; one that finds no room is left out."""
    taken = [(px - 5, py - 5, px + 5, py + 5) for px, py in places.values()]
    for (x0, y0), (x1, y1) in pairwise(line):
        taken.append((min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1))
    # a reversible solver without its second state returns nothing: its mark is there, its name is elsewhere
    own = {n for m in places if m.strategy == "algebraic" for n in m.names}
    wanted = [m for n in KNOWN for m in places if n in m.names and not (m.strategy == "reverse" and n in own)]
    for mark in dict.fromkeys([*best, *wanted]):
        weight, token = heavy() if mark in best else 400, "ink" if mark.returns else "muted"
        look = {"va": "center_baseline", "ha": "center", "fontweight": weight, "gid": "label", "zorder": 6}
        text = sheet.text(0, 0, mark.label, 10.5, token, **look)
        box = text.get_window_extent(sheet.figure.canvas.get_renderer())
        half = box.width / 2 / SCALE + 1, box.height / 2 / SCALE + 1
        found = _room(places[mark], half, taken, frame)
        if found is None:
            text.remove()
            continue
        (x, y), far = found
        text.set_position((x, y))
        taken.append((x - half[0], y - half[1], x + half[0], y + half[1]))
        if far > LEADER:
            _leader(sheet, places[mark], (x, y), half)


def _room(spot: tuple, half: tuple, taken: list[tuple], frame: tuple) -> tuple[tuple, float] | None:
    """The nearest centre for a label of half size `half`, clear of what is taken, and how far it is."""
    for far in NEAR:
        for turn in TURNS:
            dx, dy = math.cos(math.radians(turn)), -math.sin(math.radians(turn))
            cx = spot[0] + dx * far + (half[0] if dx > 0.3 else -half[0] if dx < -0.3 else 0)
            cy = spot[1] + dy * (far + half[1])
            box = cx - half[0], cy - half[1], cx + half[0], cy + half[1]
            inside = box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
            if not inside or any(_overlap(box, other) for other in taken):
                continue
            between = [
                (spot[0] + (cx - spot[0]) * k / 8, spot[1] + (cy - spot[1]) * k / 8) for k in range(1, 8)
            ]
            others = [b for b in taken if not (b[0] <= spot[0] <= b[2] and b[1] <= spot[1] <= b[3])]
            if far <= LEADER or not any(_overlap((*p, *p), b) for p in between for b in others):
                return (cx, cy), far
    return None


def _overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _leader(sheet: Sheet, spot: tuple, centre: tuple, half: tuple) -> None:
    """A hairline from a mark to the nearest edge of its label."""
    x = min(max(spot[0], centre[0] - half[0]), centre[0] + half[0])
    y = min(max(spot[1], centre[1] - half[1]), centre[1] + half[1])
    sheet.ground.plot([spot[0], x], [spot[1], y], color=tokens()["edge"], linewidth=0.6, zorder=1)


# --- the table beside it ----


def _rows(part: xr.Dataset) -> list[str]:
    """The solvers, best reverse at the lowest cfg first; those without one last, in their own order."""
    names = [str(n) for n in part.solver.values]
    if "reverse" not in part.inverse.values:
        return names
    error = part.error.sel(inverse="reverse").isel(cfg=0).values
    return [names[i] for i in np.argsort(np.where(np.isnan(error), np.inf, error), kind="stable")]


def _table(sheet: Sheet, part: xr.Dataset, solvers: list[str], cfg: float, top: float) -> None:
    """Error of every solver at every cfg, a block of columns an inverse: the usual and the plain one."""
    there, cfgs = part.inverse.values.tolist(), part.cfg.values.tolist()
    inverses = [name for name in BLOCKS if name in there] or there[:2]
    cell = min(CELL, 216 / (len(inverses) * len(cfgs)))
    width = cell * len(inverses) * len(cfgs) + 8 * (len(inverses) - 1)
    left = TABLE_RIGHT - width
    ramp = LinearSegmentedColormap.from_list("tk", tokens()["sequential"], N=256)
    sheet.text(left, top - 50, "What comes back", 12, fontweight=heavy())
    for k, inverse in enumerate(inverses):
        x = left + k * (cell * len(cfgs) + 8)
        sheet.text(x, top - 30, inverse, 11, fontweight=heavy())
        for c, value in enumerate(cfgs):
            token, weight = ("ink", heavy()) if value == cfg else ("muted", 400)
            sheet.text(
                x + cell * (c + 0.5), top - 8, f"{value:g}", 10.5, token, ha="center", fontweight=weight
            )
            errors = part.error.sel(inverse=inverse, cfg=value)
            for i, name in enumerate(solvers):
                _cell(sheet, x + cell * c, top + ROW * i, cell, float(errors.sel(solver=name)), ramp)
    sheet.text(left - 8, top - 8, "cfg", 10.5, "muted", ha="right")
    for i, name in enumerate(solvers):
        sheet.text(left - 8, top + ROW * (i + 1) - 3, name, 10.5, ha="right")
    foot = top + ROW * len(solvers)
    sheet.text(left, foot + 18, "● comes back, to 1e−9 or better", 10.5, "muted")
    sheet.text(left, foot + 33, "number: relative error; empty: no such inverse", 10.5, "muted")


def _cell(sheet: Sheet, x: float, y: float, width: float, error: float, ramp: Any) -> None:
    if math.isnan(error):
        return
    share = math.log10(max(error, 1e-300) / BEST) / math.log10(WORST / BEST) if error < WORST else 1.0
    colour = ramp(0.08 + 0.72 * min(max(share, 0.0), 1.0)) if error >= RETURNS else tokens()["wash"]
    sheet.ground.add_patch(Rectangle((x + 0.5, y + 0.5), width - 1, ROW - 1, facecolor=colour, linewidth=0))
    luminance = float(np.dot(to_rgb(colour[:3]), (0.3, 0.6, 0.1))) if error >= RETURNS else 1.0
    token = "paper" if luminance < 0.55 else "ink"
    size, middle = (7, y + ROW - 4) if error < RETURNS else (9, y + ROW - 3.2)
    sheet.text(x + width / 2, middle, shown(error), size, token, ha="center")
