"""Figures of the diagnostics: their lines are the Dataset's, their axes say what they are, they render."""

import io
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image

import toolkit as tk
from toolkit.dataset import label, latent_coordinates, rung_coordinates
from toolkit.diagnostics import figures, panels, plots
from toolkit.views.paper import tokens

D = tk.diagnostics
PLOTS = [D.plot_moments, D.plot_normality, D.plot_spectrum, D.plot_cosine, D.plot_trajectory, D.plot_report]
OVER_NOISE = {
    D.plot_moments: ["mean", "std_ratio", "skewness", "kurtosis"],
    D.plot_normality: ["shapiro_p", "mean", "std"],
    D.plot_trajectory: ["chord_deviation", "step_cosine", "curvature"],
}
FINDS = {
    D.plot_moments: lambda ds: D.moments(ds),
    D.plot_normality: lambda ds: xr.merge(
        [D.normality(ds), D.moments(ds, per="sample")], combine_attrs="override", compat="override"
    ),
    D.plot_spectrum: lambda ds: D.power_spectrum(ds),
    D.plot_cosine: lambda ds: D.cosine_matrix(ds),
    D.plot_trajectory: lambda ds: xr.merge(
        [D.trajectory(ds), D.principal_components(ds)], combine_attrs="override", compat="override"
    ),
    D.plot_report: lambda ds: D.report(ds),
}


def flow_run(samples=2, channels=16):
    """A bent way on FLOW, its levels falling."""
    rng, sigma = np.random.default_rng(0), np.linspace(1, 0, 9)
    clean, noise, bend = rng.standard_normal((3, samples, channels, 8, 8))
    rows = np.stack([tk.FLOW.mix(clean, noise, s) + np.sin(np.pi * s) * bend for s in sigma])
    coordinates = rung_coordinates(sigma, tk.Levels.flow(), tk.FLOW) | latent_coordinates(clean.shape)
    return label({"latent": rows}, coordinates, {"kind": "sample", "path": "FLOW", "direction": "down"})


def bent(samples=1):
    ds = tk.testing.unsample_dataset(samples=samples, size=8)
    side = np.random.default_rng(1).standard_normal(ds.latent.shape[1:])
    return ds.assign(latent=ds.latent + np.sqrt(ds.sigma) * xr.DataArray(side, dims=ds.latent.dims[1:]))


def drawn(figure):
    """The panels by the label of their value axis, without colour bars."""
    return {axes.get_ylabel(): axes for axes in figure.axes if axes.get_title(loc="left")}


def data_lines(axes):
    """Lines of data: not of what is expected, nor the ends of a way."""
    return [
        line for line in axes.get_lines() if not line.get_label().startswith(("_target", "_end", "_expected"))
    ]


def shown_ticks(axis):
    """Labels of the ticks that lie within the axis; others are there, and are not drawn."""
    low, high = sorted(axis.get_view_interval())
    return [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]


def png(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))


# --- what is drawn ----


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("plot", OVER_NOISE)
def test_lines_are_the_datasets(plot, samples):
    ds = bent(samples)
    found, figure = FINDS[plot](ds), plot(ds)
    over_noise = [axes for axes in drawn(figure).values() if axes.get_xlabel() == "noise level σ"]
    assert len(over_noise) == len(OVER_NOISE[plot])
    for name, axes in zip(OVER_NOISE[plot], over_noise, strict=True):
        variable = found[name].transpose("step", ...)
        columns = variable.values.reshape(variable.sizes["step"], -1).T
        lines = data_lines(axes)
        grey = len(columns) > len(figures.CATEGORIES)
        assert len(lines) == len(columns) + grey, name
        if grey:
            columns = [*columns, np.median(columns, axis=0)]
        for line, values in zip(lines, columns, strict=True):
            there = np.isfinite(values)
            np.testing.assert_array_equal(line.get_xdata(), ds.sigma.values[there])
            np.testing.assert_array_equal(line.get_ydata(), values[there])
        assert variable.attrs["long_name"].split()[0] in axes.texts[0].get_text()


