"""What holds for every diagnostic of rungs: labels, small and large runs, stores that are not read whole."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import xarray as xr
from test_diagnose_noise import mixed, white

import toolkit as tk
from toolkit.dataset import LATENT

D = tk.diagnostics

# name -> a call of each; all need a clean row but the last three
CALLS = {
    "residual_noise": D.residual_noise,
    "normality": D.normality,
    "normality, channels": lambda ds: D.normality(ds, per="channel"),
    "texture_error": lambda ds: D.texture_error(ds, quantile=0.5),
    "texture_error, reference": lambda ds: D.texture_error(ds, ds, quantile=0.5),
    "image_correlation": D.image_correlation,
    "autocorrelation": D.autocorrelation,
    "power_spectrum": D.power_spectrum,
    "rung_correlation": lambda ds: D.rung_correlation(ds, every=2),
    "cosine_matrix": lambda ds: D.cosine_matrix(ds, every=2),
    "moments": D.moments,
    "moments, samples": lambda ds: D.moments(ds, per="sample"),
}
every_call = pytest.mark.parametrize("name", CALLS)


def same(a: xr.Dataset, b: xr.Dataset, rtol: float = 1e-9) -> None:
    """Two results with the same labels and, up to rounding, the same numbers."""
    assert a.attrs == b.attrs and list(a.variables) == list(b.variables)
    for name in a.variables:
        assert a[name].dims == b[name].dims and a[name].attrs == b[name].attrs, name
        if a[name].dtype.kind == "f":
            np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=rtol, err_msg=name)
        else:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A ladder of 600 rungs in memory, and the path of its store."""
    path = tmp_path_factory.mktemp("ladder") / "rungs.zarr"
    means = np.random.default_rng(0).standard_normal((2, 4, 32, 32))
    model, image = tk.GaussianMixture(means, 0.5), means[:1].astype(np.float32)
    save = tk.Save(store=path, dtype="float32")
    tk.ladder(model, image, steps=600, schedule="karras", save=save, progress=False)
    return tk.open(path).load(), path


@every_call
def test_everything_is_labelled(name):
    ds = tk.testing.ladder_dataset(samples=2)
    found = CALLS[name](ds)
    kind = name.split(",")[0]
    assert found.attrs["kind"] == kind and found.attrs[f"{kind}_of"] == "ladder"
    assert found.attrs == found.attrs | {k: v for k, v in ds.attrs.items() if k != "kind"}
    for label, variable in found.variables.items():
        assert variable.attrs["long_name"] and variable.attrs["units"], label
        # the field's own order, with what is new behind
        known = [dim for dim in variable.dims if dim in LATENT]
        assert known == [dim for dim in LATENT if dim in known], label
    numbers = [v for v in found.data_vars.values() if "step" in v.dims]
    assert numbers and all(v.dtype == (np.float32 if v.name == "noise" else np.float64) for v in numbers)
    assert all("sigma" in v.coords for v in numbers)
    assert "latent" not in found


@every_call
def test_the_run_is_left_as_it_was(name):
    ds = tk.testing.unsample_dataset(samples=2)
    before = ds.copy(deep=True)
    CALLS[name](ds)
    xr.testing.assert_identical(ds, before)


@every_call
def test_samples_do_not_know_of_each_other(name):
    ds = tk.testing.unsample_dataset(samples=3)
    whole, alone = CALLS[name](ds), CALLS[name](ds.isel(sample=[1]))
    assert whole.sizes["sample"] == 3
    same(whole.isel(sample=[1]), alone)


@every_call
def test_any_order_of_dimensions(name):
    ds = tk.testing.unsample_dataset(samples=2, size=12)
    same(CALLS[name](ds.transpose("x", "channel", "step", "y", "sample")), CALLS[name](ds))


@every_call
@pytest.mark.parametrize(
    "size", [(1, 1, 1, 1), (1, 2, 1, 1), (2, 1, 1, 6), (1, 3, 5, 1), (1, 2, 2, 2), (1, 1, 9, 14)]
)
@pytest.mark.parametrize("rungs", [1, 2, 3])
def test_small_runs(name, size, rungs):
    """One pixel, one channel, one rung: numbers where there are any, never an exception or a warning."""
    sigma = [0.0, 0.7, 2.0][:rungs]
    found = CALLS[name](mixed(white(rungs, *size), white(*size, seed=1), sigma))
    kept = -(-rungs // 2) if name in ("rung_correlation", "cosine_matrix") else rungs
    assert found.sizes.get("step", rungs) == kept
    bare = CALLS[name](mixed(np.full((rungs, *size), np.nan), white(*size, seed=1), sigma))
    assert set(bare.variables) == set(found.variables)


@every_call
def test_constant_channels_warn_of_nothing(name):
    clean = white(1, 3, 8, 8, seed=1)
    clean[0, 1] = 0.1
    noise = white(3, 1, 3, 8, 8)
    noise[1, 0, 1] = 0.0
    noise[2] = 0.0
    found = CALLS[name](mixed(noise, clean, [0.0, 0.5, 2.0]))
    assert found.sizes["sample"] == 1


@every_call
def test_a_store_gives_what_memory_gives(name, recorded, monkeypatch):
    ds, path = recorded
    want = CALLS[name](ds)
    for part in ("common.BLOCK", "correlation.OUTER"):  # blocks that do not divide the run
        monkeypatch.setattr(f"toolkit.diagnostics.{part}", 7 * 4096)
    opened = tk.open(path)
    same(CALLS[name](opened), want)
    assert not opened.latent.variable._in_memory  # and has not been kept on the way


# residual_noise gives a result as large as the run
@pytest.mark.parametrize("name", [name for name in CALLS if name != "residual_noise"])
def test_memory_is_bounded(name, recorded, monkeypatch):
    ds, path = recorded
    monkeypatch.setattr("toolkit.diagnostics.common.BLOCK", 4 * 4096)  # 128 KiB
    monkeypatch.setattr("toolkit.diagnostics.correlation.OUTER", 32 * 4096)  # of a matrix: 1 MiB, held
    opened = tk.open(path)
    CALLS[name](opened.isel(step=slice(0, 8)))  # what is loaded once
    tracemalloc.start()
    try:
        found = CALLS[name](opened)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ds.latent.nbytes > 9.8e6
    # the result, and a block as it is read, in float64 and on its way through the formula
    assert peak < 3 * found.nbytes + 3e6


def test_blocks_are_rungs_in_order():
    ds = tk.testing.ladder_dataset(steps=9, size=4)
    seen = list(D.common.blocks(ds.latent.transpose("x", ...), 3 * 64))
    assert [(part.start, part.stop) for part, _ in seen] == [(0, 3), (3, 6), (6, 9), (9, 10)]
    np.testing.assert_array_equal(np.concatenate([values for _, values in seen]), ds.latent)
    assert all(values.dtype == np.float64 for _, values in seen)
    # a rung that is larger than a block comes alone
    assert [part.stop for part, _ in D.common.blocks(ds.latent, 1)] == list(range(1, 11))


def test_without_torch():
    code = (
        "import sys\n"
        "class Hide:\n"  # not `sys.modules['torch'] = None`, which SciPy's statistics take for torch
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch':\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "import toolkit as tk\n"
        "D, ds = tk.diagnostics, tk.testing.ladder_dataset(steps=3)\n"
        "for f in (D.residual_noise, D.normality, D.texture_error, D.image_correlation, D.autocorrelation,\n"
        "          D.power_spectrum, D.rung_correlation, D.cosine_matrix):\n"
        "    f(ds)\n"
        "print('all')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "all"
