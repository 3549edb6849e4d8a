"""Runs side by side: the numbers are those of each diagnostic, and what is known to be bad shows."""

import io

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

import toolkit as tk

D = tk.diagnostics


@pytest.fixture(scope="module")
def ladder(digits_model):
    images, _ = tk.assets.digits("held-out")
    return tk.ladder(digits_model, digits_model.encode(images[:24]), steps=6, progress=False)


def test_numbers_are_means_of_each_diagnostic(ladder):
    found = D.comparison({"ladder": ladder}).isel(run=0)
    p = D.normality(ladder)
    wanted = {
        "std_ratio": D.moments(ladder, per="sample").std_ratio.mean("sample"),
        "kurtosis": D.moments(ladder, per="sample").kurtosis.mean("sample"),
        "shapiro_rejected": (p.shapiro_p < 0.05).mean("sample"),
        "ks_rejected": (p.ks_p < 0.05).mean("sample"),
        "neighbour_correlation": D.autocorrelation(ladder)
        .autocorrelation.sel(scale=1, lag=1)
        .mean(["sample", "channel", "along"]),
        "flatness": D.power_spectrum(ladder).flatness.mean(["sample", "channel"]),
        "image_correlation": D.image_correlation(ladder).image_correlation.mean(["sample", "channel"]),
        "texture_ratio": D.texture_error(ladder, quantile=0.25).std_ratio.mean("sample"),
    }
    assert set(wanted) == set(found.data_vars)
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name][1:], values[1:], rtol=1e-12, err_msg=name)
    noise = [name for name in wanted if name not in ("std_ratio", "kurtosis")]
    assert all(np.isnan(found[name][0]) for name in noise), "at sigma 0 there is no noise"


def test_bad_noise_is_told_from_good(ladder):
    clean, sigma = ladder.latent[0], ladder.sigma
    noise = (ladder.latent - clean) / sigma.where(sigma > 0)
    blurred = (noise + noise.roll(x=1)) / np.sqrt(2)
    bad = {
        "faint": 0.5 * noise,
        "blurred": blurred,
        "heavy": np.sign(noise) * abs(noise) ** 1.7,
        "image": (noise + clean / clean.std()) / np.sqrt(2),
    }
    runs = {
        name: ladder.assign(latent=(clean + sigma * n).where(sigma > 0, clean)) for name, n in bad.items()
    }
    top = D.comparison({"good": ladder, **runs}).isel(step=-1)
    of = {name: top.sel(run=name) for name in top.run.values}
    good = of.pop("good")
    assert abs(good.std_ratio - 1) < 0.05 and good.shapiro_rejected < 0.2 and good.ks_rejected < 0.2
    assert abs(of["faint"].std_ratio - 0.5) < 0.05 and of["faint"].ks_rejected > 0.9
    assert of["faint"].shapiro_rejected == good.shapiro_rejected, "shape alone"
    assert of["blurred"].neighbour_correlation > 0.2 and of["blurred"].flatness < good.flatness - 0.05
    assert of["heavy"].kurtosis > 1 and of["heavy"].shapiro_rejected > 0.9
    assert of["image"].image_correlation > 0.4 > abs(good.image_correlation)


def test_levels_of_all_runs_and_names(ladder):
    few = ladder.isel(step=[0, 3, 6])
    found = D.comparison({"all": ladder, "few": few, "falling": ladder.isel(step=slice(None, None, -1))})
    assert found.run.values.tolist() == ["all", "few", "falling"]
    np.testing.assert_array_equal(found.sigma, ladder.sigma)
    assert np.isfinite(found.std_ratio.sel(run="few")).values.tolist() == [k in (0, 3, 6) for k in range(7)]
    xr.testing.assert_allclose(found.sel(run="all", drop=True), found.sel(run="falling", drop=True))


@pytest.mark.parametrize("wrong", [None, {}, [1]])
def test_what_is_no_mapping_of_runs(wrong):
    with pytest.raises(TypeError, match="mapping of names"):
        D.comparison(wrong)


def test_a_run_alone_is_named(ladder):
    with pytest.raises(TypeError, match="mapping of names"):
        D.comparison(ladder)
    assert type(D.plot_comparison(ladder)) is Figure


def test_the_figure_has_a_line_a_run_by_its_name(ladder):
    found = D.comparison({"one": ladder, "two": 1.0 * ladder.assign_attrs(ladder.attrs)})
    figure = D.plot_comparison(found)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["one", "two"]
    spread = figure.axes[0].get_lines()
    np.testing.assert_array_equal(spread[-1].get_ydata(), found.std_ratio[1])
    figure.savefig(io.BytesIO(), format="png")


def test_matrices_of_named_samples_are_called_by_their_names(ladder):
    found = D.rung_correlation(ladder.isel(sample=[0, 1])).assign_coords(
        sample=np.array(["this", "that"], object)
    )
    figure = D.plot_cosine(found, "rung_correlation")
    assert [a.get_title(loc="left") for a in figure.axes[:2]] == ["This", "That"]
    assert "samples" not in figure.texts[1].get_text()
