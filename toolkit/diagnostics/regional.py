"""Regions of a run as a figure: who says how much where, how far they disagree, what the seams are like."""

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..errors import bad
from ..typefaces import face
from .common import BLOCK
from .figures import (
    CATEGORIES,
    DASHES,
    INK,
    PAPER,
    TEXT,
    Panel,
    label,
    noise_axis,
    nothing,
    page,
    target,
    value_axis,
)

LINE = "tk.diagnostics.plot_regions(tk.regional(model, regions))"
BASE, REST = CATEGORIES[-1], CATEGORIES[:-1]  # grey for what the masks leave, a colour a region
ELSEWHERE = "dotted: 1, as elsewhere"
PALE = 0.28  # how much of its grey the base has on the map
TOLD = 0.02  # mean share from which a region is named on the map: less of it cannot be seen there


def plot_regions(ds: xr.Dataset, sample: int | None = None, sigma: float | None = None) -> Figure:
    """Regions as the sampler saw them: their shares of the canvas, conflict and seams, as a figure.

    Parameters
    ----------
    ds : Dataset
        A run with regions, of ``tk.regional``, or of ``tk.sample`` or ``tk.unsample`` with `regions=`.
    sample : int, optional
        By its place: all panels are of this one. None draws the median of all samples, and the masks of the
        first where they differ by sample.
    sigma : float, optional
        The level whose shares are shown, the nearest of the run's. None is the lowest one at which the model
        was asked.

    Returns
    -------
    Figure
        matplotlib's, 880 pixels wide: the shares as colours, mixed where regions mix; the same along the row,
        or the column, in which they change most; and over sigma `conflict` and `seam_gradient`. Where shares
        change from level to level two panels more: the map at the highest level, and the mean shares over
        sigma. Grey is the base.

    Raises
    ------
    TypeError, ValueError
        For what is no Dataset, for one without regions, for a sample that is not there, and for a `sigma`
        that is no number.

    Examples
    --------
    >>> import toolkit as tk
    >>> left = tk.Region(tk.box(0.0, 0.0, 0.5, 1.0, size=(8, 8)), prompt=3, feather=1, name="left")
    >>> run = tk.regional(tk.load(), [left], cfg=2.0, steps=3, progress=False)
    >>> tk.diagnostics.plot_regions(run)
    <Figure size 880x596 with 4 Axes>
    """
    found, level = _found(ds, sample, sigma)
    title, who = "Regions, as the sampler sees them", "Who says how much, at σ"
    low = Panel(("weight",), f"{who} {level:.3g}", partial(_map, "weight", True))
    cut = Panel(("weight",), "The same along the dashed line", _cut)
    conflict = Panel(("conflict",), "How far they disagree", _conflict)
    rest = [conflict, Panel(("seam_gradient",), "What the seams are like", _seams, ELSEWHERE)]
    if "share" not in found:
        return page(found, title, [low, cut, *rest])
    top = Panel(("first",), f"{who} {found.attrs['top']:.3g}", partial(_map, "first", False))
    shares = Panel(("share",), "Who has how much of the canvas", _shares)
    return page(found, title, [top, low, cut, shares, *rest], 3)