def test_the_plane_is_that_of_the_scores():
    ds = bent(3)
    found = D.principal_components(ds)
    axes = next(a for a in D.plot_trajectory(ds).axes if "plane" in a.get_title(loc="left"))
    lines = data_lines(axes)
    assert [line.get_label() for line in lines] == ["sample 0", "sample 1", "sample 2"]
    for k, line in enumerate(lines):
        np.testing.assert_array_equal(line.get_xydata(), found.score[:, k, :2])
    alone = D.plot_trajectory(bent(1)).axes[0]
    share = 100 * D.principal_components(bent(1)).explained[0, 0].item()
    assert alone.get_xlabel() == f"component 0 ({share:.3g} % of the variance)"
    ends = [line for line in alone.get_lines() if line.get_label() == "_end"]
    score = D.principal_components(bent(1)).score[:, 0, :2]
    np.testing.assert_array_equal([line.get_xydata()[0] for line in ends], [score[0], score[-1]])


def test_spectra_are_medians_at_a_few_levels():
    ds = bent(2)
    found = D.power_spectrum(ds)
    axes = D.plot_spectrum(ds).axes[0]
    lines = data_lines(axes)
    assert len(lines) == panels.SPECTRA
    medians = found.power.median(("sample", "channel")).transpose("step", "frequency").values
    levels = [float(line.get_label().removeprefix("_σ ")) for line in lines]
    assert levels == sorted(levels) and levels[-1] == pytest.approx(14.6, abs=0.05)
    for level, line in zip(levels, lines, strict=True):
        rung = int(np.abs(ds.sigma.values - level).argmin())
        np.testing.assert_array_equal(line.get_xdata(), found.frequency)
        np.testing.assert_array_equal(line.get_ydata(), medians[rung])
    assert axes.get_xlabel() == "spatial frequency [cycles per latent pixel]"
    # lightness falls with the level, for eyes that tell no hues apart
    light = [matplotlib.colors.to_rgb(line.get_color()) @ np.array([0.3, 0.6, 0.1]) for line in lines]
    assert (np.diff(light) < -0.02).all()


def test_a_matrix_is_drawn_as_it_is_with_both_levels():
    first, second = bent(3), tk.testing.ladder_dataset(steps=7, size=8, samples=3)
    found = D.cosine_matrix(first, second)
    shown = [axes for axes in D.plot_cosine(found).axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in shown] == ["Sample 0", "Sample 1", "Sample 2"]
    for k, axes in enumerate(shown):
        np.testing.assert_array_equal(axes.get_images()[0].get_array(), found.cosine[..., k])
        assert axes.get_images()[0].get_clim() == (-1, 1)
        assert axes.get_ylabel() == "noise level σ"
        assert axes.get_xlabel() == "noise level σ of the second run"
    axes.figure.draw_without_rendering()
    for axis, level in ((axes.yaxis, found.sigma.values), (axes.xaxis, found.sigma_b.values)):
        for place, text in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True):
            assert text.get_text() == f"{level[int(place)]:.3g}"
    both = D.plot_cosine(bent(1), "rung_correlation")
    want = D.rung_correlation(bent(1)).rung_correlation[..., 0]
    np.testing.assert_array_equal(np.ma.filled(both.axes[0].get_images()[0].get_array(), np.nan), want)
    assert both.axes[0].get_xlabel() == both.axes[0].get_ylabel() == "noise level σ"


def test_many_rungs_are_thinned_for_the_picture(monkeypatch):
    monkeypatch.setattr(plots, "CELLS", 8)
    image = D.plot_cosine(bent(1)).axes[0].get_images()[0]
    np.testing.assert_array_equal(image.get_array(), D.cosine_matrix(bent(1), every=3).cosine[..., 0])


def test_the_line_at_five_percent():
    axes = drawn(D.plot_normality(bent()))["p of Shapiro-Wilk"]
    level = [line.get_ydata()[0] for line in axes.get_lines() if line.get_label() == "_target"]
    assert level == [0.05] and "dotted: 0.05" in axes.texts[0].get_text().replace("\n", " ")
    low, high = axes.get_ylim()
    assert low < 0 and high > 1


def test_the_std_against_what_the_schedule_expects():
    axes = drawn(D.plot_normality(bent()))["standard deviation"]
    line = next(line for line in axes.get_lines() if line.get_label() == "_expected_std")
    np.testing.assert_array_equal(line.get_ydata(), D.moments(bent(), per="sample").expected_std[:, 0])
    assert axes.get_yscale() == "log"


def test_very_many_rungs_are_dots(monkeypatch):
    monkeypatch.setattr(figures, "DENSE", 20)
    axes = drawn(D.plot_moments(bent()))["mean"]
    dots = [line for line in axes.get_lines() if line.get_label() == "_dots"]
    found = D.moments(bent())["mean"]
    assert [line.get_linestyle() for line in dots] == ["None"] * 4
    np.testing.assert_array_equal([line.get_ydata() for line in dots], found[:, 0].T)
    assert [t.get_text() for t in axes.figure.legends[0].get_texts()] == ["c0", "c1", "c2", "c3"]


