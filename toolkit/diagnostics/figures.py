"""What the figures of the diagnostics are drawn with: paper, colours, the axis of noise levels, lines.

Figures are matplotlib's own, without pyplot and its global state. The colours are those of the views.
"""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from ..typefaces import face, heavy

PAPER, INK, MUTED = "#ffffff", "#222222", "#6b6b6b"
GRID, EDGE, WASH = "#ececec", "#bdbdbd", "#f4f4f4"
# the light column of the views' tokens: lightness staggered as well as hue, for eyes that mix hues up
CATEGORIES = ("#2350c8", "#cc6a0c", "#1fa58c", "#7a1b4e", "#0e7fa8", "#7c8594")
DIVERGING = (
    "#1b3a76",
    "#1f5ca2",
    "#4a8ed1",
    "#95cdf3",
    "#f7f5f2",
    "#f3c493",
    "#e07c42",
    "#b04807",
    "#7d2514",
)
SEQUENTIAL = (
    "#faf8f2",
    "#f8e8c5",
    "#f5cf95",
    "#f6a75c",
    "#e97940",
    "#ce483a",
    "#962b48",
    "#5f1344",
    "#260e30",
)
DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)), (0, (9, 2)), (0, (3, 1.2)))

WIDTH = 8.8  # inches, at 100 dpi the width of a notebook's cell
PANEL = 2.55  # inches, the height of a row of panels
HEAD = 0.52  # inches, for the title of the figure and where its data are from
FOOT = 0.34  # inches, for the legend
DOTTED = 64  # rungs up to which each is marked
DENSE = 400  # rungs from which lines would fill the panel
SLOT = 0.45  # decades that sigma = 0 gets on a log axis
TITLE, TEXT, TICK = 9.0, 7.8, 7.5  # points
LETTER = 5.1  # pixels, the mean width of a letter of what is under the titles


class Panel(NamedTuple):
    """One picture of a figure: the variables that it needs, its title, what draws it, and a note."""

    needs: tuple[str, ...]
    title: str
    draw: Callable[[Axes, xr.Dataset], None]
    note: str = ""  # what is drawn beside the variable, said under the title after its definition


def ramp(stops: Sequence[str]) -> Colormap:
    """A map of 256 colours, clear where a value is not finite."""
    return LinearSegmentedColormap.from_list("tk", stops, N=256).with_extremes(bad=(0.0, 0.0, 0.0, 0.0))


