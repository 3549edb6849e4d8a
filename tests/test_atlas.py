"""The solver atlas: what it measures, what it keeps when it is stopped, and how it is drawn."""

import json
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import toolkit as tk
from toolkit import atlases
from toolkit.atlases import DIMS, MEASURES, OURS
from toolkit.views.chart import RETURNS, Mark, front

ROOT = Path(tk.__file__).parent.parent
STORED = ROOT / "benchmarks" / "atlas.nc"
EXACT = 1e-11


@pytest.fixture(scope="module")
def sharp() -> dict[str, tuple]:
    model, images = tk.testing.sharp_modes()
    return {"A": (model, images["on"][:2], 3, None)}


@pytest.fixture(scope="module")
def tiny(sharp) -> xr.Dataset:
    """Two solvers that return and run upwards, one that is stochastic and does not."""
    torch.set_num_threads(1)
    names = ["euler", "obelm", "euler_ancestral"]
    return tk.atlas(sharp, names, steps=[6], cfgs=[1.0, 7.5], progress=False)


def small(path) -> tuple[tk.SpectralMixture, np.ndarray, np.ndarray]:
    """Like the sharp modes, 8 times smaller; images in the model and off it."""
    rng = np.random.default_rng(2)
    means = rng.standard_normal((12, 2, 8, 8))
    conditions = {label: range(label, 12, 4) for label in range(4)}
    levels = tk.Levels.edm(0.03, 14.6) if path == tk.VE else tk.Levels.flow(3.0)
    model = tk.SpectralMixture(means, 0.05, None, conditions, "dct", path, levels)
    inside = means[[3, 7]] + np.sqrt(0.05) * rng.standard_normal((2, 2, 8, 8))
    return model, inside, rng.standard_normal((2, 2, 8, 8))


def test_schema(tiny):
    assert tiny.error.dims == DIMS
    assert dict(tiny.sizes) == {"solver": 3, "inverse": 2, "steps": 1, "cfg": 2, "model": 1, "path": 2}
    assert set(tiny.data_vars) == set(MEASURES)
    for name, (dims, text) in MEASURES.items():
        assert tiny[name].dims == tuple(dims)
        assert tiny[name].attrs == {"long_name": text, "units": "1"}
    assert all(tiny[name].attrs["units"] == "1" and tiny[name].attrs["long_name"] for name in tiny.coords)
    assert all(tiny[name].dtype == object for name in ("solver", "inverse", "model", "path", "picked"))
    assert json.loads(json.dumps(tiny.attrs)) == tiny.attrs
    assert set(tiny.attrs["versions"]) >= {"toolkit", "torch"}


def test_what_returns_and_what_does_not(tiny):
    error = tiny.error.isel(steps=0, model=0)
    assert float(error.sel(inverse="auto").max()) < EXACT
    assert (error.sel(inverse="reverse", solver=["euler", "obelm"]) > 1e-3).all()
    assert (error.sel(inverse="reverse", solver=["euler", "obelm"], cfg=7.5) > 0.1).all()
    assert tiny.picked.sel(inverse="auto").values.tolist() == ["offsets", "algebraic", "noise"]


def test_nan_where_a_name_cannot(tiny):
    nothing = tiny.sel(solver="euler_ancestral", inverse="reverse")
    assert nothing.picked.item() == ""
    assert all(nothing[name].isnull().all() for name in ("error", "calls_there", "calls_back", "std_ratio"))
    assert tiny.accuracy.sel(solver="euler_ancestral").isnull().all(), "x_T aims at no ODE"
    assert tiny.accuracy.sel(solver=["euler", "obelm"]).notnull().all()
    assert tiny.aux_gap.sel(solver="obelm", inverse="auto").notnull().all()
    assert tiny.aux_gap.sel(solver="euler").isnull().all()
    assert tiny.variance_bias.sel(solver=["euler", "obelm"]).isnull().all()
    assert float(tiny.variance_bias.sel(solver="euler_ancestral", path="VE")) == pytest.approx(
        -0.22, abs=0.01
    )


