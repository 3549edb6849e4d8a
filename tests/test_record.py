"""The record: one schema, the same from memory and from a store, whole or cut short; ladders, their noise."""

import hashlib
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
import xarray as xr

import toolkit as tk
from toolkit.noise import DRAWS, RUNGS, SAMPLES, START, Keyed, key

DIMS = ("step", "sample", "channel", "y", "x")
SHAPE = (1, 4, 8, 8)
RUNG = ("sigma", "timestep", "alpha", "log_snr")
QUIET = {"progress": False}
ALL = tk.Save()


def mixture(path=tk.VE, shape=SHAPE[1:]) -> tk.GaussianMixture:
    return tk.GaussianMixture(np.random.default_rng(7).standard_normal((2, 3, *shape)), 0.5, path=path)


def picture(samples: int = 1, seed: int = 0, shape=SHAPE[1:]) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.randn((samples, *shape), generator=made, dtype=torch.float64)


def half_mask() -> torch.Tensor:
    return torch.cat([torch.ones(8, 4), torch.full((8, 4), 0.25)], dim=1)


def unsample(save=ALL, model=None, x=None, **kw) -> xr.Dataset:
    given = picture() if x is None else x
    return tk.unsample(model or mixture(), given, **{"steps": 7, **kw}, save=save, **QUIET)


def sample(save=ALL, start=None, model=None, **kw) -> xr.Dataset:
    if start is None or not isinstance(start, xr.Dataset):
        kw = {"steps": 7, **kw}
    return tk.sample(model or mixture(), start, **kw, save=save, **QUIET)


def ladder(save=ALL, model=None, x=None, **kw) -> xr.Dataset:
    given = picture(2) if x is None else x
    return tk.ladder(model or mixture(), given, **{"steps": 7, **kw}, save=save, **QUIET)


# kind of run -> a function of what to save
RUNS = {
    "offsets": unsample,
    "offsets, guided": lambda s: unsample(s, x=picture(2), solver="dpmpp_2m", prompt=[0, 1], cfg=3.0),
    "offsets, flow": lambda s: unsample(s, model=mixture(tk.FLOW), end_at_step=1),
    "algebraic": lambda s: unsample(s, solver="obelm", normalize="channel"),
    "reverse": lambda s: unsample(s, solver="heun", inverse="reverse", normalize="global"),
    "masked": lambda s: unsample(s, mask=half_mask()),
    "sample": lambda s: sample(s, solver="euler_ancestral", prompt=1, cfg=2.0),
    "inpainting": lambda s: sample(s, picture(), solver="lms", mask=half_mask()),
    "replay": lambda s: sample(s, unsample()),
    "replay, algebraic": lambda s: sample(s, unsample(solver="obelm")),
    "ladder": lambda s: ladder(s, normalize="sample"),
    "ladder, shared": lambda s: ladder(s, coupling="shared", model=mixture(tk.FLOW)),
}
SOLVED = [name for name in RUNS if not name.startswith("ladder")]
UNSAMPLED = ["offsets", "offsets, guided", "offsets, flow", "algebraic", "reverse", "masked"]


def largest(step) -> dict:
    return {"largest": step.x.amax((1, 2, 3)), "hop": float(step.span.t - step.span.s), "seen": step.x}


SAVES = {
    "all": {},
    "every": {"every": 3},
    "latent": {"what": ["latent"]},
    "denoised": {"what": ["denoised"]},
    "neither": {"what": []},
    "float32": {"dtype": "float32"},
    "every in float32": {"every": 4, "dtype": "float32"},
    "fn": {"fn": largest},
}


@pytest.fixture(scope="module", params=RUNS)
def run(request) -> xr.Dataset:
    return RUNS[request.param](tk.Save())


def identical(got: xr.Dataset, want: xr.Dataset) -> None:
    xr.testing.assert_identical(got, want)
    assert {n: v.dtype for n, v in got.data_vars.items()} == {n: v.dtype for n, v in want.data_vars.items()}


# --- the schema ----


def test_dims_and_their_order(run):
    assert run.latent.dims == DIMS
    assert run.sizes["step"] == len(run.sigma)
    for name, variable in run.data_vars.items():
        order = [DIMS.index(d) for d in variable.dims]
        assert order == sorted(order), name
    assert "x" not in run.data_vars


def test_coordinates(run):
    assert set(run.indexes) == {
        "step",
        "sample",
        "channel",
        "y",
        "x",
    }  # sigma is none: grids repeat and differ
    assert set(run.coords) == {*DIMS, *RUNG}
    for name in RUNG:
        assert run[name].dims == ("step",)
        assert run[name].dtype == np.float64
    assert run.channel.values.tolist() == ["c0", "c1", "c2", "c3"]
    for name in ("step", "sample", "y", "x"):
        assert run[name].values.tolist() == list(range(run.sizes[name]))
    alpha = 1 - run.sigma if run.attrs["path"] == "FLOW" else xr.ones_like(run.sigma)
    np.testing.assert_allclose(run.alpha, alpha)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(run.log_snr, 2 * np.log(run.alpha / run.sigma), rtol=1e-12)