def page(ds: xr.Dataset, title: str, panels: Sequence[Panel], columns: int = 2, width: float = WIDTH,
         high: float = PANEL) -> Figure:  # fmt: skip
    """A figure of all panels, its title, where the data are from, and one legend under it all.

    ``width`` and ``high``, of a row of panels, are in inches.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    height = HEAD + FOOT + rows * high
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained", facecolor=PAPER)
    figure.get_layout_engine().set(rect=(0.004, 0.0, 0.992, 1 - HEAD / height), h_pad=0.07, w_pad=0.08)
    grid = figure.add_gridspec(rows, columns)
    drawn = [figure.add_subplot(grid[i // columns, i % columns]) for i in range(len(panels))]
    for axes, panel in zip(drawn, panels, strict=True):
        frame(axes)
        panel.draw(axes, ds)
    letters = int((width / columns - 0.75) * 100 / LETTER)
    for row in range(0, len(panels), columns):  # titles of a row at one height, however long what follows
        texts = [_definition(ds, panel, letters) for panel in panels[row : row + columns]]
        for axes, panel, text in zip(drawn[row:], panels[row:], texts, strict=False):
            heading(axes, panel.title, text, max(len(text) for text in texts))
    left = 0.12 / width
    text = {"family": face(), "ha": "left", "va": "baseline"}
    figure.text(left, 1 - 0.22 / height, title, fontsize=11, fontweight=heavy(), color=INK, **text)
    figure.text(left, 1 - 0.40 / height, provenance(ds), fontsize=TEXT, color=MUTED, **text)
    _legend(figure, drawn, int(width))
    return figure


def _definition(ds: xr.Dataset, panel: Panel, letters: int) -> list[str]:
    """What is drawn, in lines of so many letters."""
    first = ds[panel.needs[0]] if panel.needs else None
    what = first.attrs.get("long_name", str(first.name)) if first is not None else ""
    return textwrap.wrap("; ".join(text for text in (what, panel.note) if text), letters)


def frame(axes: Axes) -> None:
    """Ink on paper: two thin edges, a light grid, our typeface."""
    axes.set_facecolor(PAPER)
    axes.set_axisbelow(True)
    axes.grid(True, color=GRID, linewidth=0.7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=EDGE, linewidth=0.7)
    axes.tick_params(colors=MUTED, labelsize=TICK, length=2.5, width=0.7, labelfontfamily=face())
    axes.tick_params(which="minor", length=1.5, width=0.5, color=EDGE)
    axes.margins(x=0.03, y=0.12)


def heading(axes: Axes, title: str, text: Sequence[str], room: int) -> None:
    """What one sees, and under it how it is defined, in the room of so many lines."""
    below = "\n".join([*text, *[" "] * (room - len(text))])
    look = {"fontfamily": face(), "color": MUTED, "fontsize": TICK, "linespacing": 1.15}
    axes.annotate(below, (0, 1), (0, 5), "axes fraction", "offset points", va="bottom", **look)
    look = {"fontsize": TITLE, "fontweight": heavy(), "color": INK, "fontfamily": face()}
    axes.set_title(title, loc="left", pad=9 + 1.36 * TICK * room, **look)


def provenance(ds: xr.Dataset) -> str:
    """What the numbers are of: the kind of run, its solver, schedule, levels, path and guidance."""
    attrs = ds.attrs
    sources = [attrs[k] for k in (f"{attrs.get('kind')}_of", *attrs) if k.endswith("_of") and attrs.get(k)]
    of = sources[0] if sources else attrs.get("kind") or "run"
    words = [str(of), *(str(attrs[k]) for k in ("solver", "inverse", "schedule", "path") if attrs.get(k))]
    words += [f"cfg {attrs['cfg']:g}"] if attrs.get("cfg") not in (None, 1.0) else []
    for name in ("step", "sample"):
        labels = ds.coords.get(name)
        told = labels is not None and labels.dtype.kind in "OU"  # then each says what it is
        count = 0 if told else ds.sizes.get(name, 0)
        words += (
            [f"{count:,} {'rung' if name == 'step' else name}{'s' if count > 1 else ''}"] if count else []
        )
    return " · ".join(words)


def named(variable: xr.DataArray, name: str | None = None) -> str:
    """`long_name` (or `name`), and the units where there are any."""
    text = name or variable.attrs.get("long_name", str(variable.name))
    units = variable.attrs.get("units", "1")
    return text if units in ("1", "") else f"{text} [{units}]"


def label(axes: Axes, x: str | None = None, y: str | None = None) -> None:
    """Labels of the axes."""
    look = {"fontfamily": face(), "fontsize": TEXT, "color": INK}
    if x is not None:
        axes.set_xlabel(x, **look)
    if y is not None:
        axes.set_ylabel(y, **look)


def noise_axis(axes: Axes, sigma: xr.DataArray, way: str = "x") -> None:
    """A log axis of noise levels, on which 0 has a place of its own at the low end."""
    values = np.asarray(sigma.values, np.float64)
    positive = values[np.isfinite(values) & (values > 0)]
    text = named(sigma, f"{sigma.attrs.get('long_name', 'sigma')} σ")
    label(axes, **{way: text})
    if not positive.size:
        return
    low, high = float(positive.min()), float(positive.max())
    zero = bool((values == 0).any())
    # linear from 0 to the lowest level, which takes `SLOT` decades, and logarithmic from there
    options = {"linthresh": low, "linscale": SLOT} if zero else {}
    getattr(axes, f"set_{way}scale")("symlog" if zero else "log", **options)
    room = max(high / low, 10.0) ** 0.03
    getattr(axes, f"set_{way}lim")(-0.3 * low if zero else low / room, high * room)
    axis = getattr(axes, f"{way}axis")
    axis.set_major_locator(FixedLocator([0.0, *_ticks(low, high)] if zero else _ticks(low, high)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.set_minor_locator(NullLocator())
    if zero and way == "x":
        axes.axvspan(-low, 0.5 * low, color=WASH, linewidth=0, zorder=0)


def _ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with as many between them as it takes to have three; at most seven."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    values: list[float] = []
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        values = [m * 10.0**p for p in powers for m in factors]
        values = [v for v in values if low * 0.999 <= v <= high * 1.001]
        if len(values) >= 3:
            break
    else:  # a range too narrow for any of them
        values = [v for v in MaxNLocator(4).tick_values(low, high) if low <= v <= high]
    return values[:: -(-len(values) // 7)] if values else [low]


def series(variable: xr.DataArray, along: str = "step") -> list[tuple[str, np.ndarray]]:
    """The lines of a variable along one dimension, by name: one for each sample and channel."""
    rest = [d for d in variable.dims if d != along]
    many = [d for d in rest if variable.sizes[d] > 1]
    lines = []
    for place in np.ndindex(*(variable.sizes[d] for d in rest)):
        at = dict(zip(rest, place, strict=True))
        names = [_named(variable, d, at[d]) for d in (many or rest[-1:])]
        lines.append((" · ".join(names), np.asarray(variable.isel(at).values, np.float64)))
    return lines


def _named(variable: xr.DataArray, dim: str, place: int) -> str:
    value = variable[dim].values[place] if dim in variable.coords else place
    return str(value) if isinstance(value, str) or dim == "channel" else f"{dim} {value}"


def lines(axes: Axes, x: np.ndarray, variable: xr.DataArray, along: str = "step") -> None:
    """Each line of a variable in its own colour and dashes; one alone in ink, more than six all grey.

    Over grey ones their median lies in ink.
    """
    found = series(variable, along)
    x = np.asarray(x, np.float64)
    marks = {"marker": "o", "markersize": 2.6} if len(x) <= DOTTED else {}
    if len(found) <= len(CATEGORIES):
        for (name, y), look in zip(found, looks(len(found)), strict=True):
            _line(axes, x, y, name if len(found) > 1 else "_", **look, **marks)
        return
    for k, (_, y) in enumerate(found):
        name = f"each of {len(found)}" if k == 0 else "_"
        _line(axes, x, y, name, color=EDGE, linewidth=0.8, zorder=2, **(marks | {"markersize": 1.6}))
    together = np.stack([y for _, y in found])
    some = np.isfinite(together).any(axis=0)
    middle = np.full(len(x), np.nan)
    middle[some] = np.nanmedian(np.where(np.isfinite(together), together, np.nan)[:, some], axis=0)
    _line(axes, x, middle, "their median", color=INK, linewidth=2.0, zorder=4, **marks)


def looks(count: int) -> list[dict[str, Any]]:
    """How `count` lines are told apart: by colour and dashes; ink for one alone, grey for more than six."""
    if count == 1:
        return [{"color": INK, "linestyle": "-", "linewidth": 1.6, "zorder": 3}]
    if count > len(CATEGORIES):
        return [{"color": EDGE, "linestyle": "-", "linewidth": 0.8, "zorder": 2}] * count
    both = zip(CATEGORIES[:count], DASHES, strict=False)
    return [{"color": c, "linestyle": d, "linewidth": 1.5, "zorder": 3} for c, d in both]


def beside(axes: Axes, text: str, x: float, y: float, right: bool) -> None:
    """A word over a point, from there to the right or to the left."""
    look = {"fontsize": TICK, "color": MUTED, "fontfamily": face(), "va": "bottom", "zorder": 6}
    look["bbox"] = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 0.5}  # lines may cross it
    place = {"xytext": (0, 6), "textcoords": "offset points", "ha": "left" if right else "right"}
    axes.annotate(text, (x, y), **place, **look)


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, name: str, **look: Any) -> None:
    """Points that are there, joined: rows that were not kept leave no gap. Very many are a cloud of dots."""
    there = np.isfinite(x) & np.isfinite(y)
    if there.sum() <= DENSE:
        axes.plot(x[there], y[there], label=name, markeredgewidth=0, **look)
        return
    dots = {"linestyle": "none", "marker": "o", "markersize": 1.3, "markeredgewidth": 0, "alpha": 0.4}
    axes.plot(x[there], y[there], label="_dots", color=look["color"], zorder=look["zorder"], **dots)
    axes.plot([], [], label=name, **look)  # for the legend: single dots are too small to tell their colour


def target(axes: Axes, value: float) -> None:
    """A level that is expected, dotted; what it is stands under the title."""
    axes.axhline(value, color=MUTED, linewidth=1.1, linestyle=(0, (1.2, 1.6)), zorder=1, label="_target")


def value_axis(axes: Axes, span: tuple[float, float] | None = None, logarithmic: bool = False,
               room: float = 0.08) -> None:  # fmt: skip
    """Values upwards, without a factor over the axis; of a range of at least `span`, and some `room`.

    Rounding alone then looks like what it is, a flat line.
    """
    if logarithmic:
        axes.set_yscale("log", nonpositive="mask")
    low, high = axes.get_ylim()
    if span is not None and logarithmic:
        low, high = min(low, span[0]), max(high, span[1])
    elif span is not None:
        ends = [v for v in (*axes.dataLim.intervaly, *span) if np.isfinite(v)]  # infinite where nothing is
        low, high = min(ends), max(ends)
        low, high = low - room * (high - low or 1.0), high + room * (high - low or 1.0)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    if logarithmic:
        axes.yaxis.set_major_locator(FixedLocator(_ticks(low, high)))
        axes.yaxis.set_minor_locator(NullLocator())


def short(value: float) -> str:
    """A number on an axis: as it is, or from 0.001 down 1e-4."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.6g}".replace("-", "\u2212")
    mantissa, power = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(power)}".replace("-", "\u2212")


