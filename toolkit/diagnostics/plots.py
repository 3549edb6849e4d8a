"""Figures of what the diagnostics find: their Dataset in, a matplotlib Figure out."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ..errors import bad, unknown
from .compared import comparison
from .correlation import cosine_matrix, rung_correlation
from .figures import WIDTH, Panel, page
from .geometry import principal_components, thinning, trajectory
from .noise import LEVEL, normality
from .overview import report, together
from .panels import findings, matrix, missing, over_noise, plane, spectra
from .spectrum import power_spectrum
from .statistics import moments

MATRICES = 6  # samples of which a matrix is drawn
CELLS = 512  # rungs along each side of a matrix that is found for its picture

MOMENTS = [
    over_noise("mean", "Mean of the states", "mean", (0.0, "noise alone")),
    over_noise("std_ratio", "Spread against the schedule's", "std over expected", (1.0, "as expected")),
    over_noise("skewness", "Skewness: lopsided or not", "skewness", (0.0, "normal")),
    over_noise("kurtosis", "Kurtosis: heavy tails or not", "excess kurtosis", (0.0, "normal")),
]
NORMALITY = [
    over_noise("shapiro_p", "Is the noise normal?", "p of Shapiro-Wilk", (LEVEL, ""), span=(0.0, 1.0)),
    over_noise("mean", "Mean of the states", "mean", (0.0, "noise alone")),
    over_noise("std", "Spread of the states", "standard deviation", scale="log", against="expected_std"),
]
WHITE = "dotted: 1, white noise"
SPECTRUM = [
    Panel(("power",), "Which frequencies it is made of", partial(spectra, True), WHITE),
    over_noise("flatness", "How white it is", "flatness", span=(0.8, 1.0)),
]
TRAJECTORY = [
    Panel(("score", "explained"), "The way, in its own plane", plane, "the scales of both axes differ"),
    over_noise(
        "chord_deviation", "How far it leaves the straight line", "distance over chord", span=(0, 1e-3)
    ),
    over_noise("step_cosine", "How much each step turns", "cosine", (1.0, "straight on"), span=(0.999, 1.0)),
    over_noise("curvature", "How much it bends", "curvature", scale="log", span=(np.inf, 1e-5)),
]
IMAGE = over_noise("image_correlation", "What it keeps of the image", "correlation", (0.0, "drawn noise"))
TEXTURE = over_noise("texture_ratio", "Plain areas against textured ones", "ratio of std", (1.0, "alike"))
REPORT = [
    NORMALITY[0], MOMENTS[0], MOMENTS[1],
    IMAGE,
    SPECTRUM[0]._replace(draw=partial(spectra, False), note=f"pale to dark: low to high σ; {WHITE}"),
    SPECTRUM[1],
    over_noise("l_pair", "Do pixels know their neighbours?", "L_pair", scale="log"),
    TEXTURE,
    Panel(("rung_correlation",), "Rungs against each other", partial(matrix, "rung_correlation", 0, False),
          "brown 1, white 0, blue \u22121"),
    *TRAJECTORY,
]  # fmt: skip
COMPARISON = [
    MOMENTS[1],
    over_noise("shapiro_rejected", "How many are not normal", "share of samples",
               (LEVEL, "good noise"), span=(0.0, 1.0)),
    over_noise("neighbour_correlation", "Do pixels know their neighbours?", "correlation", (0.0, "nothing")),
    SPECTRUM[1],
    IMAGE,
    TEXTURE,
]  # fmt: skip


def plot_moments(ds: xr.Dataset) -> Figure:
    """Mean, spread, skewness and kurtosis of the states over the noise level, as a figure.

    Parameters
    ----------
    ds : Dataset
        A run or ladder; or the Dataset of `moments` or of `report`.

    Returns
    -------
    Figure
        matplotlib's, 880 pixels wide: four panels over sigma, on a log axis on which 0 has a place of its
        own. A line a sample and channel; of more than six, all grey and their median.

    Raises
    ------
    TypeError, ValueError
        For what is no Dataset, and for one that is no run and has no moments.

    Examples
    --------
    >>> import toolkit as tk
    >>> tk.diagnostics.plot_moments(tk.testing.ladder_dataset())
    <Figure size 880x596 with 4 Axes>
    """
    ds = found_in(ds, MOMENTS, [moments], "tk.diagnostics.plot_moments(tk.diagnostics.moments(run))")
    return page(ds, "Moments of the states over the noise level", there(MOMENTS, ds))


def plot_normality(ds: xr.Dataset) -> Figure:
    """Shapiro-Wilk's p of the noise with the line at 0.05, mean and std of the states, as a figure.

    Parameters
    ----------
    ds : Dataset
        A run or ladder with a row at sigma 0; or the Dataset of `report`, or of `normality`, which has the
        first panel alone.

    Returns
    -------
    Figure
        matplotlib's, 880 pixels wide: three panels over sigma, as in Iterative-Mixer's
        LatentBatchStatisticsPlot, which tests the states where this tests their noise; the std on a log axis
        with what the schedule expects.

    Raises
    ------
    TypeError, ValueError
        For what is no Dataset, for one that is no run and has no `shapiro_p`, and for a run of which
        `normality` finds no noise.

    Examples
    --------
    >>> import toolkit as tk
    >>> tk.diagnostics.plot_normality(tk.testing.ladder_dataset())
    <Figure size 880x346 with 3 Axes>
    """
    line = "tk.diagnostics.plot_normality(tk.diagnostics.normality(run))"
    ds = found_in(ds, NORMALITY, [normality, partial(moments, per="sample")], line)
    return page(ds, "Is it noise? Shape, mean and spread", there(NORMALITY, ds), 3, high=2.6)


def plot_spectrum(ds: xr.Dataset) -> Figure:
    """Power of the noise over spatial frequency at a few levels, and its flatness, as a figure.

    Parameters
    ----------
    ds : Dataset
        A run or ladder with a row at sigma 0; or the Dataset of `power_spectrum` or of `report`.

    Returns
    -------
    Figure
        matplotlib's, 880 pixels wide: the power at up to six rungs, evenly in log sigma, the median of
        samples and channels, on a log axis; and the flatness over sigma.

    Raises
    ------
    TypeError, ValueError
        For what is no Dataset, for one that is no run and has no `power`, and for a run of which
        `power_spectrum` finds no noise.

    Examples
    --------
    >>> import toolkit as tk
    >>> tk.diagnostics.plot_spectrum(tk.testing.ladder_dataset())
    <Figure size 880x376 with 3 Axes>
    """
    line = "tk.diagnostics.plot_spectrum(tk.diagnostics.power_spectrum(run))"
    ds = found_in(ds, SPECTRUM, [power_spectrum], line)
    return page(ds, "The spectrum of the noise", there(SPECTRUM, ds), high=2.9)


def plot_comparison(ds: xr.Dataset | Mapping[str, xr.Dataset]) -> Figure:
    """The noise of several runs side by side, over the noise level, as a figure.

    Parameters
    ----------
    ds : Dataset, or mapping of str to Dataset
        Of `comparison`; or runs by name, which are then compared; or a single run.

    Returns
    -------
    Figure
        matplotlib's, 880 pixels wide: spread, normality, correlation with neighbours, flatness of the
        spectrum, correlation with the image, and plain areas against textured ones. A line a run.

    Raises
    ------
    TypeError, ValueError
        For what is none of these, and as `comparison`.

    Examples
    --------
    >>> import toolkit as tk
    >>> runs = {"ladder": tk.testing.ladder_dataset(), "run": tk.testing.unsample_dataset()}
    >>> tk.diagnostics.plot_comparison(runs)
    <Figure size 880x... with 6 Axes>
    """
    line = 'tk.diagnostics.plot_comparison({"noise": tk.testing.ladder_dataset()})'
    if isinstance(ds, Mapping) and not isinstance(ds, xr.Dataset):
        ds = comparison(ds)
    ds = found_in(ds, COMPARISON, [lambda run: comparison({"run": run})], line)
    return page(ds, "Good noise and bad, over the noise level", there(COMPARISON, ds), 3, high=2.75)


def plot_cosine(ds: xr.Dataset, name: str = "cosine") -> Figure:
    """How much each rung is like each other one: a matrix as a picture, a panel a sample.

    Parameters
    ----------
    ds : Dataset
        Of `cosine_matrix`, `rung_correlation` or `report`; or a run or ladder, whose cosines are then found,
        of each k-th rung where there are more than 512.
    name : {"cosine", "rung_correlation"}
        Which matrix of the Dataset.

    Returns
    -------
    Figure
        matplotlib's: a cell a pair of rungs, blue for -1, paper for 0, brown for 1, with the noise levels of
        both runs along the sides; of the first six samples.

    Raises
    ------
    TypeError, ValueError
        For what is no Dataset, and for one that is no run and has no such matrix.

    Examples
    --------
    >>> import toolkit as tk
    >>> tk.diagnostics.plot_cosine(tk.testing.ladder_dataset())
    <Figure size 520x... with 2 Axes>
    """
    line = "tk.diagnostics.plot_cosine(tk.diagnostics.cosine_matrix(run))"
    finders = {"cosine": cosine_matrix, "rung_correlation": rung_correlation}
    if name not in finders:
        raise unknown("name", name, finders, 'tk.diagnostics.plot_cosine(run, "{}")')
    every = -(-ds.sizes.get("step", 1) // CELLS) if isinstance(ds, xr.Dataset) and "latent" in ds else 1
    ds = found_in(ds, [Panel((name,), "", matrix)], [partial(finders[name], every=every)], line)
    count = min(ds.sizes["sample"], MATRICES)
    panels = [Panel((name,), _of_sample(ds, k), partial(matrix, name, k, True)) for k in range(count)]
    title = {
        "cosine": "How alike the states of two rungs are",
        "rung_correlation": "How alike two noises are",
    }
    columns = min(count, 3)
    return page(
        ds, title[name], panels, columns, (5.2, 8.0, WIDTH)[columns - 1], (4.6, 3.9, 2.75)[columns - 1]
    )


def _of_sample(ds: xr.Dataset, k: int) -> str:
    name = ds["sample"].values[k] if "sample" in ds.coords else k
    if isinstance(name, str):
        return name.capitalize()
    return f"Sample {k}" if ds.sizes["sample"] > 1 else "Every rung with every other"


def plot_trajectory(ds: xr.Dataset) -> Figure:
    """The shape of a run's way: in its own plane, off its chord, its turns and its curvature, as a figure.

    Parameters
    ----------
    ds : Dataset
        A run or ladder; or the Dataset of `report`, or of `trajectory`, which lacks the first panel.

    Returns
    -------
    Figure
        matplotlib's, 880 pixels wide: the first two principal components against each other (the scales of
        both differ), and over sigma the distance from the chord, the cosine of successive steps and the
        curvature, on a log axis.

    Raises
    ------
    TypeError, ValueError
        For what is no Dataset, and for one that is no run and has no trajectory.

    Examples
    --------
    >>> import toolkit as tk
    >>> tk.diagnostics.plot_trajectory(tk.testing.unsample_dataset())
    <Figure size 880x596 with 4 Axes>
    """
    line = "tk.diagnostics.plot_trajectory(tk.diagnostics.trajectory(run))"
    every = thinning(ds.sizes.get("step", 1)) if isinstance(ds, xr.Dataset) and "latent" in ds else 1
    finders = [trajectory, partial(principal_components, every=every)]
    ds = found_in(ds, TRAJECTORY[1:], finders, line)
    return page(ds, "The way between image and noise", there(TRAJECTORY, ds))


def plot_report(ds: xr.Dataset) -> Figure:
    """All that is known of a run on one page, as a figure.

    Parameters
    ----------
    ds : Dataset
        Of `report`; or a run or ladder, of which the report is then found.

    Returns
    -------
    Figure
        matplotlib's, 880 pixels wide: a panel for each of normality, moments, spectrum, correlations, texture
        and geometry that the report has, and the numbers of the run as a table.

    Raises
    ------
    TypeError, ValueError
        For what is no Dataset, and for one that is no run and no report.

    Examples
    --------
    >>> import toolkit as tk
    >>> tk.diagnostics.plot_report(tk.testing.ladder_dataset())
    <Figure size 880x1461 with 15 Axes>
    """
    line = "tk.diagnostics.plot_report(tk.diagnostics.report(run))"
    ds = found_in(ds, [MOMENTS[0]], [report], line)
    panels = [*there(REPORT, ds), Panel((), "In numbers", findings, "smallest to largest of the samples")]
    if ds.attrs.get("left_out"):
        panels.append(Panel((), "Not to be had of this run", missing, "why: attrs['left_out'] of the report"))
    return page(ds, "A run on one page", panels, 3, high=2.75)


def there(panels: Sequence[Panel], ds: xr.Dataset) -> list[Panel]:
    """The panels whose variables the Dataset has."""
    return [panel for panel in panels if set(panel.needs) <= set(ds.data_vars)]


def found_in(ds: Any, panels: Sequence[Panel], finders: Sequence[Callable], line: str) -> xr.Dataset:
    """What the panels are drawn from: found in a run, or there already, at least for the first of them."""
    if not isinstance(ds, xr.Dataset):
        raise bad("ds", type(ds).__name__, "a Dataset of a run, or of its diagnostics", line, TypeError)
    if "latent" in ds:  # a run has a mean and a std of its own, but not these
        parts = [find(ds) for find in finders]
        return together(parts, parts[0].attrs)
    missing = sorted({*panels[0].needs, "sigma"} - set(ds.variables))
    if missing:
        raise bad("ds", list(ds.data_vars), f"a run, or a Dataset with {', '.join(missing)}", line)
    return ds