def test_every_variable_says_what_it_is(run):
    for name, variable in run.variables.items():
        assert set(variable.attrs) == {"long_name", "units"}, name
        assert all(isinstance(text, str) and text for text in variable.attrs.values()), name


def test_dtypes(run):
    floats = np.dtype("float32" if run.attrs["kind"] == "ladder" else "float64")
    assert run.latent.dtype == floats
    for name, variable in run.data_vars.items():
        wanted = {"latent": floats, "denoised": floats, "nfe": np.int64, "rows": np.int64}.get(
            name, np.float64
        )
        assert variable.dtype == wanted, name


def test_attributes_are_plain_json_without_a_clock(run):
    assert json.loads(json.dumps(run.attrs, allow_nan=False)) == run.attrs
    words = [word for key in run.attrs for word in key.split("_")]
    assert not {"time", "date", "created", "seconds", "host", "user"} & set(words)
    wanted = {
        "kind",
        "schedule",
        "path",
        "prediction",
        "direction",
        "seed",
        "latent_space",
        "model",
        "versions",
    }
    assert wanted <= set(run.attrs)
    assert {"toolkit", "torch", "diffusers"} == set(run.attrs["versions"])
    assert "stopped" not in run.attrs


def test_moments_are_those_of_the_latents(run):
    values = run.latent.values.astype(np.float64)
    np.testing.assert_allclose(run["mean"], values.mean((-2, -1)), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(run["std"], values.std((-2, -1)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", RUNS)
def test_two_runs_are_identical(name):
    identical(RUNS[name](tk.Save()), RUNS[name](tk.Save()))


# --- memory and store ----


@pytest.mark.parametrize("saved", SAVES)
@pytest.mark.parametrize("name", RUNS)
def test_memory_equals_store(name, saved, tmp_path):
    kept, store = SAVES[saved], tmp_path / "run.zarr"
    memory = RUNS[name](tk.Save(**kept))
    returned = RUNS[name](tk.Save(**kept, store=store))
    identical(returned, memory)
    identical(tk.open(store), memory)


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("name", ["offsets", "sample", "ladder"])
def test_sel_and_at(name, reopened, tmp_path):
    ds = RUNS[name](tk.Save(store=tmp_path / "run.zarr" if reopened else None))
    third = ds.sel(step=3)
    assert float(third.sigma) == float(ds.sigma[3])
    np.testing.assert_array_equal(third.latent, ds.latent.values[3])
    near = tk.at(ds, sigma=7)
    assert int(near.step) == int(np.abs(ds.sigma.values - 7).argmin())
    assert near.latent.dims == DIMS[1:]
    identical(near, ds.isel(step=int(near.step)))


@pytest.mark.parametrize("reopened", [False, True])
def test_a_replay_of_a_store_is_that_of_memory(reopened, tmp_path):
    for kw in ({}, {"solver": "obelm"}, {"mask": half_mask()}):
        store = tmp_path / f"{len(kw)}{next(iter(kw), '')}.zarr"
        up = unsample(tk.Save(store=store), **kw) if reopened else unsample(**kw)
        down = sample(start=tk.open(store) if reopened else up)
        assert relative(down.latent[-1].values, picture().numpy()) < 1e-9
        identical(down, sample(start=unsample(**kw)))


def relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def test_one_rung_is_read_without_the_others(tmp_path):
    store = tmp_path / "run.zarr"
    run = unsample(tk.Save(store=store)).load()
    for chunk in (store / "latent" / "c").iterdir():
        if chunk.name != "3":
            for file in (f for f in chunk.rglob("*") if f.is_file()):
                file.write_bytes(b"?")  # whoever reads this rung fails
    ds = tk.open(store)
    np.testing.assert_array_equal(ds.latent.sel(step=3), run.latent[3])
    np.testing.assert_array_equal(tk.at(ds, sigma=float(run.sigma[3])).latent, run.latent[3])
    with pytest.raises(Exception, match=r"."):
        ds.latent.sel(step=4).load()


def test_at_takes_the_first_of_equals_and_infinite_levels():
    ds = tk.sample(mixture(), sigmas=[4.0, 2.0, 2.0, 1.0, 0.0], **QUIET)
    assert int(tk.at(ds, sigma=2).step) == 1
    assert int(tk.at(ds, sigma=3).step) == 0  # as far from 4 as from 2
    assert int(tk.at(ds, log_snr=np.inf).step) == 4
    assert int(tk.at(ds, log_snr=1e9).step) == 3  # the infinite one is infinitely far
    flow = ladder(model=mixture(tk.FLOW))
    assert int(tk.at(flow, log_snr=-np.inf).step) == flow.sizes["step"] - 1
    assert int(tk.at(flow, alpha=0).step) == flow.sizes["step"] - 1
    assert int(tk.at(flow, step=2).step) == 2


# --- what is kept ----


@pytest.mark.parametrize("name", RUNS)
def test_every_keeps_the_axis_and_both_ends(name):
    full, thin = RUNS[name](tk.Save()), RUNS[name](tk.Save(every=4))
    last = full.sizes["step"] - 1
    kept = [i for i in range(last + 1) if i % 4 == 0 or i == last]
    between = [i for i in range(last + 1) if i not in kept]
    assert last % 4, "a last row that is kept anyway would show nothing"
    xr.testing.assert_identical(thin.drop_vars(["latent", "denoised"], errors="ignore"),
                                full.drop_vars(["latent", "denoised"], errors="ignore"))  # fmt: skip
    for kind in {"latent", "denoised"} & set(full):
        xr.testing.assert_identical(thin[kind].isel(step=kept), full[kind].isel(step=kept))
        assert np.isnan(thin[kind].isel(step=between)).all()


@pytest.mark.parametrize("kept", [k for k in SAVES if k != "all"])
@pytest.mark.parametrize("name", ["offsets", "offsets, flow", "algebraic"])
def test_what_a_replay_needs_is_always_kept_in_full(name, kept):
    ds = RUNS[name](tk.Save(**SAVES[kept]))
    stored = ds["aux" if name == "algebraic" else "offset"]
    assert stored.dtype == np.float64
    assert stored.sizes["step"] == ds.sizes["step"]
    replayed = slice(2, None)  # the rows that a hop of the solver leaves on the way down
    assert np.isfinite(stored[replayed]).all()
    assert (abs(stored[replayed]).max(DIMS[1:]) > 0).all()


@pytest.mark.parametrize("kept", ["every", "latent", "float32", "every in float32"])
@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "obelm"])
def test_a_thinned_record_replays(solver, kept):
    up = unsample(tk.Save(**SAVES[kept]), solver=solver)
    start = up.latent[0].values  # in float32 the record's own first row is what comes back
    assert relative(sample(start=up).latent[-1].values, start) < 1e-9


@pytest.mark.parametrize("what", [["latent"], ["denoised"], [], None])
def test_what(what):
    for make in (unsample, sample):
        ds = make(tk.Save(what=what))
        for name in ("latent", "denoised"):
            assert (name in ds) == (what is None or name in what)
        assert {"nfe", "rows", "mean", "std"} <= set(ds)


def test_fn_is_written_where_its_step_starts():
    ds = sample(tk.Save(fn=largest))
    assert ds.largest.dims == ("step", "sample")
    assert ds.hop.dims == ("step",)
    assert ds.seen.dims == DIMS
    np.testing.assert_array_equal(ds.seen[:-1], ds.latent[:-1])
    np.testing.assert_array_equal(ds.largest[:-1], ds.latent[:-1].max(("channel", "y", "x")))
    np.testing.assert_allclose(ds.hop[:-1], np.diff(ds.sigma), rtol=1e-12)
    assert np.isnan(ds.hop[-1])


@pytest.mark.parametrize("name", SOLVED)
def test_counters(name):
    ds = RUNS[name](tk.Save())
    for counter, total in (("nfe", "model_calls"), ("rows", "network_rows")):
        assert ds[counter][0] == 0
        assert (ds[counter].diff("step") >= 0).all()
        assert int(ds[counter][-1]) == ds.attrs[total] > 0
    pair = 2 if ds.attrs["cfg"] != 1.0 else 1
    np.testing.assert_array_equal(ds.rows, ds.nfe * pair * ds.sizes["sample"])


def test_counters_count_what_the_model_saw():
    calls = []
    model = tk.denoiser(lambda x, sigma: calls.append(len(x)) or 0.5 * x)
    ds = tk.unsample(model, picture(3), steps=4, **QUIET)
    assert (
        ds.attrs["model_calls"] == len(calls) == 3 * 2 + 3
    )  # midpoint up, euler down, no call in the hop to 0
    assert ds.attrs["network_rows"] == sum(calls)


# --- runs that do not end well ----


def failing(at: int, how, calls: list | None = None) -> tk.Denoiser:
    """A function whose call number `at`, from 0, answers `how(x0)`."""
    made = [] if calls is None else calls

    def fn(x, sigma):
        made.append(sigma)
        x0 = x / (1.0 + sigma * sigma)
        return how(x0) if len(made) == at + 1 else x0

    return tk.denoiser(fn)


def raising(exc: BaseException):
    def how(x0):
        raise exc

    return how


def all_nan(x0):
    return x0 * np.nan


def one_inf(x0):
    x0[0, 0, 0, 0] = np.inf
    return x0


# run of a model, and the rows it has when call 4 fails
CUT = {
    "reverse": (lambda m, s: unsample(s, m, inverse="reverse"), 5),
    "algebraic": (lambda m, s: unsample(s, m, solver="obelm"), 4),
    "sample": (lambda m, s: sample(s, model=m, shape=SHAPE), 4),
    "stochastic": (lambda m, s: sample(s, model=m, shape=SHAPE, solver="euler_ancestral"), 4),
    "first pass": (lambda m, s: unsample(s, m, via="euler"), 5),
}


def stopped(name: str, model, kind, store=None, **kept):
    with pytest.raises(kind) as caught:
        CUT[name][0](model, tk.Save(store=store, **kept))
    return caught.value


@pytest.mark.parametrize("spoil", [all_nan, one_inf])
@pytest.mark.parametrize("name", CUT)
def test_nan_stops_the_run(name, spoil, tmp_path):
    store, newest = tmp_path / "run.zarr", CUT[name][1]
    exc = stopped(name, failing(4, spoil), FloatingPointError)
    whole = CUT[name][0](failing(-1, spoil), tk.Save())
    ds = exc.dataset
    assert ds.sizes["step"] == newest + 1
    sigma = f"sigma {float(whole.sigma[newest + 1]):.6g}"
    stepper = ds.attrs["via" if name == "first pass" else "solver"]
    for part in (f"step {newest + 1}", sigma, f"solver {stepper}", "exc.dataset"):
        assert part in str(exc)
    assert f"stopped at row {newest} of 7" in ds.attrs["stopped"]
    assert np.isfinite(ds.latent).all()
    xr.testing.assert_equal(ds.latent, whole.latent[: newest + 1])
    xr.testing.assert_equal(ds.denoised[:newest], whole.denoised[:newest])
    kept = stopped(name, failing(4, spoil), FloatingPointError, store)
    assert f'tk.open("{store}")' in str(kept)
    identical(tk.open(store), ds)
    identical(kept.dataset, ds)


@pytest.mark.parametrize("spoil", [all_nan, one_inf])
@pytest.mark.parametrize("call", range(6, 12))
def test_nan_in_the_pass_that_records_offsets_stops_the_run(call, spoil):
    """Calls 0 to 5 climb; 6 to 11 look for the offsets, and those must not be NaN without a word."""
    with pytest.raises(FloatingPointError, match=r"step \d.*sigma .*solver") as caught:
        unsample(model=failing(call, spoil), via="euler")
    assert np.isfinite(caught.value.dataset.latent).all()
    assert "stopped" in caught.value.dataset.attrs


@pytest.mark.parametrize("spoil", [all_nan, one_inf])
def test_nan_in_a_replay_stops_it(spoil):
    up = unsample(model=failing(-1, spoil))
    with pytest.raises(FloatingPointError, match=r"step 3.*sigma .*solver euler") as caught:
        sample(model=failing(2, spoil), start=up)
    assert caught.value.dataset.sizes["step"] == 3


ENDS = [KeyboardInterrupt(), KeyboardInterrupt("enough"), RuntimeError("out of memory"), SystemExit(3)]


@pytest.mark.parametrize("exc", ENDS, ids=repr)
@pytest.mark.parametrize("name", CUT)
def test_whatever_stops_a_run_keeps_its_rows(name, exc, tmp_path):
    store, newest, kind = tmp_path / "run.zarr", CUT[name][1], type(exc)
    exc = kind(*exc.args)  # what is raised is written on
    whole = CUT[name][0](failing(-1, all_nan), tk.Save())
    again = kind(*exc.args)
    for made, where, how in ((exc, None, "exc.dataset"), (again, store, f'tk.open("{store}")')):
        caught = stopped(name, failing(4, raising(made)), kind, where)
        assert caught is made
        told = str(caught) if kind is KeyboardInterrupt else "".join(caught.__notes__)
        assert f"stopped at row {newest} of 7" in told
        assert how in told
        assert str(caught.dataset.attrs["stopped"]).startswith(f"stopped at row {newest} of 7")
        xr.testing.assert_equal(caught.dataset.latent, whole.latent[: newest + 1])
    identical(tk.open(store), exc.dataset)
    if kind is RuntimeError:
        assert str(exc) == "out of memory"


@pytest.mark.parametrize("kept", ["every", "latent", "float32", "fn"])
def test_a_cut_run_is_the_same_in_memory_and_store(kept, tmp_path):
    store = tmp_path / "run.zarr"
    memory = stopped("sample", failing(4, raising(KeyboardInterrupt())), KeyboardInterrupt, **SAVES[kept])
    stopped("sample", failing(4, raising(KeyboardInterrupt())), KeyboardInterrupt, store, **SAVES[kept])
    identical(tk.open(store), memory.dataset)


def test_a_cut_ladder_keeps_its_rungs(tmp_path, monkeypatch):
    whole, fill = ladder(), Keyed.fill

    def cut(self, out, rung, number=0):
        if rung == 4:
            raise KeyboardInterrupt
        return fill(self, out, rung, number)

    monkeypatch.setattr(Keyed, "fill", cut)
    with pytest.raises(KeyboardInterrupt, match=r"stopped at row 3 of 7.*exc\.dataset") as caught:
        ladder()
    xr.testing.assert_equal(caught.value.dataset.latent, whole.latent[:4])
    with pytest.raises(KeyboardInterrupt, match=r"tk\.open"):
        ladder(tk.Save(store=tmp_path / "run.zarr"))
    identical(tk.open(tmp_path / "run.zarr"), caught.value.dataset)


KILLED = """
    import os, signal, sys, torch
    import toolkit as tk
    calls = []
    def fn(x, sigma):
        calls.append(sigma)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return x / (1.0 + sigma * sigma)
    x = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    save = tk.Save(store=sys.argv[1])
    tk.unsample(tk.denoiser(fn), x, steps=7, inverse="reverse", progress=False, save=save)
"""


def python(code: str, *args) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, args)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def test_a_killed_process_leaves_a_store_that_opens(tmp_path):
    store = tmp_path / "run.zarr"
    done = python(KILLED, store)
    assert done.returncode == -9, done.stderr
    ds, whole = tk.open(store), unsample(model=failing(-1, all_nan), inverse="reverse")
    rows = ds.sizes["step"]
    assert 5 <= rows <= 6, "two rows to begin with, and four hops, of which the newest was being written"
    assert "unfinished" in ds.attrs["stopped"]
    for name in ("latent", "nfe", "rows", "mean", "std"):
        xr.testing.assert_equal(ds[name], whole[name][:rows])
    xr.testing.assert_equal(ds.denoised[: rows - 1], whole.denoised[: rows - 1])
    for name, value in whole.attrs.items():
        if name not in ("model_calls", "network_rows"):
            assert ds.attrs[name] == value
    with pytest.raises(ValueError, match="not finished"):
        sample(model=failing(-1, all_nan), start=ds)