# --- axes, labels, legend ----


def test_sigma_zero_has_a_place_of_its_own():
    axes = drawn(D.plot_moments(bent()))["mean"]
    assert axes.get_xscale() == "symlog" and axes.get_xlim()[0] < 0
    axes.figure.draw_without_rendering()
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0", "0.1", "1", "10"]
    place = axes.transData.transform([[s, 0] for s in (0, 0.0292, 14.6)])[:, 0]
    assert place[1] - place[0] > 20 and place[2] - place[1] > 5 * (place[1] - place[0])
    above = drawn(D.plot_moments(bent().isel(step=slice(1, None))))["mean"]
    assert above.get_xscale() == "log"


def test_units_are_shown_where_there_are_any():
    found = D.moments(bent())
    found["sigma"].attrs["units"], found["skewness"].attrs["units"] = "volt", "1/volt"
    shown = drawn(D.plot_moments(found))
    assert "skewness [1/volt]" in shown and shown["mean"].get_xlabel() == "noise level σ [volt]"
    found["sigma"].attrs["long_name"] = "amount of noise"
    assert drawn(D.plot_moments(found))["mean"].get_xlabel() == "amount of noise σ [volt]"


@pytest.mark.parametrize("plot", PLOTS)
def test_every_panel_has_a_title_a_definition_and_labels(plot):
    figure = plot(bent(2))
    shown = [axes for axes in figure.axes if axes.get_title(loc="left")]
    for axes in shown:
        assert axes.texts[0].get_text().strip()
        if axes.axison:
            assert axes.get_xlabel() and axes.get_ylabel()
    assert all(axes in shown for axes in figure.axes if axes.get_lines())
    assert len(figure.texts) == 2 and "unsample" in figure.texts[1].get_text()


def test_one_legend_names_each_look_once():
    legend = D.plot_moments(bent()).legends
    assert len(legend) == 1 and [t.get_text() for t in legend[0].get_texts()] == ["c0", "c1", "c2", "c3"]
    many = D.plot_moments(bent(3)).legends[0]
    assert [t.get_text() for t in many.get_texts()] == ["each of 12", "their median"]
    assert D.plot_trajectory(bent()).legends == []


def test_lines_differ_by_more_than_their_colour():
    lines = data_lines(drawn(D.plot_moments(bent()))["mean"])
    assert len({line.get_color() for line in lines}) == len({str(line._dash_pattern) for line in lines}) == 4


