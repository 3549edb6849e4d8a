"""Seeded Datasets of every kind: the schema of a real run, and everything that takes a run takes them."""

import json

import numpy as np
import pytest
import xarray as xr

import toolkit as tk

KINDS = ("ladder", "unsample", "sample", "regional", "round_trip")
RUNS = KINDS[:-1]
PATHS = {"VE": tk.VE, "FLOW": tk.FLOW}
STEPS, SIZE, SAMPLES = 6, 8, 2
SHAPE = (SAMPLES, 4, SIZE, SIZE)


def made(kind, path="VE", **options):
    sizes = {"steps": STEPS, "size": SIZE, "samples": SAMPLES} | options
    return getattr(tk.testing, f"{kind}_dataset")(path=PATHS[path], **sizes)


@pytest.fixture(scope="module")
def real():
    """A real run of each kind, of a closed-form model: by kind and path."""
    done = {}
    for name, path in PATHS.items():
        means = np.random.default_rng(0).standard_normal((2, 3, *SHAPE[1:]))  # two prompts
        model = tk.GaussianMixture(means, 0.3, path=path)
        x = np.random.default_rng(1).standard_normal(SHAPE)
        left = tk.box(0.0, 0.0, 0.5, 1.0, size=SHAPE[2:])
        regions = [tk.Region(left, prompt=0, name="left"), tk.Region(1 - left, prompt=1, name="right")]
        options = {"steps": STEPS, "progress": False}
        up = tk.unsample(model, x, inverse="reverse", **options)
        done[name] = {
            "ladder": tk.ladder(model, x, coupling="shared", **options),
            "unsample": up,
            "sample": tk.sample(model, up, progress=False),
            "regional": tk.regional(model, regions, shape=SHAPE, **options),
            "round_trip": tk.round_trip(model, x, inverse="reverse", truth=False, **options),
        }
    return done


def schema(ds):
    """Dimensions and dtype of every variable and coordinate, what they say of themselves, sizes."""
    told = {name: (v.dims, v.dtype, sorted(v.attrs)) for name, v in ds.variables.items()}
    return told, set(ds.coords), dict(ds.sizes)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_they_have_the_schema_of_a_real_run(real, kind, path):
    ours, theirs = made(kind, path), real[path][kind]
    assert schema(ours) == schema(theirs)
    assert set(ours.attrs) == set(theirs.attrs)
    for name in ("kind", "direction", "path", "steps", "solver", "inverse", "via", "start", "normalize",
                 "bottom", "mode", "truth", "bitwise", "edited", "coupling"):  # fmt: skip
        assert ours.attrs.get(name) == theirs.attrs.get(name)
    for name, variable in ours.data_vars.items():
        if name != "region_mask" and kind != "round_trip":
            assert variable.attrs == theirs[name].attrs


@pytest.mark.parametrize("kind", RUNS)
def test_they_are_missing_where_a_real_run_is(real, kind):
    ours, theirs = made(kind), real["VE"][kind]
    for name in ("denoised", "seam_gradient"):
        if name in ours:
            some = [dim for dim in ours[name].dims if dim != "step"]
            assert (
                ours[name].isnull().all(some).values.tolist()
                == theirs[name].isnull().all(some).values.tolist()
            )
    assert ours.nfe.values.tolist() == theirs.nfe.values.tolist()


def test_what_a_record_says_of_a_region_is_what_a_real_one_says(real):
    ours, theirs = made("regional").attrs["regions"], real["VE"]["regional"].attrs["regions"]
    assert [list(told) for told in ours] == [list(told) for told in theirs]
    for one, other in zip(ours, theirs, strict=True):
        free = {"span", "active", "prompt"}
        assert {k: v for k, v in one.items() if k not in free} == {
            k: v for k, v in other.items() if k not in free
        }