WITHOUT_TORCH = """
    import json, sys
    sys.modules["torch"] = None
    import toolkit as tk
    ds = tk.open(sys.argv[1])
    widget = tk.view(ds)
    page = tk.to_html(ds, sys.argv[2])
    flat = tk.normalized(ds, "channel")
    out = {
        "at": int(tk.at(ds, sigma=7).step),
        "latent": ds.latent.values.tolist(),
        "normalized": flat.latent[-1].values.tolist(),
        "moments": sorted(tk.diagnostics.moments(ds).data_vars),
        "std": tk.diagnostics.moments(ds)["std"].values.tolist(),
        "view": type(widget).__name__,
    }
    print(json.dumps(out))
"""


def test_a_store_is_read_without_torch(tmp_path):
    store, page = tmp_path / "run.zarr", tmp_path / "run.html"
    run = unsample(tk.Save(store=store), normalize="channel")
    done = python(WITHOUT_TORCH, store, page)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["at"] == int(tk.at(run, sigma=7).step)
    np.testing.assert_array_equal(got["latent"], run.latent)
    np.testing.assert_array_equal(got["normalized"], tk.normalized(run, "channel").latent[-1])
    moments = tk.diagnostics.moments(run)
    assert got["moments"] == sorted(moments.data_vars)
    np.testing.assert_array_equal(got["std"], moments["std"])
    assert got["view"]
    assert "<html" in page.read_text()