def test_colours_are_those_of_the_views():
    ours = figures.PAPER, *figures.CATEGORIES, figures.DIVERGING, figures.SEQUENTIAL
    names = "paper", *(f"cat-{k}" for k in range(6)), "diverging", "sequential"
    for mine, name in zip(ours, names, strict=True):
        assert (mine if isinstance(mine, str) else list(mine)) == tokens()[name], name


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize("ds", [bent(), bent(3), flow_run()], ids=["one", "three", "flow"])
def test_no_text_lies_on_another(plot, ds):
    figure = plot(ds)
    figure.draw_without_rendering()
    boxes = []
    for axes in figure.axes:
        labels = [text for axis in (axes.xaxis, axes.yaxis) for text in shown_ticks(axis) if axes.axison]
        titles = [axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for text in (*titles, *labels):
            if text.get_text().strip() and text.get_visible():
                boxes.append((text.get_text(), text.get_window_extent()))
    boxes += [(t.get_text(), t.get_window_extent()) for t in figure.texts]
    boxes += [("the legend", legend.get_window_extent()) for legend in figure.legends]
    inside = figure.bbox
    for k, (name, box) in enumerate(boxes):
        assert box.x0 >= 0 and box.x1 <= inside.width and box.y0 >= 0 and box.y1 <= inside.height, name
        for other, its in boxes[k + 1 :]:
            over = min(box.x1, its.x1) - max(box.x0, its.x0), min(box.y1, its.y1) - max(box.y0, its.y0)
            assert min(over) <= 1.5, f"{name!r} and {other!r} overlap by {over} pixels"


# --- any run ----


def odd_runs():
    ds = tk.testing.unsample_dataset(size=8)
    thinned, holed = ds.copy(deep=True), bent(3)
    thinned["latent"][1::2] = np.nan
    holed["latent"][4, 1, 0, 0, 0] = np.nan
    still = ds.assign(latent=0.0 * ds.latent + 0.1)
    return {
        "one rung": ds.isel(step=[0]), "two rungs": ds.isel(step=[0, 7]), "every other row": thinned,
        "a hole": holed, "falling": ds.isel(step=slice(None, None, -1)), "flow": flow_run(),
        "constant": still, "float32": ds.astype(np.float32), "one pixel": ds.isel(y=[0], x=[0]),
        "nothing written": ds.assign(latent=np.nan * ds.latent),
        "many": tk.testing.ladder_dataset(steps=200, size=8),
    }  # fmt: skip


@pytest.mark.parametrize("ds", odd_runs().values(), ids=odd_runs())
@pytest.mark.parametrize("plot", PLOTS)
def test_any_run_can_be_drawn(plot, ds):
    figure = plot(ds)
    assert type(figure) is Figure
    picture = png(figure)
    assert picture.shape[1] == round(100 * figure.get_figwidth())
    assert (picture[0] == 255).all() and picture.min() < 60  # white paper, and ink on it


@pytest.mark.parametrize("plot", PLOTS)
def test_a_run_its_diagnostics_and_its_report_look_the_same(plot):
    ds = bent()
    report = D.report(ds)
    images = [png(plot(given)) for given in (ds, FINDS[plot](ds))]
    np.testing.assert_array_equal(images[0][60:], images[1][60:])  # under the head, which says what was given
    if plot is not D.plot_normality:  # where the report has mean and std by channel
        np.testing.assert_array_equal(images[0][60:], png(plot(report))[60:])


def test_a_part_of_the_diagnostics_draws_its_panels():
    assert len(D.plot_normality(D.normality(bent())).axes) == 1
    assert len(D.plot_trajectory(D.trajectory(bent())).axes) == 3
    high = bent().isel(step=slice(3, None))  # no noise to be told from it
    titles = {axes.get_title(loc="left") for axes in D.plot_report(high).axes}
    assert "How white it is" not in titles and "Mean of the states" in titles
    assert "Not to be had of this run" in titles


def test_the_page_says_the_numbers_of_the_run(digits_model):
    latent = digits_model.encode(tk.assets.digits()[0][0])
    up = tk.unsample(digits_model, latent, prompt=0, steps=5, inverse="reverse", progress=False)
    report = D.report(up, returned=tk.sample(digits_model, start=up, progress=False))
    axes = next(a for a in D.plot_report(report).axes if a.get_title(loc="left") == "In numbers")
    said = {t.get_text() for t in axes.texts}
    assert f"{report.round_trip_error.item():.2g}" in said and str(up.attrs["model_calls"]) in said


def test_the_run_is_left_as_it_was():
    ds = bent()
    before = ds.copy(deep=True)
    D.plot_report(ds)
    xr.testing.assert_identical(ds, before)


# --- errors, state ----


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize(
    "given, kind", [(xr.Dataset(), ValueError), (np.zeros(3), TypeError), (None, TypeError)], ids=str
)
def test_errors(plot, given, kind):
    with pytest.raises(kind, match=rf"^ds=.* Try: tk\.diagnostics\.{plot.__name__}\("):
        plot(given)


@pytest.mark.parametrize("plot", PLOTS)
def test_a_run_that_is_none_is_told_what_it_lacks(plot):
    for given in (bent().isel(step=0), bent().drop_vars("sigma")):
        with pytest.raises(ValueError, match=r"^ds=.* Try: tk\.diagnostics\."):
            plot(given)


def test_an_unknown_matrix():
    with pytest.raises(ValueError, match=r'Try: tk\.diagnostics\.plot_cosine\(run, "cosine"\)$'):
        D.plot_cosine(bent(), "cosines")


def test_without_pyplot_and_without_a_change_of_state():
    code = (
        "import sys, matplotlib\n"
        "before = matplotlib.rcParams.copy()\n"  # dict() would ask for the backend, and that for pyplot
        "import toolkit as tk\n"
        "ds = tk.testing.unsample_dataset(size=8)\n"
        "for name in tk.diagnostics.__all__:\n"
        "    if name.startswith('plot_') and name != 'plot_regions':\n"  # that wants a run with regions
        "        getattr(tk.diagnostics, name)(ds).savefig('/dev/null', format='png')\n"
        "loaded = [name for name in ('matplotlib.pyplot', 'torch') if name in sys.modules]\n"
        "after = matplotlib.rcParams.copy()\n"
        "print(loaded, [k for k in before if before._get(k) != after._get(k)])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[] []" and done.stderr == ""