def test_the_numbers_are_those_of_a_round_trip(tiny, sharp):
    model, latent, prompt, _ = sharp["A"]
    trip = tk.round_trip(
        model, latent, solver="euler", schedule="karras", steps=6, prompt=prompt, progress=False
    )
    one = tiny.sel(solver="euler", inverse="auto", cfg=1.0).squeeze()
    assert float(one.error) == float(trip.error.max())
    assert float(one.accuracy) == pytest.approx(float(trip.accuracy.max()), rel=1e-5)
    assert [one.calls_there, one.calls_back] == trip.calls.values.tolist()
    assert float(one.std_ratio) in trip.std_ratio.values


@pytest.mark.parametrize("path", [tk.VE, tk.FLOW], ids=lambda path: path.name)
def test_every_name_of_comfyui_returns(path):
    """42 names, images in the model and off it, cfg 1 and 7.5."""
    model, inside, off = small(path)
    cases = {"in": (model, inside, 3, None), "off": (model, off, 3, None)}
    names = [name for name in tk.SOLVERS if name not in OURS]
    assert len(names) == 42
    ds = tk.atlas(cases, names, ["auto"], steps=[8], cfgs=[1.0, 7.5], truth=0.0, progress=False)
    assert ds.error.notnull().all()
    worst = ds.error.max(("inverse", "steps", "cfg", "model"))
    assert {n: e for n, e in zip(names, worst.values.tolist(), strict=True) if e > EXACT} == {}
    assert ds.accuracy.isnull().all(), "no truth was asked for"


def test_uni_inv_comes_back_with_euler(sharp):
    model, latent, prompt, _ = sharp["A"]
    ds = tk.atlas(sharp, ["uni_inv"], ["reverse"], steps=[8], cfgs=[1.0], progress=False)
    up = tk.unsample(model, latent, solver="uni_inv", inverse="reverse", schedule="karras", steps=8,
                     prompt=prompt, progress=False)  # fmt: skip
    errors = {}
    for name in ("euler", "uni_inv"):
        back = tk.sample(model, start=up, solver=name, progress=False).latent[-1] - up.latent[0]
        errors[name] = float((np.sqrt((back**2).sum(("channel", "y", "x")))
                              / np.sqrt((up.latent[0] ** 2).sum(("channel", "y", "x")))).max())  # fmt: skip
    assert float(ds.error.item()) == pytest.approx(errors["euler"], rel=1e-12)
    assert abs(errors["euler"] - errors["uni_inv"]) > 1e-3


def test_the_truth_is_solved_once_for_two_ends(sharp, monkeypatch):
    solved, ends = atlases._solved, []

    def counted(model, start, found, asked):
        ends.append((found, asked["cfg"]))
        return solved(model, start, found, asked)

    monkeypatch.setattr(atlases, "_solved", counted)
    names = ["euler", "heun", "dpm_fast", "obelm", "dpm_2"]  # the last one drops the lowest level but one
    tk.atlas(sharp, names, steps=[5, 6], cfgs=[1.0], progress=False)
    assert len(ends) == len(set(ends)) == 3
    grids = [tk.schedule(sharp["A"][0], "karras", n, solver="dpm_2") for n in (5, 6)]
    assert {low for (low, _), _ in ends} == {ends[0][0][0], *(float(grid.sigma[-2]) for grid in grids)}


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_the_smaller_model_has_the_same_flow(cfg):
    model, _, off = small(tk.VE)
    asked = {"prompt": 3, "negative": None, "cfg": cfg}
    start = torch.from_numpy(np.concatenate([off, off + 1.0])[:3])
    reduced, frame = atlases._reduced(model, start)
    assert reduced.shape == (1, 1, 15) and frame.shape == (128, 15)
    got = atlases._solved(model, start, (0.05, 10.0), asked)
    want = model.probability_flow(start, [0.05, 10.0], tolerance=1e-9, **asked)[-1].numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    other, none = atlases._reduced(tk.testing.power_law()[0], torch.zeros(1, 4, 32, 32))
    assert none is None and other.shape == (4, 32, 32), "its variances differ: not reduced"


