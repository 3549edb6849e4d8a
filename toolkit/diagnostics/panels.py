"""The pictures that figures of diagnostics are made of: what draws a variable on a pair of axes."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.ticker import FixedLocator, FuncFormatter

from ..typefaces import face
from .figures import (
    DIVERGING,
    DOTTED,
    EDGE,
    INK,
    MUTED,
    PAPER,
    SEQUENTIAL,
    TEXT,
    Panel,
    beside,
    colour_bar,
    label,
    lines,
    looks,
    named,
    noise_axis,
    nothing,
    ramp,
    target,
    value_axis,
)

SPECTRA = 6  # rungs whose spectrum is drawn
LINES = 11  # of text, in the height of a panel
TICKS, FEW = 6, 4  # of a matrix, along each side, in a figure of its own and beside others


def over_noise(name: str, title: str, short: str, expected: tuple[float, str] | None = None, *,
               span: tuple[float, float] | None = None, scale: str = "linear",
               against: str | None = None) -> Panel:  # fmt: skip
    """A panel of one variable over the noise level.

    `expected` is a level that is drawn dotted, and what it means; `span` what the axis shows at least, and
    `against` a variable whose median is drawn dotted.
    """

    def draw(axes: Axes, ds: xr.Dataset) -> None:
        if expected is not None:
            target(axes, expected[0])
        if against is not None and against in ds:
            middle = ds[against].median([d for d in ds[against].dims if d != "step"]).values
            there = np.isfinite(middle)
            dots = {"color": MUTED, "linewidth": 1.1, "linestyle": (0, (1.2, 1.6)), "zorder": 4}
            axes.plot(ds["sigma"].values[there], middle[there], label=f"_{against}", **dots)
        lines(axes, ds["sigma"].values, ds[name])
        noise_axis(axes, ds["sigma"])
        values = ds[name].values
        if not np.isfinite(values).any():
            nothing(axes)
        logarithmic = scale == "log" and (values[np.isfinite(values)] > 0).any()
        value_axis(axes, span, bool(logarithmic))
        label(axes, y=named(ds[name], short))

    note = "dotted: what the schedule expects" if against else ""
    if expected is not None:
        note = f"dotted: {expected[0]:g}" + (f", {expected[1]}" if expected[1] else "")
    return Panel((name,), title, draw, note)


def plane(axes: Axes, ds: xr.Dataset) -> None:
    """The first two principal components of each sample against each other, with both ends marked."""
    score = ds["score"].transpose("step", "sample", "component")
    across = score.isel(component=0)
    up = score.isel(component=1) if score.sizes["component"] > 1 else xr.zeros_like(across)
    sigma = ds["sigma"].values
    for k, look in enumerate(looks(score.sizes["sample"])):
        x, y = across[:, k].values, up[:, k].values
        there = np.isfinite(x) & np.isfinite(y) & np.isfinite(sigma)
        x, y = x[there], y[there]
        axes.plot(x, y, label=f"sample {k}" if score.sizes["sample"] > 1 else "_", **look)
        if not len(x):
            continue
        ends = np.argsort(sigma[there], kind="stable")[[0, -1]]
        for place, fill, said in zip(ends, (look["color"], PAPER), ("clean", "noise"), strict=True):
            ring = {"markeredgecolor": look["color"], "markerfacecolor": fill, "markeredgewidth": 1.3}
            axes.plot(x[place], y[place], "o", markersize=6, zorder=5, label="_end", **ring)
            if k == 0 and len(x) > 1:
                beside(axes, said, x[place], y[place], x[place] < (x.min() + x.max()) / 2)
    shares = np.full(2, np.nan)
    if score.sizes["sample"] == 1:
        shares[: ds.sizes["component"]] = ds["explained"].values[0, :2]
    said = [f" ({100 * v:.3g} % of the variance)" if np.isfinite(v) else "" for v in shares]
    label(axes, *(named(score, f"component {k}{text}") for k, text in enumerate(said)))
    axes.margins(x=0.08)
    value_axis(axes, (-1e-3, 1e-3), room=0.18)


def spectra(bar: bool, axes: Axes, ds: xr.Dataset) -> None:
    """Power over spatial frequency at a few rungs, evenly in log sigma: median of samples and channels."""
    power = ds["power"].median([d for d in ds["power"].dims if d not in ("step", "frequency")])
    power = power.transpose("step", "frequency")
    sigma, frequency = ds["sigma"].values, ds["frequency"].values
    there = np.flatnonzero((power.values > 0).any(axis=1) & (sigma > 0))  # False of NaN
    target(axes, 1.0)
    rungs = evenly(sigma, there, SPECTRA)
    if len(rungs):
        ends = sigma[rungs[0]], max(sigma[rungs[-1]], 1.001 * sigma[rungs[0]])
        colours = ScalarMappable(LogNorm(*ends), ramp(SEQUENTIAL[3:]))  # the lightest are lost on paper
        if bar:
            colour_bar(axes, colours, sigma[rungs], named(ds["sigma"], "noise level σ"))
    for rung in rungs:
        good = power.values[rung] > 0
        marks = {"marker": "o", "markersize": 2.2, "markeredgewidth": 0} if good.sum() <= DOTTED else {}
        axes.plot(frequency[good], power.values[rung][good], color=colours.to_rgba(sigma[rung]),
                  linewidth=1.5, zorder=3, label=f"_σ {sigma[rung]:.3g}", **marks)  # fmt: skip
    value_axis(axes, (0.5, 2.0), bool(len(rungs)))
    label(axes, named(ds["frequency"], "spatial frequency"), named(ds["power"], "power, median"))


def evenly(sigma: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of `rows`, rising, both ends among them, evenly in log sigma."""
    rows = rows[np.argsort(sigma[rows], kind="stable")]
    if len(rows) <= count:
        return rows
    level = np.log(sigma[rows])
    wanted = np.linspace(level[0], level[-1], count)
    return np.unique(rows[np.abs(level - wanted[:, None]).argmin(axis=1)])


