"""Geometry, run quality and the report: known curves, NumPy's SVD, invariance, and what each run has."""

import json
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import toolkit as tk
from toolkit.dataset import label, latent_coordinates, rung_coordinates
from toolkit.diagnostics import geometry
from toolkit.diagnostics.overview import TABLE

D = tk.diagnostics
SHAPE = (2, 3, 2)  # channel, y, x
SIZE = math.prod(SHAPE)
BY_ROW = ("chord_deviation", "chord_rms", "chord_position", "step_cosine", "curvature")


def run(rows, sigma=None, **attrs):
    """A run through these states (step, sample, element)."""
    rows = np.asarray(rows, np.float64)
    sigma = np.linspace(0, 1, len(rows)) if sigma is None else np.asarray(sigma, np.float64)
    latent = rows.reshape(*rows.shape[:2], *SHAPE)
    coordinates = rung_coordinates(sigma, tk.Levels.scaled_linear(), tk.VE) | latent_coordinates(
        latent.shape[1:]
    )
    return label({"latent": latent}, coordinates, {"kind": "unsample", "path": "VE"} | attrs)


def basis(count, seed=0):
    """Orthonormal vectors (count, element)."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((SIZE, SIZE)))[0][:count]


def arc(radius, angles, seed=0):
    """States (step, 1, element) on a circle somewhere in space."""
    a, b, c = basis(3, seed)
    return (5 * c + radius * (np.cos(angles)[:, None] * a + np.sin(angles)[:, None] * b))[:, None]


# --- the trajectory ----


def test_a_straight_line_at_uneven_steps():
    direction, start = basis(2)
    along = np.array([0.0, 0.1, 0.15, 0.6, 1.0])
    found = D.trajectory(run((start + 7 * along[:, None] * direction)[:, None], along))
    assert abs(found.chord_deviation).max() < 1e-14 and abs(found.chord_rms).max() < 1e-14
    np.testing.assert_allclose(found.chord_position[:, 0], along, atol=1e-14)
    np.testing.assert_allclose(found.step_cosine[1:-1], 1, rtol=1e-14)
    assert abs(found.curvature[1:-1]).max() < 1e-13
    np.testing.assert_allclose([found.arc_length[0], found.chord_length[0]], 7)
    assert found.straightness[0] < 1e-13
    for name in ("step_cosine", "curvature"):
        assert np.isnan(found[name][[0, -1]]).all()


@pytest.mark.parametrize("radius", [0.01, 1.0, 300.0])
def test_a_circle(radius):
    angles = np.array([0.0, 0.3, 0.5, 1.4, 2.0, 2.1, np.pi])
    found = D.trajectory(run(arc(radius, angles)))
    np.testing.assert_allclose(found.curvature[1:-1, 0], 1 / radius, rtol=1e-9)
    # the angle between two chords is the mean of the angles that they span
    turns = (angles[2:] - angles[:-2]) / 2
    np.testing.assert_allclose(found.step_cosine[1:-1, 0], np.cos(turns), rtol=1e-9)
    np.testing.assert_allclose(found.chord_deviation[:, 0], np.sin(angles) / 2, atol=1e-12)
    np.testing.assert_allclose(found.chord_rms[:, 0], radius * np.sin(angles) / SIZE**0.5, atol=1e-9)
    np.testing.assert_allclose(found.chord_position[:, 0], (1 - np.cos(angles)) / 2, atol=1e-12)
    np.testing.assert_allclose(found.arc_length, radius * 2 * np.sin(np.diff(angles) / 2).sum(), rtol=1e-9)
    np.testing.assert_allclose(found.chord_length, 2 * radius, rtol=1e-9)


def test_straightness_is_that_of_rectified_flow():
    rng = np.random.default_rng(3)
    rows, sigma = rng.standard_normal((6, 2, SIZE)), np.array([0.0, 0.1, 0.3, 0.35, 0.8, 2.0])
    found = D.trajectory(run(rows, sigma))
    slope = np.diff(rows, axis=0) / np.diff(sigma)[:, None, None]  # of each piece
    chord = (rows[-1] - rows[0]) / 2.0
    gap = np.square(slope - chord).sum(-1)  # (piece, sample)
    want = (gap * np.diff(sigma)[:, None]).sum(0) / 2.0 / np.square(chord).sum(-1)
    np.testing.assert_allclose(found.straightness, want, rtol=1e-10)
    assert want.min() > 1
    # straight, but not even: the speed changes, and one Euler step is not exact
    uneven = D.trajectory(run(np.square(sigma)[:, None, None] * rows[0], sigma))
    assert uneven.straightness.min() > 0.1 and uneven.chord_deviation.max() < 1e-14


def test_where_sigma_does_not_go_one_way_there_is_no_straightness():
    rows = np.random.default_rng(0).standard_normal((4, 1, SIZE))
    assert np.isnan(D.trajectory(run(rows, [0.0, 1.0, 0.5, 2.0])).straightness).all()
    found = D.trajectory(run(rows, [0.0, 1.0, 1.0, 2.0]))
    assert np.isinf(found.straightness).all() and np.isfinite(found.curvature[1:-1]).all()


def test_back_and_forth_has_a_cosine_and_no_circle():
    a, b = basis(2)
    found = D.trajectory(run(np.stack([a, b, a, 3 * a])[:, None]))
    assert found.step_cosine[1, 0] == pytest.approx(-1) and np.isnan(found.curvature[1, 0])


def test_rows_that_were_not_written_are_passed_over():
    rows = np.random.default_rng(1).standard_normal((9, 2, SIZE))
    whole = D.trajectory(run(rows[::2], np.linspace(0, 1, 9)[::2]))
    holed = rows.copy()
    holed[1::2] = np.nan
    found = D.trajectory(run(holed))
    for name in BY_ROW:
        np.testing.assert_array_equal(found[name][::2], whole[name])
        assert np.isnan(found[name][1::2]).all(), name
    for name in ("arc_length", "chord_length", "straightness"):
        np.testing.assert_array_equal(found[name], whole[name])


def test_a_hole_in_one_sample_leaves_the_others():
    rows = np.random.default_rng(2).standard_normal((7, 3, SIZE))
    clean = D.trajectory(run(rows))
    rows[3, 1, 4] = np.nan
    rows[0, 2] = np.inf
    found = D.trajectory(run(rows))
    xr.testing.assert_identical(found.isel(sample=0), clean.isel(sample=0))
    assert np.isnan(found.chord_deviation[3, 1]) and np.isfinite(found.chord_deviation[2, 1])
    assert np.isnan(found.chord_deviation[0, 2]) and found.chord_deviation[1, 2] == 0
    assert found.chord_length[1] == clean.chord_length[1] != found.chord_length[2]


@pytest.mark.parametrize("steps, value", [(4, 1.0), (1, 1.0), (3, np.nan)])
def test_no_way_at_all(steps, value):
    found = D.trajectory(run(np.full((steps, 1, SIZE), value)))
    for name in (*BY_ROW, "straightness"):
        assert np.isnan(found[name]).all(), name
    length = found.chord_length.item()
    assert length == 0 if steps == 4 else math.isnan(length)


def test_two_rows():
    found = D.trajectory(run(np.stack([np.zeros(SIZE), basis(1)[0]])[:, None]))
    assert found.chord_position.values.ravel().tolist() == [0.0, pytest.approx(1.0)]
    assert found.straightness.item() < 1e-15 and np.isnan(found.step_cosine).all()


# --- invariance ----


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(3, 9), scale=st.floats(1e-3, 1e3))
def test_rotation_shift_and_scale(seed, steps, scale):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((steps, 2, SIZE))
    turn = np.linalg.qr(rng.standard_normal((SIZE, SIZE)))[0]
    moved = scale * (rows @ turn.T) + scale * rng.standard_normal(SIZE)
    before, after = D.trajectory(run(rows)), D.trajectory(run(moved))
    unit = dict.fromkeys(("chord_rms", "arc_length", "chord_length"), scale) | {"curvature": 1 / scale}
    for name in before.data_vars:
        np.testing.assert_allclose(
            after[name], before[name] * unit.get(name, 1), rtol=1e-7, atol=1e-9 * scale
        )
    first, second = (D.principal_components(run(r), components=2) for r in (rows, moved))
    np.testing.assert_allclose(second.explained, first.explained, rtol=1e-7, atol=1e-9)
    gap = first.explained.values
    if (gap[:, 0] - gap[:, 1]).min() > 1e-3:  # of nearly equal components any mixture would do
        np.testing.assert_allclose(
            second.score[..., 0], scale * first.score[..., 0], rtol=1e-5, atol=1e-5 * scale
        )


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(2, 9))
def test_a_falling_run_is_the_rising_one_read_backwards(seed, steps):
    up = run(np.random.default_rng(seed).standard_normal((steps, 2, SIZE)))
    down = up.isel(step=slice(None, None, -1))
    for find in (D.trajectory, D.principal_components):
        rising, falling = find(up), find(down)
        back = falling.isel(step=slice(None, None, -1))
        for name in rising.data_vars:
            want = 1 - rising[name] if name == "chord_position" else rising[name]
            np.testing.assert_allclose(back[name], want, rtol=1e-7, atol=1e-9, err_msg=name)


# --- principal components ----


def test_rank_two_is_explained_by_two():
    found = D.principal_components(run(arc(3.0, np.linspace(0, 2, 12))), components=4)
    assert found.explained.sum("component").item() == pytest.approx(1, abs=1e-12)
    assert (found.explained[0, :2] > 0.01).all() and (found.explained[0, 2:] == 0).all()
    assert (found.score[..., 2:] == 0).all()


@pytest.mark.parametrize("steps", [5, 30])
def test_equal_to_the_svd_of_numpy(steps):
    rows = np.random.default_rng(steps).standard_normal((steps, 3, SIZE))
    found = D.principal_components(run(rows), components=4)
    for k in range(3):
        centred = rows[:, k] - rows[:, k].mean(0)
        u, s, _ = np.linalg.svd(centred, full_matrices=False)
        np.testing.assert_allclose(found.explained[k], (s**2 / (s**2).sum())[:4], rtol=1e-10)
        scores = u[:, :4] * s[:4]
        np.testing.assert_allclose(found.score[:, k], scores * np.sign(scores[-1]), rtol=1e-7, atol=1e-9)
    assert (found.score[-1] > 0).all()  # the noisiest row's


def test_components_of_some_rows_and_scores_of_all(monkeypatch):
    rows = np.random.default_rng(0).standard_normal((20, 1, SIZE))
    found = D.principal_components(run(rows), components=2, every=4)
    used = [0, 4, 8, 12, 16, 19]
    alone = D.principal_components(run(rows[used], np.linspace(0, 1, 20)[used]), components=2)
    np.testing.assert_allclose(found.score[used], alone.score, rtol=1e-9, atol=1e-12)
    assert np.isfinite(found.score).all() and found.attrs["every"] == 4
    monkeypatch.setattr(geometry, "BLOCK", SIZE)  # four rows at a time: the same sums in other blocks
    blocked = D.principal_components(run(rows), components=2, every=4)
    np.testing.assert_allclose(blocked.score, found.score, rtol=1e-9, atol=1e-12)


def test_rows_that_are_missing_or_do_not_vary():
    rows = np.random.default_rng(0).standard_normal((8, 2, SIZE))
    rows[3] = np.nan
    found = D.principal_components(run(rows))
    some = [k for k in range(8) if k != 3]
    alone = D.principal_components(run(rows[some], np.linspace(0, 1, 8)[some]))
    np.testing.assert_allclose(found.score[some], alone.score, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.explained, alone.explained, rtol=1e-10)
    assert np.isnan(found.score[3]).all()
    for still in (np.ones((5, 1, SIZE)), np.ones((1, 1, SIZE))):
        found = D.principal_components(run(still))
        assert (found.score == 0).all() and np.isnan(found.explained).all()
    assert np.isnan(D.principal_components(run(np.full((3, 1, SIZE), np.nan))).score).all()


def test_too_many_rows_are_refused_with_the_line_that_works(monkeypatch):
    monkeypatch.setattr(geometry, "MOST_RUNGS", 8)
    ds = run(np.random.default_rng(0).standard_normal((30, 1, SIZE)))
    with pytest.raises(ValueError, match=r"30 rows .*every=5\)$"):
        D.principal_components(ds)
    assert D.principal_components(ds, every=5).sizes["step"] == 30
    assert D.report(ds).attrs["settings"]["principal_components"] == {"every": 5}


@pytest.mark.parametrize("rungs", [1, 2, 2048, 2049, 10_001])
def test_thinning_is_the_least_that_does(rungs):
    def used(every):
        return len(np.unique(np.append(np.arange(0, rungs, every), rungs - 1)))

    every = geometry.thinning(rungs)
    assert used(every) <= geometry.MOST_RUNGS and (every == 1 or used(every - 1) > geometry.MOST_RUNGS)


# --- quality ----


def recorded(**variables):
    """Five rungs, two samples, with these variables (step, sample)."""
    ds = run(np.random.default_rng(0).standard_normal((5, 2, SIZE)), [0.0, 0.1, 1.0, 2.0, 4.0])
    columns = {n: (("step", "sample"), np.asarray(v, float)) for n, v in variables.items()}
    return ds.assign(columns)


def test_the_worst_its_step_and_the_median():
    # the lowest two rows hold the zeros that a record writes where no offset is
    found = D.run_quality(recorded(offset_norm=[[0, 0], [0, 0], [0.3, 0.1], [0.1, 0.2], [0.2, 0.9]]))
    assert found.local_defect_worst.values.tolist() == [0.3, 0.9]
    assert found.local_defect_step.values.tolist() == [2, 4]
    np.testing.assert_allclose(found.local_defect_median, [0.2, 0.2])
    falling = recorded(offset_norm=[[0, 0], [0, 0], [0.3, 0.1], [0.1, 0.2], [0.2, 0.9]])
    falling = D.run_quality(falling.isel(step=slice(None, None, -1)))
    assert falling.local_defect_step.values.tolist() == [2, 4]
    np.testing.assert_allclose(falling.local_defect_median, [0.2, 0.2])


def test_extracted_noise_is_worst_where_it_is_farthest_from_unit():
    std = [[0, 0], [0, 0], [0.2, 1.1], [2.0, 0], [1.0, 0.9]]  # sample 1: deterministic at one row
    lag = [[0, 0], [0, 0], [-0.6, 0.3], [0.5, 0], [0, 0]]
    norm = [[0, 0], [0, 0], [0, 0], [0, 0.7], [0, 0]]
    found = D.run_quality(recorded(noise_std=std, noise_lag=lag, offset_norm=norm))
    # 0.2 is farther from 1 than 2.0 is, as 5 and 2 times; and 0.9 than 1.1
    assert found.noise_std_worst.values.tolist() == [0.2, 0.9]
    assert found.noise_std_step.values.tolist() == [2, 4]
    np.testing.assert_allclose(found.noise_std_median, [1.0, 1.0])
    # the first hop has no rung above; nor has one below a deterministic hop
    np.testing.assert_allclose(found.noise_lag_worst[0], -0.6)
    assert found.noise_lag_step[0] == 2 and np.isnan(found.noise_lag_worst[1])
    # hops that noise brings to their rung have no offset
    assert np.isnan(found.local_defect_worst[0]) and found.local_defect_worst[1] == 0.7


def test_aux_gap_of_the_row_the_replay_starts_from():
    gap = [[np.nan] * 2, [np.nan] * 2, [0.5, 0.1], [0.2, 0.2], [0.3, 0.4]]
    found = D.run_quality(recorded(aux_gap=gap))
    assert found.aux_gap_top.values.tolist() == [0.3, 0.4]
    assert found.aux_gap_worst.values.tolist() == [0.5, 0.4] and found.aux_gap_step.values.tolist() == [2, 4]


def test_round_trip_error_and_cost(digits_model):
    latent = digits_model.encode(tk.assets.digits()[0][0])
    up = tk.unsample(digits_model, latent, prompt=0, steps=6, inverse="reverse", progress=False)
    down = tk.sample(digits_model, start=up, progress=False)
    found = D.run_quality(up, down)
    given, got = up.latent[0].values.ravel(), down.latent[-1].values.ravel()
    want = np.linalg.norm(got - given) / np.linalg.norm(given)
    assert found.round_trip_error.item() == pytest.approx(want, rel=1e-12) and want > 0.01
    assert (
        found.model_calls.item() == up.attrs["model_calls"] and found.calls_back == down.attrs["model_calls"]
    )
    trip = tk.round_trip(digits_model, latent, prompt=0, steps=6, inverse="reverse", progress=False)
    both = D.run_quality(up, trip)
    np.testing.assert_allclose(both.round_trip_error, trip.error, rtol=1e-12)
    assert both.calls_back.item() == trip.calls.sel(direction="back").item()
    other = tk.in_space(down.assign_attrs(latent_scale=0.5), "vae")
    np.testing.assert_allclose(D.run_quality(up, other).round_trip_error, want, rtol=1e-12)


def test_std_of_the_noisiest_row_over_the_expected_one():
    ds = tk.testing.ladder_dataset(samples=3, size=32)
    clean, top = (ds.latent[k].values.reshape(3, -1).std(axis=1, dtype=float) for k in (0, -1))
    want = top / np.sqrt(clean**2 + float(ds.sigma[-1]) ** 2)
    np.testing.assert_allclose(D.run_quality(ds).top_std_ratio, want, rtol=1e-6)
    ds["latent"][-1, 1] = np.nan  # the next row that is there serves
    found = D.run_quality(ds).top_std_ratio
    below = ds.latent[-2, 1].values.std(dtype=float) / np.sqrt(clean[1] ** 2 + float(ds.sigma[-2]) ** 2)
    np.testing.assert_allclose(found, [want[0], below, want[2]], rtol=1e-6)
    backwards = D.run_quality(ds.isel(step=slice(None, None, -1))).top_std_ratio
    np.testing.assert_array_equal(backwards, found)


@pytest.mark.parametrize(
    "options, has",
    [
        ({"solver": "euler"}, {"local_defect"}),
        ({"solver": "obelm"}, {"aux_gap"}),
        ({"solver": "euler_ancestral"}, {"noise_std", "noise_lag"}),
        ({"solver": "euler", "inverse": "fixed_point"}, {"residual"}),
        ({"solver": "euler", "inverse": "defect"}, {"sweep_error"}),
        ({"solver": "euler", "inverse": "reverse"}, set()),
    ],
)
def test_what_each_inverse_has(digits_model, options, has):
    latent = digits_model.encode(tk.assets.digits()[0][0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # implicit inverses say how far they came
        up = tk.unsample(digits_model, latent, prompt=0, steps=6, progress=False, **options)
    found = D.run_quality(up)
    every = {"local_defect", "aux_gap", "residual", "noise_std", "noise_lag", "sweep_error"}
    there = {name for name in every if name in found or f"{name}_worst" in found}
    assert there == has
    assert set(found.attrs["left_out"]) == every - has | {"round_trip_error"}
    assert all(np.isfinite(found[name]).all() for name in found.data_vars)


# --- the report ----


def test_the_report_has_all_that_a_run_allows(digits_model):
    latent = digits_model.encode(tk.assets.digits()[0][0])
    up = tk.unsample(digits_model, latent, prompt=0, steps=6, progress=False)
    found = D.report(up, returned=tk.sample(digits_model, start=up, progress=False))
    assert set(found.attrs["left_out"]) == {"aux_gap", "residual", "noise_std", "noise_lag", "sweep_error"}
    for name, row in TABLE.items():
        if name != "run_quality":
            alone = row.find(type("Asked", (), {"ds": up, "x0": None})())
            for variable in alone.data_vars:
                ours = found[row.names.get(variable, variable)]
                np.testing.assert_array_equal(ours, alone[variable], err_msg=f"{name}.{variable}")
    assert found.round_trip_error.item() < 1e-9
    assert found.attrs["kind"] == "report" and found.attrs["report_of"] == "unsample"
    assert found.attrs["settings"]["normality"]["of"] == "noise"
    json.dumps(found.attrs)


def test_no_two_diagnostics_share_a_name():
    ds, seen = tk.testing.unsample_dataset(size=8), {}
    for name, row in TABLE.items():
        for variable in row.find(type("Asked", (), {"ds": ds, "x0": None, "returned": None})()).data_vars:
            shown = row.names.get(variable, variable)
            assert shown not in seen, f"{name} and {seen.get(shown)} both have {shown}"
            seen[shown] = name


def test_what_a_run_without_a_clean_row_allows():
    ds = tk.testing.ladder_dataset(size=8).isel(step=slice(3, None))
    found = D.report(ds)
    noise = {"normality", "image_correlation", "rung_correlation", "power_spectrum", "autocorrelation",
             "texture_error"}  # fmt: skip
    assert noise <= set(found.attrs["left_out"]) and "shapiro_p" not in found
    assert all("sigma 0" in found.attrs["left_out"][name] for name in noise)
    assert {"std_ratio", "cosine", "chord_deviation", "score"} <= set(found.data_vars)
    clean = tk.testing.ladder_dataset(size=8).latent[0]
    assert not noise & set(D.report(ds, x0=clean).attrs["left_out"])


def test_what_one_rung_allows():
    found = D.report(tk.testing.ladder_dataset(size=8).isel(step=[0]))
    assert {"trajectory", "normality", "image_correlation"} <= set(found.attrs["left_out"])
    assert "chord_deviation" not in found and np.isfinite(found["mean"]).all()


def test_another_diagnostic_is_a_function_and_a_row(monkeypatch):
    from toolkit.diagnostics import overview
    from toolkit.diagnostics.common import labelled

    def largest(run):
        values = np.abs(run.ds.latent).max(("channel", "y", "x"))
        return labelled(
            {"largest": (("step", "sample"), values.values, "largest value", "1")}, run.ds, "largest"
        )

    monkeypatch.setattr(overview, "TABLE", {**TABLE, "largest": overview.Row(largest)})
    assert D.report(tk.testing.ladder_dataset(size=8)).largest.dims == ("step", "sample")


# --- one and all ----

FINDERS = [D.trajectory, D.principal_components, D.run_quality, D.report]


@pytest.mark.parametrize("find", FINDERS)
def test_labels(find):
    ds = tk.testing.unsample_dataset(samples=2, size=8)
    found = find(ds)
    for name, variable in found.variables.items():
        assert variable.attrs.get("long_name") and variable.attrs.get("units"), name
    assert found.attrs["path"] == "VE" and found.attrs[f"{found.attrs['kind']}_of"] == "unsample"
    turned = find(ds.transpose(..., "step"))
    xr.testing.assert_allclose(turned, found, rtol=1e-9)


@pytest.mark.parametrize("find", FINDERS)
def test_memory_and_store_agree(find, tmp_path):
    model, save = tk.GaussianMixture(np.zeros((1, 2, 4, 4)), 1.0), tk.Save(store=tmp_path / "run.zarr")
    ds = tk.ladder(model, np.ones((2, 2, 4, 4)), steps=5, save=save, progress=False)
    stored = find(tk.open(tmp_path / "run.zarr"))
    xr.testing.assert_identical(stored, find(ds.load()))


@pytest.mark.parametrize("find", FINDERS)
def test_states_of_the_vae_are_taken_as_the_network_sees_them(find):
    ds = tk.testing.unsample_dataset(size=8, samples=2)
    ds["latent"] += 0.01 * np.random.default_rng(0).standard_normal(ds.latent.shape)
    ds = ds.assign_attrs(latent_scale=0.18215, latent_shift=0.1)
    want, found = find(ds), find(tk.in_space(ds, "vae"))
    for name in ("chord_rms", "curvature", "score", "explained", "top_std_ratio", "std_ratio"):
        if name in want:
            np.testing.assert_allclose(found[name], want[name], rtol=1e-6, atol=1e-8)
    assert set(found.data_vars) == set(want.data_vars)
    assert found.attrs == want.attrs  # latent_space is "model" in both


@pytest.mark.parametrize("find", FINDERS)
@pytest.mark.parametrize(
    "given, kind, text",
    [
        (tk.testing.ladder_dataset().drop_vars("latent"), ValueError, "`latent`"),
        (tk.testing.ladder_dataset().isel(step=0), ValueError, "`latent`"),
        (tk.testing.ladder_dataset().drop_vars("sigma"), ValueError, "`sigma`"),
        (tk.testing.ladder_dataset().isel(step=[]), ValueError, "at least one"),
        (np.zeros((2, 1, 4, 8, 8)), TypeError, "a Dataset"),
    ],
)
def test_errors(find, given, kind, text):
    with pytest.raises(kind, match=text) as caught:
        find(given)
    assert "Try: tk.diagnostics." in str(caught.value)


@pytest.mark.parametrize(
    "call, argument",
    [
        (lambda ds: D.principal_components(ds, components=0), "components"),
        (lambda ds: D.principal_components(ds, components=2.0), "components"),
        (lambda ds: D.principal_components(ds, every=True), "every"),
        (lambda ds: D.run_quality(ds, ds), "returned"),
        (lambda ds: D.run_quality(ds, ds.isel(sample=[0, 0])), "returned"),
        (lambda ds: D.report(ds, returned=ds), "returned"),
        (lambda ds: D.report(ds, x0=np.zeros(3)), "x0"),
    ],
)
def test_wrong_arguments(call, argument):
    with pytest.raises(ValueError, match=f"^{argument}=.* Try: tk.diagnostics"):
        call(tk.testing.ladder_dataset(size=8))


def test_without_torch():
    code = (
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'torch':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "import toolkit as tk\n"
        "found = tk.diagnostics.report(tk.testing.ladder_dataset())\n"
        "figure = tk.diagnostics.plot_report(found)\n"
        "print(found.sizes['step'], 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "21 False"