# --- normalising ----

AXES = {"global": (0, 1, 2, 3), "sample": (1, 2, 3), "channel": (2, 3)}


@pytest.mark.parametrize("kind", ["unsample", "ladder"])
@pytest.mark.parametrize("mode", AXES)
def test_normalized_by_hand(mode, kind):
    make = {"unsample": lambda **kw: unsample(x=picture(2), **kw), "ladder": ladder}[kind]
    raw, asked = make(), make(normalize=mode)
    flat = tk.normalized(raw, mode)
    xr.testing.assert_identical(asked.latent, raw.latent)  # the raw states, whatever was asked
    rounding = 1e-12 if kind == "unsample" else 1e-6  # rungs are kept in float32
    for name in ("shift", "scale"):
        np.testing.assert_allclose(asked[name], flat[name], rtol=rounding, atol=rounding)
    values, rows = raw.latent.values.astype(np.float64), range(raw.sizes["step"])
    touched = rows if kind == "ladder" else rows[-1:]
    for row in rows:
        x = values[row]
        if row in touched:
            shift, scale = (f(x, axis=AXES[mode], keepdims=True, **ddof)
                            for f, ddof in ((np.mean, {}), (np.std, {"ddof": 1})))  # fmt: skip
            x = (x - shift) / scale
            got = flat if kind == "unsample" else flat.isel(step=row)
            np.testing.assert_allclose(got["shift"], np.broadcast_to(shift[..., 0, 0], (2, 4)), rtol=1e-6)
            np.testing.assert_allclose(got["scale"], np.broadcast_to(scale[..., 0, 0], (2, 4)), rtol=1e-6)
        np.testing.assert_allclose(flat.latent[row], x, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(flat["std"][row], x.std((-2, -1)), rtol=1e-5)
    assert flat.attrs["normalized"] == mode
    assert list(flat["shift"].dims) == (["step"] if kind == "ladder" else []) + ["sample", "channel"]


def test_normalizing_off_changes_nothing_and_twice_is_refused():
    raw = unsample()
    xr.testing.assert_equal(tk.normalized(raw, "off"), raw)
    for mode in (*AXES, "off"):
        with pytest.raises(ValueError, match="normalised already"):
            tk.normalized(tk.normalized(raw, "global"), mode)


def test_a_flat_image_is_not_divided_by_zero():
    flat = tk.normalized(ladder(x=torch.ones(SHAPE), end_at_step=7, steps=7), "channel")
    assert np.isfinite(flat.latent).all()
    assert (flat["scale"][0] == 1).all()


# --- ladders ----

SIDE = 192  # so many pixels that 5 standard errors are 2.6 %


@pytest.mark.parametrize("coupling", ["independent", "shared", "markov"])
@pytest.mark.parametrize("path", [tk.VE, tk.FLOW], ids=repr)
def test_marginals(path, coupling):
    model = tk.denoiser(lambda x, sigma: x, path=path)
    x = picture(2, shape=(1, SIDE, SIDE)) + 0.5
    ds = tk.ladder(model, x, steps=9, coupling=coupling, save=tk.Save(dtype="float64"), **QUIET)
    noise = (ds.latent - ds.alpha * xr.DataArray(x.numpy(), dims=DIMS[1:])) / ds.sigma
    noise, count = noise.transpose(*DIMS).values[1:, :, 0], SIDE * SIDE
    assert np.abs(noise.mean((-2, -1))).max() < 5 / np.sqrt(count)
    assert np.abs(noise.std((-2, -1)) - 1).max() < 5 / np.sqrt(2 * count)
    rungs = noise.transpose(1, 0, 2, 3).reshape(2, 9, -1)
    between = np.abs(np.corrcoef(rungs.reshape(18, -1)) - np.eye(18))
    if coupling == "independent":
        assert between.max() < 5 / np.sqrt(count)
    elif coupling == "markov":
        with np.errstate(divide="ignore", invalid="ignore"):
            rho = (ds.sigma / ds.alpha).values[1:]  # infinite at FLOW's sigma 1, where nothing stays
            expected = np.minimum(rho[:, None] / rho, rho / rho[:, None])
        np.fill_diagonal(expected, 1.0)
        for sample in rungs:
            assert np.abs(np.corrcoef(sample) - expected).max() < 5 / np.sqrt(count)
        assert np.abs(np.corrcoef(*rungs[:, 4])[0, 1]) < 5 / np.sqrt(count)
        # what comes on top of a rung knows nothing of it, nor of the rungs below
        fresh = rungs[0, 6] - expected[6, 5] * rungs[0, 5]
        assert np.abs(np.corrcoef([fresh, *rungs[0, :6]])[0, 1:]).max() < 5 / np.sqrt(count)
    else:
        assert np.abs(rungs - rungs[:, :1]).max() < 1e-10
        assert between[:9, 9:].max() < 5 / np.sqrt(count)  # the samples of a batch stay independent
    np.testing.assert_array_equal(ds.latent[0], x)


def test_given_noise_is_used():
    noise = torch.randn((8, 2, *SHAPE[1:]), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ds = ladder(noise=noise, save=tk.Save(dtype="float64"))
    sigma = torch.from_numpy(ds.sigma.values)[:, None, None, None, None]
    np.testing.assert_array_equal(ds.latent, picture(2)[None] + sigma * noise)
    assert ds.attrs["coupling"] == "given"
    again = ladder(noise=noise.numpy(), save=tk.Save(dtype="float64"))
    identical(again, ds)


@pytest.mark.parametrize("coupling", ["independent", "shared", "markov"])
@pytest.mark.parametrize("start, end, every", [(0, None, 1), (0, None, 3), (2, None, 1), (0, 9, 1), (2, 9, 2),
                                               (3, 10, 4), (9, 10, 1), (0, 12, 50)])  # fmt: skip
def test_a_part_of_a_ladder_has_the_bits_of_the_whole(start, end, every, coupling):
    kw = {"steps": 12, "coupling": coupling, "normalize": "channel"}
    whole, part = ladder(**kw), ladder(**kw, start_at_step=start, end_at_step=end, every=every)
    lowest, top = 12 - (12 if end is None else end), 12 - start
    rows = [*range(lowest, top, every), top]
    assert part.sizes["step"] == len(rows)
    for name in ("latent", "mean", "std", "shift", "scale", *RUNG):
        np.testing.assert_array_equal(part[name], whole[name].isel(step=rows), err_msg=name)


@pytest.mark.parametrize("coupling", ["independent", "shared", "markov"])
def test_a_batch_is_its_samples(coupling):
    three = ladder(x=picture(3), coupling=coupling, normalize="sample")
    for count in (1, 2):
        fewer = ladder(x=picture(3)[:count], coupling=coupling, normalize="sample")
        identical(fewer, three.isel(sample=slice(0, count)))


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_moments_of_a_large_ladder_are_those_of_its_rungs_in_float32(offset):
    """Where means are small, sums are in float32 for a while: 1e-7 of the std; elsewhere they are exact."""
    x = torch.randn((2, 3, 48, 32), generator=torch.Generator().manual_seed(0)) + offset
    ds = tk.ladder(
        tk.denoiser(lambda x, sigma: x), x, schedule="karras", steps=12, normalize="global", **QUIET
    )
    values = ds.latent.values.astype(np.float64)
    np.testing.assert_allclose(ds["std"], values.std((-2, -1)), rtol=1e-7)
    np.testing.assert_allclose((ds["mean"] - values.mean((-2, -1))) / ds["std"], 0, atol=1e-7)
    np.testing.assert_allclose(ds["scale"][:, 0, 0], values.std((1, 2, 3, 4), ddof=1), rtol=1e-7)


@pytest.mark.parametrize("path", [tk.VE, tk.FLOW], ids=repr)
@pytest.mark.parametrize("shift", [0.0, 0.1159])
def test_a_ladder_in_the_space_of_the_vae_is_that_of_the_model_converted(path, shift):
    model, x = mixture(path), picture(2)
    model.latent_scale, model.latent_shift = 0.18215, shift
    kw = {"steps": 6, "normalize": "channel", "save": tk.Save(dtype="float64"), **QUIET}
    there = tk.ladder(model, x, **kw)
    here = tk.ladder(model, x / 0.18215 + shift, latent_space="vae", **kw)
    assert (there.attrs["latent_space"], here.attrs["latent_space"]) == ("model", "vae")
    xr.testing.assert_allclose(tk.in_space(there, "vae"), here, rtol=1e-12, atol=1e-12)
    xr.testing.assert_allclose(tk.in_space(here, "model"), there, rtol=1e-12, atol=1e-12)
    assert tk.in_space(here, "model").attrs == there.attrs
    np.testing.assert_array_equal(here.sigma, there.sigma)
    assert float(here["scale"][-1].mean() * 0.18215) == pytest.approx(float(there["scale"][-1].mean()))
    with pytest.raises(ValueError, match='latent_space="model"'):
        tk.ladder(model, x, latent_space="modle", **QUIET)


@pytest.mark.parametrize("mode", ["off", *AXES])
def test_a_ladder_stores_what_its_mode_would_do_to_every_row(mode):
    ds = ladder(normalize=mode)
    assert ds["shift"].dims == ds["scale"].dims == DIMS[:3]
    x = ds.latent.values.astype(np.float64)
    axes = tuple(a + 1 for a in AXES.get(mode, ()))
    shift = x.mean(axes, keepdims=True) if axes else np.zeros_like(x)
    scale = x.std(axes, ddof=1, keepdims=True) if axes else np.ones_like(x)
    for name, want in (("shift", shift), ("scale", scale)):
        np.testing.assert_allclose(ds[name], np.broadcast_to(want, x.shape)[..., 0, 0], rtol=1e-5, atol=1e-6)


def test_a_ladder_asks_no_model():
    calls = []
    ds = tk.ladder(tk.denoiser(lambda x, sigma: calls.append(1) or x), picture(), steps=4, **QUIET)
    assert calls == []
    assert (ds.nfe == 0).all()
    assert (ds.rows == 0).all()
    assert "denoised" not in ds


# --- noise ----


def test_the_key_is_what_the_record_of_a_seed_means():
    """Written out, since a recorded run is repeated from its seed."""
    h = int.from_bytes(hashlib.sha256(b"-12").digest()[:4], "big")
    assert key(-12, 3, 17, 2) == (h + ((3 * 4 + 2) << 16) + 17) % 2**32
    made = torch.Generator().manual_seed(key(5, 1, 4, 0))
    want = torch.randn(SHAPE[1:], generator=made)
    np.testing.assert_array_equal(Keyed(5, (2, *SHAPE[1:]), torch.float32).draw(4)[1], want)


def test_no_two_keys_are_equal():
    keys = {
        key(0, sample, rung, draw) for sample in range(5) for rung in range(10_000) for draw in range(DRAWS)
    }
    assert len(keys) == 5 * 10_000 * DRAWS
    assert len({key(seed, 0, 0, START) for seed in range(1_000)}) == 1_000


def test_no_two_draws_are_equal():
    noise = Keyed(0, (5, 1, 1, 4), torch.float32)
    drawn = torch.stack([noise.draw(rung) for rung in range(10_000)]).reshape(50_000, 4)
    assert len(torch.unique(drawn, dim=0)) == 50_000


def test_noise_depends_on_no_batch_dtype_or_generator():
    full = Keyed(1, (4, *SHAPE[1:])).draw(6)
    state = torch.get_rng_state()
    for samples in (1, 3):
        np.testing.assert_array_equal(Keyed(1, (samples, *SHAPE[1:])).draw(6), full[:samples])
    for dtype in (torch.float32, torch.float16):
        assert torch.equal(Keyed(1, (4, *SHAPE[1:]), dtype).draw(6), full.to(dtype))
    assert torch.equal(full, full.float().double())  # drawn in float32
    torch.manual_seed(99)
    assert torch.equal(Keyed(1, (4, *SHAPE[1:])).draw(6), full)
    torch.set_rng_state(state)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    sample(solver="euler_ancestral")
    ladder()
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_of_a_rung_come_in_order_and_again():
    noise = Keyed(2, SHAPE)
    first, second = noise.at(5), noise.at(5)
    drawn = [first(1.0, 0.5) for _ in range(DRAWS)]
    for number, one in enumerate(drawn):
        assert torch.equal(one, second(1.0, 0.5))
        assert torch.equal(one, noise.draw(5, number))
    assert torch.equal(noise.start(), noise.draw(0, START))


def test_limits_of_the_keys():
    one = Keyed(0, (1, 1, 1, 1))
    one.draw(RUNGS - 1, DRAWS - 1)
    for rung, draw in ((RUNGS, 0), (0, DRAWS)):
        with pytest.raises(ValueError, match=r"keys would repeat.*Try: "):
            one.draw(rung, draw)
    asked = one.at(0)
    for _ in range(DRAWS):
        asked(1.0, 0.0)
    with pytest.raises(ValueError, match="keys would repeat"):
        asked(1.0, 0.0)
    Keyed(0, (SAMPLES, 1, 1, 1))
    with pytest.raises(ValueError, match=r"samples=16385.*Try: "):
        Keyed(0, (SAMPLES + 1, 1, 1, 1))


# --- rows that are added as the solver chooses its levels ----


def test_rows_that_grow_take_everything_that_is_asked_of_them(mixture, images, tmp_path):
    """dpm_adaptive at cfg 7.5 doubles its room several times: counters, every third row, what `fn` adds."""
    asked = {"solver": "dpm_adaptive", "prompt": 0, "negative": 1, "cfg": 7.5, "progress": False}
    keep = {"fn": lambda step: {"largest": step.x.amax((1, 2, 3))}, "every": 3}
    kept = tk.unsample(mixture, images["in"], **asked, save=tk.Save(**keep))
    rows = kept.sizes["step"]
    assert rows > 64
    assert np.isfinite(kept.largest[1:-1]).all()
    assert (np.diff(kept.nfe) >= 0).all()
    assert kept.sigma.dims == ("step",)
    np.testing.assert_array_equal(kept.step, np.arange(rows))
    store = tk.unsample(
        mixture, images["in"], **asked, save=tk.Save(store=tmp_path / "run.zarr", dtype=None, **keep)
    )
    xr.testing.assert_identical(kept, store)
    xr.testing.assert_identical(store, tk.open(tmp_path / "run.zarr"))


@pytest.mark.parametrize("stored", [False, True])
def test_a_run_that_chooses_its_levels_keeps_what_it_had(mixture, images, tmp_path, stored):
    model, calls = tk.guide(mixture, 0), 0

    def fail(x, sigma):
        nonlocal calls
        calls += 1
        if calls > 40:
            raise KeyboardInterrupt
        return model.denoise(x, sigma).x0

    save = tk.Save(store=tmp_path / "run.zarr") if stored else tk.Save()
    broken = tk.denoiser(fail, mixture.path, mixture.levels)
    solver = tk.solver("dpm_adaptive", rtol=1e-3, atol=1e-3)
    with pytest.raises(KeyboardInterrupt) as stopped:
        tk.unsample(broken, images["in"], solver=solver, save=save, progress=False)
    part = tk.open(tmp_path / "run.zarr") if stored else stopped.value.dataset
    assert "stopped" in part.attrs
    assert part.sizes["step"] > 5
    assert np.isfinite(part.latent).all()
    assert np.all(np.diff(part.sigma) > 0)
    whole = tk.unsample(mixture, images["in"], solver=solver, prompt=0, progress=False)
    np.testing.assert_array_equal(part.latent, whole.latent[: part.sizes["step"]])