def test_an_interrupted_atlas_keeps_what_it_had(sharp, monkeypatch):
    measured, count = atlases._measure, 0

    def stopped(*args):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        return measured(*args)

    monkeypatch.setattr(atlases, "_measure", stopped)
    with pytest.raises(KeyboardInterrupt, match=r"2 of 4 round trips.*exc\.dataset") as caught:
        tk.atlas(sharp, ["euler", "heun"], steps=[4], cfgs=[1.0], progress=False)
    ds = caught.value.dataset
    assert int(ds.error.notnull().sum()) == 2
    assert ds.attrs["stopped"] == "2 of 4 round trips"


def test_a_run_that_overflows_is_infinitely_off():
    model = tk.denoiser(lambda x, sigma: 1e200 * x)
    latent = np.ones((1, 1, 2, 2))
    ds = tk.atlas({"bad": (model, latent, None, None)}, ["euler"], steps=[4], cfgs=[1.0], progress=False)
    assert np.isinf(ds.error).all()


@pytest.mark.parametrize(
    "given, said",
    [
        ({"solvers": ["eulr"]}, 'no such solver.*tk.solver\\("euler"\\)'),
        ({"solvers": "euler"}, "solvers='euler'.*a list"),
        ({"inverses": ["offset"]}, 'no such inverses.*"offsets"'),
        ({"steps": [1]}, "steps=1"),
        ({"cfgs": [float("nan")]}, "cfgs=nan"),
        ({"cfgs": []}, "cfgs=\\[\\]"),
        ({"steps": [5, 5]}, "each once"),
        ({"schedule": "karass"}, '"karras"'),
        ({"models": {}}, "a mapping"),
        ({"models": {"A": 3}}, "model, latent, prompt, negative"),
    ],
)
def test_bad_input_is_refused_before_the_first_run(given, said, monkeypatch):
    monkeypatch.setattr(atlases, "_measure", lambda *args: pytest.fail("ran"))
    with pytest.raises((ValueError, TypeError), match=said):
        tk.atlas(**given)


# --- the picture ----


def invented(seed: int) -> xr.Dataset:
    """An atlas of all names with numbers drawn by lot, crowded where real ones are."""
    rng, names = np.random.default_rng(seed), list(tk.SOLVERS)
    shape = (len(names), 2, 1, 2, 1)
    calls = rng.choice([37.0, 39.0, 40.0, 57.0, 76.0, 78.0, 114.0, 152.0], shape)
    error = 10 ** rng.uniform(-4, 1, shape)
    error[:, 0] = 1e-17
    accuracy = rng.choice([1.4e-3, 1e-2, 1.1e-2, 1.5e-2, 0.1, 0.3], shape) * rng.choice(
        [1.0, 1.02, 1.1], shape
    )
    accuracy[::5] = np.nan
    values = {"error": error, "accuracy": accuracy, "calls_there": calls, "calls_back": calls / 2}
    picked = np.array([[rng.choice(["offsets", "algebraic", "noise"]), "reverse"] for _ in names], object)
    coords = {
        "solver": names,
        "inverse": ["auto", "reverse"],
        "steps": [20],
        "cfg": [1.0, 7.5],
        "model": ["A"],
    }
    data = {name: (DIMS, value) for name, value in values.items()} | {"picked": (DIMS[:2], picked)}
    return xr.Dataset(data, coords)


def overlaps(figure) -> list[tuple[str, str]]:
    """Pairs of labels in the plot whose boxes touch."""
    renderer = figure.canvas.get_renderer()
    texts = [t for t in figure.findobj() if getattr(t, "get_gid", lambda: "")() == "label"]
    boxes = {t: t.get_window_extent(renderer) for t in texts}
    assert len(boxes) >= 2
    pairs = [(a.get_text(), b.get_text()) for a, b in combinations(boxes, 2) if boxes[a].overlaps(boxes[b])]
    inside = figure.bbox
    assert all(inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1) for box in boxes.values())
    return pairs