@pytest.mark.parametrize("path", PATHS)
def test_regions_share_the_answer(path):
    run = made("regional", path)
    np.testing.assert_allclose(run.weight.sum("region"), 1.0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(run.region_mask.sum("region"), 1.0, rtol=0, atol=1e-12)
    late = (run.weight.sel(region="right") > 0).all(("y", "x")).values
    assert late.tolist() == [False] * 3 + [True] * 4  # joins below the middle
    assert run.conflict.sel(region="right").isnull().all("sample").values.tolist() == [True] * 3 + [
        False
    ] * 3 + [True]
    assert float(run.conflict.min()) > 0
    asked = late[:-1].astype(int) + 2
    assert run.rows.values.tolist() == [0, *np.cumsum(asked * SAMPLES)]
    levels = run.sigma.values.tolist()
    assert run.attrs["regions"][1]["span"] == [levels[3], 0.0] and run.attrs["grid"] == levels


def test_the_way_back_returns_the_picture():
    up, down, trip = made("unsample"), made("sample"), made("round_trip")
    assert np.array_equal(up.latent[::-1][:-1], down.latent[:-1])
    given, returned = up.latent[0].values, down.latent[-1].values
    assert np.array_equal(trip.given, given) and np.array_equal(trip.returned, returned)
    flat = [np.linalg.norm((v).reshape(SAMPLES, -1), axis=1) for v in (returned - given, given)]
    np.testing.assert_allclose(trip.error, flat[0] / flat[1], rtol=1e-12)
    assert float(trip.error.min()) > 1e-4 and float(trip.error.max()) < 0.1
    assert np.array_equal(trip.calls, [up.attrs["model_calls"], down.attrs["model_calls"]])


@pytest.mark.parametrize("kind", RUNS)
def test_on_a_flow_the_picture_is_gone_at_the_top(kind):
    run = made(kind, "FLOW")
    top, low = int(run.sigma.values.argmax()), int(run.sigma.values.argmin())
    assert float(run.sigma[top]) == 1.0 and float(run.sigma[low]) == 0.0
    assert np.array_equal(run.alpha, 1 - run.sigma)
    other = made(kind, "FLOW", seed=1)
    noise = run.latent[top].values
    assert abs(noise.mean()) < 0.2 and 0.85 < noise.std() < 1.15
    assert abs(np.corrcoef(noise.ravel(), other.latent[top].values.ravel())[0, 1]) < 0.2
    assert np.isfinite(run.latent).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_is_a_dataset(kind):
    assert made(kind).identical(made(kind)) and not made(kind).equals(made(kind, seed=1))
    attrs = made(kind).attrs
    assert json.loads(json.dumps(attrs)) == attrs
    function = getattr(tk.testing, f"{kind}_dataset")
    for name in ("steps", "size", "samples"):
        for value in (0, 1.5, True):
            with pytest.raises(ValueError, match=rf"{name}=.*Try: tk\.testing\.{kind}_dataset\("):
                function(**{name: value})
    with pytest.raises(TypeError, match=r"path='FLOW'.*path=tk\.FLOW\)"):
        function(path="FLOW")
    assert function(steps=1, size=4).sizes["sample"] == 1


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_they_come_back_from_disk(tmp_path, kind, path):
    ds = made(kind, path)
    tk.to_netcdf(ds, tmp_path / "run.nc")
    xr.testing.assert_identical(tk.open(tmp_path / "run.nc").load(), ds)
    ds.to_zarr(tmp_path / "run.zarr", consolidated=False)
    back = xr.open_zarr(tmp_path / "run.zarr", consolidated=False).load()
    one, other = (d.assign_coords({k: v.astype(object) for k, v in d.coords.items()}) for d in (back, ds))
    xr.testing.assert_equal(one, other)
    assert back.attrs == ds.attrs


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", RUNS)
def test_they_are_viewed_paged_found_and_measured(tmp_path, kind, path):
    ds = made(kind, path)
    view = tk.view(ds)
    assert view._run["steps"] == STEPS + 1
    assert tk.to_html(ds, tmp_path / "run.html").stat().st_size > 50_000
    level = float(ds.sigma[2])
    assert float(tk.at(ds, sigma=level).sigma) == level
    table = tk.diagnostics.moments(ds)
    np.testing.assert_allclose(table["std"], ds["std"], rtol=1e-6)
    assert tk.views.contact_sheet(ds)[1:4] == b"PNG"
    if kind == "ladder" or path == "VE":
        flat = tk.normalized(ds, "channel")
        assert abs(float(flat.latent[-1].mean())) < 1e-6


def test_a_round_trip_is_no_run_to_look_through():
    with pytest.raises(ValueError, match=r"`latent` to draw.*Try: tk\.view"):
        tk.view(made("round_trip"))