def matrix(name: str, sample: int, bar: bool, axes: Axes, ds: xr.Dataset) -> None:
    """Rungs against rungs, each a cell, with their noise levels along both sides."""
    values = ds[name].isel(sample=sample).transpose("step", "step_b").values
    size = {"aspect": "equal" if values.shape[0] == values.shape[1] else "auto", "origin": "lower"}
    image = axes.imshow(values, cmap=ramp(DIVERGING), vmin=-1, vmax=1, interpolation="nearest", **size)
    axes.grid(False)
    axes.patch.set(hatch="////", edgecolor=EDGE, linewidth=0)  # what is NaN is no colour of the map
    most = TICKS if bar and ds.sizes["sample"] == 1 else FEW
    same = np.array_equal(ds["sigma"].values, ds["sigma_b"].values)  # a run with itself
    for way, coordinate in (("y", "sigma"), ("x", "sigma_b")):
        level = ds[coordinate].values
        axis = getattr(axes, f"{way}axis")
        places = np.unique(np.linspace(0, len(level) - 1, min(most, len(level))).round().astype(int))
        axis.set_major_locator(FixedLocator(places))
        axis.set_major_formatter(FuncFormatter(lambda k, _, level=level: f"{level[int(k)]:.3g}"))
        shown = ds["sigma" if same else coordinate]
        text = shown.attrs.get("long_name", str(shown.name))
        label(axes, **{way: named(shown, text.replace("noise level", "noise level σ"))})
    if bar:
        colour_bar(axes, image, [-1, 0, 1])


# what a report says in words: variable, what it is called, how it is written
NUMBERS = (
    ("round_trip_error", "round-trip error, relative", "{:.2g}"),
    ("local_defect_median", "local defect, median", "{:.2g}"),
    ("local_defect_worst", "local defect, worst", "{:.2g}"),
    ("aux_gap_top", "gap of the second state", "{:.2g}"),
    ("residual_worst", "residual, worst", "{:.2g}"),
    ("noise_std_median", "std of extracted noise", "{:.3g}"),
    ("top_std_ratio", "std of x_T over expected", "{:.3g}"),
    ("straightness", "straightness, 0: straight", "{:.2g}"),
    ("model_calls", "model calls", "{:d}"),
    ("calls_back", "model calls, back", "{:d}"),
)


def findings(axes: Axes, ds: xr.Dataset) -> None:
    """The numbers of a run as a table, each the worst of its samples to the best."""
    axes.axis("off")
    rows = [(said, _written(ds[name], form)) for name, said, form in NUMBERS if name in ds]
    look = {"transform": axes.transAxes, "fontfamily": face(), "fontsize": TEXT, "va": "top"}
    for k, (said, value) in enumerate(rows):
        axes.text(0.0, 1 - k / LINES, said, color=MUTED, **look)
        axes.text(1.0, 1 - k / LINES, value, color=INK, ha="right", **look)


def missing(axes: Axes, ds: xr.Dataset) -> None:
    """What the report has not, by name."""
    axes.axis("off")
    look = {"transform": axes.transAxes, "fontfamily": face(), "fontsize": TEXT, "va": "top"}
    for k, name in enumerate(ds.attrs["left_out"]):
        place = 0.5 * (k // LINES), 1 - k % LINES / LINES  # in two columns, where they are many
        axes.text(*place, name.replace("_", " "), color=MUTED, **look)


def _written(values: xr.DataArray, form: str) -> str:
    """A number, or the smallest and the largest of several."""
    found: Any = np.atleast_1d(values.values)
    found = found[np.isfinite(found)]
    if not found.size:
        return "none"
    ends = [form.format(v) for v in (found.min(), found.max())]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)
