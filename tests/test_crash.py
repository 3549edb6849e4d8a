"""Runs that are killed while they write: the store opens, what is flagged is right, the same call goes on."""

import functools
import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from crashing import RUNS, Killer

import toolkit as tk

SLOW = 0.002  # seconds that a model call takes: kills land between two hops as well as within a write
SWEPT = {"ladder, independent": 8, "offsets": 3, "growing": 2}  # a kill at every write, and the steps of it


@pytest.fixture(scope="module")
def killer():
    with Killer() as process:
        yield process


@functools.cache
def whole(name: str, steps: int | None = None, **kept) -> xr.Dataset:
    """The run that nothing stops, in memory."""
    return RUNS[name](steps=steps, **kept)


def flagged(store: Path, name: str, steps: int | None = None) -> int:
    """Rows of a store that was cut off, each of which is right; -1 where there is no store yet."""
    if not store.exists():
        return -1
    ds, ended = tk.open(store).load(), whole(name, steps)
    full, rows = whole(name, steps, every=1), ds.sizes["step"]
    for kind in ("step", "sigma", "timestep", "alpha", "log_snr", "mean", "std", "shift", "scale"):
        if kind in ds and "step" in ds[kind].dims:
            np.testing.assert_array_equal(ds[kind], ended[kind][:rows], err_msg=kind)
    if "latent" in ds:
        kept = slice(0, rows, RUNS[name].kept.get("every", 1))
        np.testing.assert_array_equal(ds.latent[kept], ended.latent[:rows][kept])
        assert ds.latent[kept].notnull().all()
    # what comes with the hop behind a row, or is not kept, may be missing: but it is never wrong
    for kind in {"latent", "denoised", "aux", "largest", "hop", "seen"} & set(ds):
        there = ds[kind].notnull() & ((kind != "aux") | (ds[kind] != 0))
        xr.testing.assert_equal(ds[kind].where(there), full[kind][:rows].where(there))
    for kind in ("nfe", "rows") if RUNS[name].passes == 1 else ():
        np.testing.assert_array_equal(ds[kind], ended[kind][:rows])
    if "stopped" not in ds.attrs:
        xr.testing.assert_identical(ds, ended)
    return rows


def goes_on(store: Path, name: str, steps: int | None = None) -> None:
    """The same call makes the same run, and leaves nothing else."""
    xr.testing.assert_identical(RUNS[name](store, steps).load(), whole(name, steps))
    xr.testing.assert_identical(tk.open(store).load(), whole(name, steps))
    assert [p.name for p in store.parent.iterdir()] == [store.name]
    assert not (store / "resume").exists()
    assert not [p for p in store.rglob("*") if p.suffix in (".partial", ".new")]


def kills(killer: Killer, folder: Path, count: int, seed: int) -> None:
    """So many kills, of each kind of run in turn, at random moments; every second store more than once."""
    chance, took, moments = random.Random(seed), {}, []
    for number, name in enumerate(itertools.cycle(RUNS)):
        store = folder / str(number) / "run.zarr"
        if name not in took:
            took[name] = killer.run(name, folder / "timed" / f"{name}.zarr", slow=SLOW)["seconds"]
        for _ in range(chance.choice([1, 1, 2, 3])):
            ended = killer.run(name, store, slow=SLOW, after=chance.uniform(0, took[name]))
            rows = flagged(store, name)
            if not ended["killed"]:
                assert rows == whole(name).sizes["step"]
                break
            moments.append(rows / whole(name).sizes["step"])
        goes_on(store, name)
        if len(moments) >= count:
            break
    assert min(moments) < 0.5 < max(moments), "the kills were to come at all stages"


@pytest.mark.parametrize("name", RUNS)
def test_another_process_makes_the_same_run(name, killer, tmp_path):
    """Without a kill: what is compared below is comparable."""
    assert not killer.run(name, tmp_path / "run.zarr")["killed"]
    assert flagged(tmp_path / "run.zarr", name) == whole(name).sizes["step"]
    goes_on(tmp_path / "run.zarr", name)


def test_twenty_kills(killer, tmp_path):
    kills(killer, tmp_path, 20, seed=20)


@pytest.mark.slow
def test_two_hundred_kills(killer, tmp_path):
    kills(killer, tmp_path, 200, seed=200)


def at_writes(killer: Killer, folder: Path, name: str, count: int | None) -> None:
    """A kill before each of the operations that change a file or folder, or before `count` of them."""
    steps = SWEPT[name]
    operations = killer.run(name, folder / "counted" / "run.zarr", steps=steps)["operations"]
    assert operations > 100
    apart = 1 if count is None else operations // count
    for strike in range(apart - 1, operations, apart):
        store = folder / str(strike) / "run.zarr"
        assert killer.run(name, store, steps=steps, strike=strike)["killed"]
        flagged(store, name, steps)
        goes_on(store, name, steps)


@pytest.mark.parametrize("name", SWEPT)
def test_a_kill_at_many_writes(name, killer, tmp_path):
    at_writes(killer, tmp_path, name, count=6)


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEPT)
def test_a_kill_at_every_write(name, killer, tmp_path):
    at_writes(killer, tmp_path, name, count=None)


@pytest.mark.parametrize("name", ["ladder, markov", "algebraic", "growing sample"])
def test_a_store_is_killed_again_and_again(name, killer, tmp_path):
    """Each process gets a little further than the one before."""
    store, before = tmp_path / "run.zarr", -1
    for turn in range(100):
        ended = killer.run(name, store, strike=90 + 20 * turn)
        rows = flagged(store, name)
        assert rows >= before, "what was flagged stays"
        before = rows
        if not ended["killed"]:
            break
    assert turn > 2
    goes_on(store, name)