def colour_bar(axes: Axes, what: ScalarMappable, ticks: Sequence[float], text: str | None = None) -> None:
    """What the colours stand for, at the right of the axes."""
    bar = axes.figure.colorbar(what, ax=axes, fraction=0.046, pad=0.02)
    bar.set_ticks(ticks, labels=[short(float(f"{value:.3g}")) for value in ticks], minor=False)
    bar.minorticks_off()
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=MUTED, labelsize=TICK, length=0, labelfontfamily=face())
    if text is not None:
        bar.set_label(text, fontfamily=face(), fontsize=TEXT, color=INK)


def nothing(axes: Axes) -> None:
    """What a panel says that has nothing to show."""
    look = {"fontfamily": face(), "fontsize": TEXT, "color": MUTED, "ha": "center", "va": "center"}
    look |= {"zorder": 6, "bbox": {"facecolor": PAPER, "edgecolor": "none", "pad": 2}}
    axes.text(0.5, 0.5, "every value is NaN", transform=axes.transAxes, **look)


def _legend(figure: Figure, drawn: Sequence[Axes], columns: int) -> None:
    """One legend for all panels, under them: what is called the same looks the same."""
    named: dict[str, Any] = {}
    for axes in drawn:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(name, handle)
    if not named:
        return
    look = {
        "frameon": False,
        "handlelength": 2.6,
        "columnspacing": 1.6,
        "prop": {"family": face(), "size": TEXT},
    }
    figure.legend(
        named.values(), named.keys(), loc="outside lower left", ncols=columns, labelcolor=INK, **look
    )