def _found(ds: Any, sample: int | None, sigma: float | None) -> tuple[xr.Dataset, float]:
    """What the panels are drawn from, and the level of the map."""
    if not isinstance(ds, xr.Dataset):
        raise bad("ds", type(ds).__name__, "a Dataset of a run with regions", LINE, TypeError)
    needed = ("weight", "conflict", "seam_gradient", "sigma")
    missing = [name for name in needed if name not in ds.variables]
    if missing:
        wanted = f"a run of tk.regional, or with regions: {', '.join(missing)} is not there"
        raise bad("ds", list(ds.data_vars), wanted, LINE)
    count, whole = ds.sizes["sample"], isinstance(sample, (int, np.integer)) and not isinstance(sample, bool)
    if sample is not None and not (whole and 0 <= sample < count):
        line = LINE.replace("))", "), sample=0)")
        raise bad("sample", sample, f"a whole number from 0 to {count - 1}, or None for all", line)
    weight = ds["weight"].isel(sample=sample or 0) if "sample" in ds["weight"].dims else ds["weight"]
    levels = np.asarray(ds["sigma"].values, np.float64)
    asked = np.flatnonzero(np.isfinite(ds["conflict"].values).any(axis=tuple(range(1, ds["conflict"].ndim))))
    asked = asked if asked.size else np.arange(len(levels))  # a run that stopped before its first call
    order = asked[np.argsort(levels[asked], kind="stable")]
    at = order[0] if sigma is None else order[np.abs(levels[order] - _number(sigma)).argmin()]
    told = {name: _of(ds[name], sample).isel(step=np.sort(order)) for name in ("conflict", "seam_gradient")}
    told["weight"] = weight.isel(step=int(at), drop=True).compute()
    share, changes = _over_levels(weight, np.sort(order))
    if changes:
        told["first"] = weight.isel(step=int(order[-1]), drop=True).compute()
        told["first"].attrs = dict(weight.attrs)
        told["share"] = (
            told["conflict"]
            .copy(data=share)
            .assign_attrs(long_name="mean share of each region, over the canvas", units="1")
        )
    return xr.Dataset(told, attrs={**ds.attrs, "top": float(levels[order[-1]])}), float(levels[at])


def _number(sigma: Any) -> float:
    if isinstance(sigma, bool) or not isinstance(sigma, (int, float, np.number)) or not np.isfinite(sigma):
        raise bad("sigma", sigma, "a noise level", LINE.replace("))", "), sigma=1.0)"), TypeError)
    return float(sigma)


def _of(variable: xr.DataArray, sample: int | None) -> xr.DataArray:
    """Of one sample, or the median of all; its definition says which. NaN where there are none."""
    variable = variable.compute()
    attrs, count = dict(variable.attrs), variable.sizes["sample"]
    if sample is not None or count == 1:
        said = f"; sample {sample}" if count > 1 else ""
        one = variable.isel(sample=sample or 0, drop=True)
    else:
        said, one = f"; median of {count} samples", variable.isel(sample=0, drop=True).copy()
        values = variable.transpose(*one.dims, "sample").values
        some = np.isfinite(values).any(axis=-1)
        one.values[some] = np.nanmedian(values[some], axis=-1)
    return one.assign_attrs(attrs | {"long_name": attrs["long_name"] + said})