@pytest.mark.parametrize("seed", range(4))
def test_no_two_labels_overlap(seed):
    figure = tk.views.atlas_chart(invented(seed), cfg=7.5)
    assert overlaps(figure) == []
    first, second = [t for t in figure.findobj() if getattr(t, "get_gid", lambda: "")() == "label"][:2]
    second.set_position(first.get_position())
    assert overlaps(figure), "the check finds what it looks for"


def test_marks_say_what_returns(tiny):
    figure = tk.views.atlas_chart(tiny, cfg=1.0, steps=6)
    marks = [line for line in figure.findobj() if getattr(line, "get_gid", lambda: "")() == "mark"]
    paper = figure.get_facecolor()
    from matplotlib.colors import to_rgba

    hollow = [to_rgba(mark.get_markerfacecolor()) == paper for mark in marks]
    assert (len(marks), sum(hollow)) == (5, 2), "auto of three, hollow: reverse of two"


def test_front():
    def mark(name, calls, accuracy, error=1e-16):
        return Mark((name,), "offsets", calls, accuracy, error)

    a, b, c = mark("a", 40, 1e-2), mark("b", 80, 1e-3), mark("c", 80, 1e-2)
    lossy, aimless = mark("d", 20, 1e-4, 0.1), mark("e", 20, np.nan)
    assert front([c, lossy, b, aimless, a]) == [a, b]
    assert front([lossy, aimless]) == []


def test_table_as_text(tiny):
    lines = tk.views.atlas_table(tiny, cfg=7.5, steps=6).splitlines()
    assert lines[0].split() == ["solver", "strategy", "calls", "error", "accuracy"]
    assert [line.split()[:2] for line in lines[1:]] == [
        ["euler", "offsets"],
        ["euler", "reverse"],
        ["obelm", "algebraic"],
        ["obelm", "reverse"],
        ["euler_ancestral", "noise"],
    ]
    assert "< 1e-9" in lines[1] and "> 0.1" in lines[2]
    assert len(tk.views.atlas_table(tiny, solvers=["obelm"]).splitlines()) == 3


@pytest.mark.parametrize(
    "given, said",
    [({"cfg": 2.0}, r"cfg=2.0.*\[1.0, 7.5\]"), ({"steps": 7}, "steps=7"), ({"model": "B"}, 'model="A"')],
)
def test_what_was_not_measured_is_not_drawn(tiny, given, said):
    with pytest.raises(ValueError, match=said):
        tk.views.atlas_chart(tiny, **given)
    with pytest.raises(TypeError, match=r"the Dataset of tk\.atlas"):
        tk.views.atlas_chart(tk.testing.ladder_dataset())


# --- what is stored ----


def test_the_stored_table_is_whole_and_what_auto_picks_returns():
    assert STORED.stat().st_size < 500_000
    with xr.open_dataset(STORED, engine="scipy") as ds:
        ds = ds.load()
    assert ds.solver.values.tolist() == list(tk.SOLVERS)
    assert ds.steps.values.tolist() == [10, 20, 50] and len(ds.model) == 6
    error = ds.error.sel(inverse="auto")
    assert error.sel(steps=20).notnull().all()
    assert error.isel(model=slice(4)).notnull().all()
    assert float(error.sel(solver=[n for n in tk.SOLVERS if n not in OURS]).max()) < EXACT
    # rounding grows in the second state of a reversible solver, off the model most of all
    worst = error.sel(solver=list(OURS)).max(("steps", "cfg", "model"))
    assert {str(n) for n, e in zip(OURS, worst, strict=True) if e > RETURNS} <= {"rex", "bdia"}
    assert float(worst.max()) < 1e-6
    for model, cfg in product(ds.model.values, ds.cfg.values):
        assert overlaps(tk.views.atlas_chart(ds, model=model, cfg=cfg)) == []