def _over_levels(weight: xr.DataArray, rows: np.ndarray) -> tuple[np.ndarray, bool]:
    """Mean share of each region at these rows, (step, region), and whether any pixel's changes; by blocks."""
    size = max(BLOCK // max(weight[:1].size, 1), 1)
    parts, first, changes = [], None, False
    for at in range(0, len(rows), size):
        values = weight.isel(step=rows[at : at + size]).transpose("step", "region", "y", "x").values
        first = values[0] if first is None else first
        changes |= bool((np.abs(values - first) > 1e-12).any())
        parts.append(values.mean(axis=(2, 3)))
    return np.concatenate(parts), changes


# --- panels


def _looks(names: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each region with its colour and dashes; base first, grey."""
    yield str(names[0]), {"color": BASE, "linestyle": DASHES[0], "linewidth": 1.5}
    colours = itertools.cycle(REST)
    for k, (name, colour) in enumerate(zip(names[1:], colours, strict=False)):
        # from the sixth on a colour comes again, with other dashes
        yield str(name), {"color": colour, "linestyle": DASHES[k % len(DASHES)], "linewidth": 1.5}


def _mixed(weight: np.ndarray, names: Any) -> np.ndarray:
    """Colours of the regions, mixed by their shares: (y, x, rgb). The base is pale, as paper that is left."""
    colours = np.array([to_rgb(look["color"]) for _, look in _looks(names)])
    colours[0] = PALE * colours[0] + (1.0 - PALE) * np.array(to_rgb(PAPER))
    return np.clip(np.einsum("ryx,rc->yxc", weight, colours), 0.0, 1.0)


def _map(name: str, cut: bool, axes: Axes, ds: xr.Dataset) -> None:
    """The shares as colours, each region named where most of its weight lies."""
    values, names = ds[name].transpose("region", "y", "x").values, ds["region"].values
    axes.imshow(_mixed(values, names), interpolation="nearest")
    axes.grid(False)
    axes.set_anchor("NW")  # under its title, whatever its height
    height, width = values.shape[1:]
    y, x = np.mgrid[:height, :width]
    look = {"fontsize": TEXT, "fontfamily": face(), "va": "center", "color": INK, "clip_on": True}
    look["bbox"] = {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.85, "boxstyle": "round,pad=0.3"}
    for share, said in zip(values[1:], names[1:], strict=True):
        if share.mean() >= TOLD:
            most = share**4 / (share**4).sum()
            at = float((most * x).sum()) / max(width - 1, 1)
            side = "left" if at < 0.12 else "right" if at > 0.88 else "center"  # or it leaves the picture
            axes.text(at * (width - 1), (most * y).sum(), said, ha=side, **look)
    if cut:
        way, at = _where(values)
        draw = axes.axhline if way == "x" else axes.axvline
        draw(at, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label="_cut", zorder=1.5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, integer=True))
    label(axes, "x [latent pixels]", "y [latent pixels]")


def _where(weight: np.ndarray) -> tuple[str, int]:
    """Along which axis, and in which row or column, the shares change most; the middle one of equals."""
    found = {}
    for way, axis in (("x", 2), ("y", 1)):
        change = np.abs(np.diff(weight, axis=axis)).sum(axis=(0, axis))
        best = np.flatnonzero(change >= change.max() - 1e-9)
        found[way] = (float(change.max()), int(best[len(best) // 2]))
    way = "y" if found["y"][0] > found["x"][0] + 1e-9 else "x"
    return way, found[way][1]


def _cut(axes: Axes, ds: xr.Dataset) -> None:
    """Shares along one row or column."""
    values = ds["weight"].transpose("region", "y", "x").values
    way, at = _where(values)
    lines = values[:, at] if way == "x" else values[:, :, at]
    for line, (said, look) in zip(lines, _looks(ds["region"].values), strict=True):
        axes.plot(
            np.arange(len(line)), line, marker="o", markersize=2.6, markeredgewidth=0, label=said, **look
        )
    axes.set_xlim(-0.5, lines.shape[1] - 0.5)  # as the map beside it
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    value_axis(axes, (0.0, 1.0))
    label(axes, f"{way} [latent pixels], at {'y' if way == 'x' else 'x'} = {at}", "share")


def _over(name: str, y: str, axes: Axes, ds: xr.Dataset) -> None:
    """A line a region over the noise level."""
    variable, sigma = ds[name].transpose("step", "region").values, ds["sigma"].values
    for values, (said, look) in zip(variable.T, _looks(ds["region"].values), strict=True):
        there = np.isfinite(values)
        if there.any():
            marks = {"marker": "o", "markersize": 2.6, "markeredgewidth": 0}
            axes.plot(sigma[there], values[there], label=said, **look, **marks)
    noise_axis(axes, ds["sigma"])
    if not np.isfinite(variable).any():
        nothing(axes)
    value_axis(axes, (0.0, 0.0 if name == "conflict" else 1.0))
    label(axes, y=y)


_conflict = partial(_over, "conflict", "rms in the latent")
_shares = partial(_over, "share", "mean share")


def _seams(axes: Axes, ds: xr.Dataset) -> None:
    """How much steeper the picture is where regions meet."""
    values, sigma = ds["seam_gradient"].values, ds["sigma"].values
    target(axes, 1.0)
    there = np.isfinite(values)
    axes.plot(sigma[there], values[there], "-o", color=INK, linewidth=1.6, markersize=2.6, markeredgewidth=0)
    noise_axis(axes, ds["sigma"])
    if not there.any():
        nothing(axes)
    value_axis(axes, (0.8, 1.2))
    label(axes, y="ratio of gradients")
