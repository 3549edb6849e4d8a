"""The store of a run: its layout, what disturbs it, what it costs; and a run as one netCDF file."""

import contextlib
import errno
import gc
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from crashing import RUNS, blocks_of, mixture, picture
from zarr.storage import LocalStore

import toolkit as tk

QUIET = {"progress": False}
KINDS = ["ladder, independent", "offsets", "algebraic", "noise", "growing", "sample, fn"]


def python(code: str, *args, check: bool = True) -> subprocess.CompletedProcess:
    """`code` in a process of its own, which finds `crashing`."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert not check or done.returncode == 0, done.stderr
    return done


def files(folder: Path) -> dict[str, bytes | None]:
    """Every file with its bytes, and every folder."""
    found = [folder, *folder.rglob("*")]
    return {str(p): p.read_bytes() if p.is_file() else None for p in found}


class Stop(Exception):
    """What ends a run in the middle."""


@contextlib.contextmanager
def stopping(calls: int, exc: type[BaseException] = Stop):
    """Model call number `calls`, from 0, raises."""
    made, x0 = [], tk.GaussianMixture.x0

    def spoiled(self, x, sigma, conditions):
        made.append(sigma)
        if len(made) > calls:
            raise exc
        return x0(self, x, sigma, conditions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tk.GaussianMixture, "x0", spoiled)
        yield


def stopped(name: str, store: Path, calls: int = 5) -> None:
    with stopping(calls), pytest.raises(Stop):
        RUNS[name](store)


# --- layout


def test_a_store_is_plain_zarr(tmp_path):
    run = RUNS["offsets"](tmp_path / "run.zarr").load()
    group = zarr.open_group(tmp_path / "run.zarr", mode="r")
    assert group.metadata.zarr_format == 3
    for name in ("latent", "denoised", "offset"):
        array = group[name]
        assert array.chunks == (1, *array.shape[1:])
        assert array.shards is None
        assert array.compressors == ()
    rows = run.sizes["step"]
    chunks = [
        p for p in (tmp_path / "run.zarr" / "latent").rglob("*") if p.is_file() and p.name != "zarr.json"
    ]
    assert len(chunks) == rows
    assert {p.stat().st_size for p in chunks} == {run.latent[0].nbytes}
    raw = np.fromfile(tmp_path / "run.zarr" / "latent" / "c" / "2" / "0" / "0" / "0" / "0")
    np.testing.assert_array_equal(raw, run.latent[2].values.ravel())
    plain = xr.open_zarr(tmp_path / "run.zarr", consolidated=False, chunks=None)
    for name in run.data_vars:
        np.testing.assert_array_equal(plain[name], run[name])
        assert plain[name].dims == run[name].dims
        assert plain[name].attrs == run[name].attrs
    assert plain.written.all()


def test_a_ladder_lies_in_shards(tmp_path):
    run = RUNS["ladder, independent"](tmp_path / "run.zarr").load()
    array = zarr.open_group(tmp_path / "run.zarr", mode="r")["latent"]
    assert array.shape == (41, 2, 4, 6, 6)
    assert array.shards == (3, 2, 4, 6, 6)
    assert array.chunks == (1, 2, 4, 6, 6)
    assert array.compressors == ()
    assert len(list((tmp_path / "run.zarr" / "latent" / "c").iterdir())) == 14
    np.testing.assert_array_equal(
        xr.open_zarr(tmp_path / "run.zarr", consolidated=False, chunks=None).latent, run.latent
    )


@pytest.mark.parametrize("rungs", [1, 2, 7, 100])
def test_blocks_do_not_matter(rungs, tmp_path):
    with blocks_of(rungs):
        save = tk.Save(store=tmp_path / "run.zarr")
        run = tk.ladder(mixture(), picture(2), steps=40, normalize="channel", save=save, **QUIET)
    xr.testing.assert_identical(run.load(), RUNS["ladder, independent"]())


@pytest.mark.parametrize("first, second", [(1, 7), (7, 3), (100, 2)])
def test_a_ladder_goes_on_in_blocks_of_another_size(first, second, tmp_path):
    asked = {"steps": 40, "coupling": "markov", **QUIET}
    whole, save = tk.ladder(mixture(), picture(2), **asked), tk.Save(store=tmp_path / "run.zarr")
    block, made = tk.record.Recorder.block, []

    def until(self, *given):
        made.append(1)
        if len(made) > 2:
            raise KeyboardInterrupt
        return block(self, *given)

    with blocks_of(first), pytest.MonkeyPatch.context() as patch:
        patch.setattr(tk.record.Recorder, "block", until)
        with contextlib.suppress(KeyboardInterrupt):
            tk.ladder(mixture(), picture(2), **asked, save=save)
    with blocks_of(second):
        xr.testing.assert_identical(tk.ladder(mixture(), picture(2), **asked, save=save).load(), whole)


@pytest.mark.parametrize("codec", ["blosc", "zstd", "gzip"])
def test_compressors(codec, tmp_path):
    # a sample that goes straight to its image: smooth in every row
    smooth = torch.linspace(0, 1, 4 * 32 * 32, dtype=torch.float64).reshape(1, 4, 32, 32).round(decimals=2)
    model = tk.denoiser(lambda x, sigma: smooth)
    kept = {"add_noise": False, "steps": 4, **QUIET}
    whole = tk.sample(model, smooth, **kept, save=tk.Save())
    sizes = []
    for name in (None, codec):
        store = tmp_path / f"{name}.zarr"
        run = tk.sample(model, smooth, **kept, save=tk.Save(store=store, compressor=name))
        xr.testing.assert_identical(run.load(), whole)
        sizes.append(sum(p.stat().st_size for p in (store / "latent").rglob("c/**/*") if p.is_file()))
    assert sizes[1] < 0.5 * sizes[0]
    rungs = [tk.ladder(model, smooth, steps=9, **QUIET, save=tk.Save(compressor=codec, store=where))
             for where in (None, tmp_path / "ladder.zarr")]  # fmt: skip
    xr.testing.assert_identical(rungs[1].load(), rungs[0])


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_left_beside_a_finished_run(name, tmp_path):
    store = tmp_path / "run.zarr"
    RUNS[name](store)
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]
    left = [p for p in store.rglob("*") if p.is_file() and p.name != "zarr.json" and "c" not in p.parts]
    assert left == []
    assert not (store / "resume").exists()


# --- places


def test_the_place_of_a_store(tmp_path, monkeypatch):
    whole = RUNS["sample"]()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    places = ["run.zarr", "deep/er/run.zarr", Path("path.zarr"), tmp_path / "not there" / "yet" / "run",
              str(tmp_path / "text.zarr"), "empty", "no suffix", "dots.in.name.zarr"]  # fmt: skip
    for place in places:
        xr.testing.assert_identical(RUNS["sample"](place).load(), whole)
        xr.testing.assert_identical(tk.open(place).load(), whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["run.zarr", "deep", "path.zarr", "not there", "text.zarr", "empty", "no suffix", "dots.in.name.zarr"]
    )


def test_a_run_that_goes_to_another_folder_writes_where_it_began(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()

    def go(step):
        os.chdir(tmp_path / "other")
        return {"seen": step.x}

    run = tk.sample(mixture(), steps=4, save=tk.Save(store="run.zarr", fn=go), **QUIET)
    assert list((tmp_path / "other").iterdir()) == []
    xr.testing.assert_identical(tk.open(tmp_path / "run.zarr"), run)


# --- what is not ours, or is spoiled


def foreign_zarr(place: Path) -> None:
    xr.Dataset({"latent": ("step", np.arange(3.0))}).to_zarr(place, zarr_format=3, consolidated=False)


def foreign_request(place: Path) -> None:
    zarr.open_group(place, mode="w").attrs.put({"request": "mine"})


def folder(place: Path) -> None:
    (place / "inner").mkdir(parents=True)
    (place / "inner" / "letter.txt").write_text("mine")


def half_made(place: Path) -> None:
    foreign_zarr(place)
    (place / "zarr.json").unlink()


def older_zarr(place: Path) -> None:
    xr.Dataset({"latent": ("step", np.arange(3.0))}).to_zarr(place, zarr_format=2, consolidated=False)


NOT_OURS = {
    "a Zarr store": foreign_zarr,
    "a Zarr store with a request": foreign_request,
    "a Zarr store of version 2": older_zarr,
    "a folder": folder,
    "a file": lambda place: place.write_text("mine"),
    "an empty file": lambda place: place.write_text(""),
    "half a Zarr group": half_made,
    "a link to nothing": lambda place: place.symlink_to(place.with_name("nowhere")),
}


@pytest.mark.parametrize("what", NOT_OURS)
@pytest.mark.parametrize("name", ["ladder, shared", "sample"])
def test_what_is_not_ours_is_refused_and_stays(what, name, tmp_path):
    store = tmp_path / "run.zarr"
    NOT_OURS[what](store)
    before = files(tmp_path)
    with pytest.raises((ValueError, OSError), match=r"run\.zarr.*Try: tk\.Save") as caught:
        RUNS[name](store)
    assert "run" in str(caught.value)
    assert files(tmp_path) == before


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("spoiled", ["", '{"zarr_format": 3}', '{"zarr_format": 3, "node_type"'])
@pytest.mark.parametrize("file", ["zarr.json", "latent/zarr.json", "written/zarr.json"])
def test_spoiled_metadata(file, spoiled, whole, tmp_path):
    store = tmp_path / "run.zarr"
    if whole:
        RUNS["sample"](store)
    else:
        stopped("sample", store)
    (store / file).write_text(spoiled)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=r"run\.zarr.* Try: tk\."):
        tk.open(store)
    if file == "zarr.json" or not whole:
        with pytest.raises(ValueError, match=r"run\.zarr.* Try: tk\.Save"):
            RUNS["sample"](store)
    assert {k: v for k, v in files(tmp_path).items() if "resume/lock" not in k} == {
        k: v for k, v in before.items() if "resume/lock" not in k
    }


def cut_off(file: Path, to: int) -> bytes:
    whole = file.read_bytes()
    file.write_bytes(whole[:to])
    return whole


@pytest.mark.parametrize("to", [0, 1, 8, 1000])
def test_a_chunk_that_was_cut_off(to, tmp_path):
    store = tmp_path / "run.zarr"
    run = RUNS["offsets"](store).load()
    file = store / "latent" / "c" / "3" / "0" / "0" / "0" / "0"
    cut_off(file, to)
    before, ds = files(store), tk.open(store)
    wanted = rf"latent/c/3/0/0/0/0.*cut off: it has {to} bytes, not 1152 bytes.*Try: "
    for read in (lambda: ds.latent[3].load(), lambda: ds.load(), lambda: tk.open(store).latent.values):
        with pytest.raises(ValueError, match=wanted):
            read()
    others = [k for k in range(7) if k != 3]
    xr.testing.assert_identical(tk.open(store).latent.isel(step=[0, 1, 2]).load(), run.latent[:3])
    for k in others:
        np.testing.assert_array_equal(ds.latent[k], run.latent[k])
    assert files(store) == before


@pytest.mark.parametrize("to", [0, 3, 52, 500, 1152, 1204, 2356])
def test_a_shard_that_was_cut_off(to, tmp_path):
    """Three rungs of 1152 bytes, an index of 48 and its checksum of 4."""
    store = tmp_path / "run.zarr"
    run = RUNS["ladder, independent"](store).load()
    file = store / "latent" / "c" / "2" / "0" / "0" / "0" / "0"
    assert len(cut_off(file, to)) == 3 * 1152 + 52
    before, ds = files(store), tk.open(store)
    for k in range(6, 9):
        with pytest.raises(ValueError, match=rf"latent/c/2/0/0/0/0.*cut off.* {to} bytes.*Try: "):
            ds.latent[k].load()
    for k in (0, 5, 9, 40):
        np.testing.assert_array_equal(ds.latent[k], run.latent[k])
    assert files(store) == before


def test_a_run_does_not_go_on_over_rows_that_were_cut_off(tmp_path):
    """What an offsets run reads of its own rows, it reads with the same care."""
    store = tmp_path / "run.zarr"
    stopped("offsets", store, calls=11)  # in the pass that comes down the recorded ladder
    file = store / "latent" / "c" / "3" / "0" / "0" / "0" / "0"
    whole = cut_off(file, 100)
    with pytest.raises(ValueError, match=r"latent/c/3.*cut off.*100 bytes"):
        RUNS["offsets"](store)
    file.write_bytes(whole)
    xr.testing.assert_identical(RUNS["offsets"](store).load(), RUNS["offsets"]())


@pytest.mark.parametrize("name, to", [("offsets", 0), ("offsets", 7), ("sample", 100), ("growing", -1)])
def test_a_bookmark_that_was_cut_off(name, to, tmp_path):
    store = tmp_path / "run.zarr"
    stopped(name, store)
    cut_off(store / "resume" / "bookmark", to)
    before, rows = files(store), tk.open(store).load()
    with pytest.raises(ValueError, match=r"store='.*run\.zarr': its bookmark cannot be read.* Try: tk\.Save"):
        RUNS[name](store)
    assert files(store) == before
    xr.testing.assert_identical(tk.open(store).load(), rows)
    (store / "resume" / "bookmark").unlink()  # without one it begins again
    xr.testing.assert_identical(RUNS[name](store).load(), RUNS[name]())


def test_two_runs_do_not_share_a_store(tmp_path):
    store = tmp_path / "run.zarr"
    for whole in (False, True):
        if whole:
            RUNS["offsets"](store)
        else:
            stopped("offsets", store)
        before = files(store)
        for other in RUNS:
            if other != "offsets":
                with pytest.raises(ValueError, match="it holds another run"):
                    RUNS[other](store)
        assert files(store) == before


# --- a disk that is full, or may not be written


class Disk:
    """A disk on which write number `room`, from 0, and all behind it fail."""

    def __init__(self, patch: pytest.MonkeyPatch, room: int, error: OSError):
        self.room, self.error, self.writes = room, error, 0
        put, replace = LocalStore.set, os.replace

        async def guarded(store, key, *given):
            self._count(key)
            await put(store, key, *given)

        def replaced(old, new, **kw):
            if str(new).endswith("bookmark"):
                self._count(new)
            return replace(old, new, **kw)

        patch.setattr(LocalStore, "set", guarded)
        patch.setattr(os, "replace", replaced)

    def _count(self, key) -> None:
        self.writes += 1
        if self.writes > self.room:
            raise OSError(self.error.errno, self.error.strerror, str(key))


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("name", ["ladder, independent", "offsets", "growing sample"])
def test_a_full_disk_at_any_write(name, tmp_path):
    whole = RUNS[name]()
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, 10**9, FULL)
        RUNS[name](tmp_path / "all.zarr")
    for room in range(3, disk.writes, disk.writes // 4):
        store = tmp_path / str(room) / "run.zarr"
        threads = threading.active_count()
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, room, FULL)
            with pytest.raises(
                OSError, match=r"store='.*run\.zarr': cannot be written.*No space left"
            ) as caught:
                RUNS[name](store)
        assert caught.value.errno == errno.ENOSPC
        assert "Try: " in str(caught.value)
        assert threading.active_count() == threads
        if store.exists():
            assert "the same call goes on" in str(caught.value)
            ds = tk.open(store).load()
            rows = ds.sizes["step"]
            np.testing.assert_array_equal(ds["mean"], whole["mean"][:rows])
            np.testing.assert_array_equal(ds.sigma, whole.sigma[:rows])
        else:
            assert not store.parent.exists() or list(store.parent.iterdir()) == []
        xr.testing.assert_identical(RUNS[name](store).load(), whole)  # there is room again
        assert [p.name for p in store.parent.iterdir()] == ["run.zarr"]


LIMITED = """
    import resource, signal, sys
    import crashing
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    try:
        crashing.RUNS["ladder, independent"](sys.argv[1])
    except OSError as exc:
        print(exc)
"""


def test_a_disk_that_takes_no_more_bytes(tmp_path):
    """The operating system's own refusal, in the middle of a file."""
    told = python(LIMITED, tmp_path / "run.zarr").stdout
    assert "run.zarr" in told
    assert "File too large" in told
    assert "Try: " in told
    ds = tk.open(tmp_path / "run.zarr")
    assert "stopped" in ds.attrs
    assert ds.sizes["step"] == 0
    xr.testing.assert_identical(
        RUNS["ladder, independent"](tmp_path / "run.zarr").load(), RUNS["ladder, independent"]()
    )


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS])
def test_a_folder_that_may_not_be_written(error, tmp_path, monkeypatch):
    mkdir, kind = Path.mkdir, OSError(error, os.strerror(error))

    def refused(self, *args, **kw):
        if self.is_relative_to(tmp_path) and not self.exists():
            raise OSError(error, os.strerror(error), str(self))
        mkdir(self, *args, **kw)

    monkeypatch.setattr(Path, "mkdir", refused)
    wanted = rf"store='.*run\.zarr': cannot be written.*{os.strerror(error)}.*Try: tk\.Save"
    with pytest.raises(type(kind), match=wanted):
        RUNS["sample"](tmp_path / "run.zarr")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS])
def test_a_store_that_may_not_be_written_any_more(error, tmp_path):
    store = tmp_path / "run.zarr"
    stopped("sample", store)
    before = files(store)
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, 0, OSError(error, os.strerror(error)))
        with pytest.raises(OSError, match=rf"run\.zarr.*{os.strerror(error)}.*the same call.*Try: "):
            RUNS["sample"](store)
    assert files(store) == before
    xr.testing.assert_identical(RUNS["sample"](store).load(), RUNS["sample"]())
    with pytest.MonkeyPatch.context() as patch:  # whole, it is only read
        Disk(patch, 0, OSError(error, os.strerror(error)))
        xr.testing.assert_identical(RUNS["sample"](store).load(), RUNS["sample"]())


# --- reading, while it is written and one rung alone


def test_a_store_that_is_being_written_is_read(tmp_path):
    store, seen = tmp_path / "run.zarr", []

    def look(step):
        ds = tk.open(store).load()
        seen.append(ds)
        return {}

    for solver in ("dpmpp_2m", "dpm_adaptive"):
        store, seen = tmp_path / f"{solver}.zarr", []
        whole = tk.sample(
            mixture(), solver=solver, steps=6, save=tk.Save(store=store, fn=look), **QUIET
        ).load()
        rows = [ds.sizes["step"] for ds in seen]
        assert rows == sorted(rows)
        assert rows[-1] > rows[0]
        assert rows[-1] >= whole.sizes["step"] - 3
        for ds in seen:
            n = ds.sizes["step"]
            np.testing.assert_array_equal(ds.latent, whole.latent[:n])
            np.testing.assert_array_equal(ds.sigma, whole.sigma[:n])
            assert "unfinished" in ds.attrs["stopped"]


def test_a_store_is_read_by_another_thread_all_the_while(tmp_path):
    store, over, failed, counts = tmp_path / "run.zarr", threading.Event(), [], []

    def look():
        while not over.is_set():
            try:
                counts.append(tk.open(store).load().sizes["step"] if store.exists() else 0)
            except BaseException as exc:
                failed.append(exc)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        run = RUNS["offsets"](store).load()
    finally:
        over.set()
        reader.join()
    assert failed == []
    assert counts == sorted(counts)
    xr.testing.assert_identical(run, RUNS["offsets"]())


@pytest.mark.parametrize("name", ["offsets", "ladder, independent"])
def test_one_rung_is_read_and_no_other(name, tmp_path):
    store = tmp_path / "run.zarr"
    run = RUNS[name](store).load()
    kept = 4 // (3 if name.startswith("ladder") else 1)
    for chunk in (store / "latent" / "c").iterdir():
        if chunk.name != str(kept):
            for file in [p for p in chunk.rglob("*") if p.is_file()]:
                file.write_bytes(b"?")
    for kind in set(run.data_vars) - {"latent"}:
        for file in [p for p in (store / kind).rglob("*") if p.is_file() and p.name != "zarr.json"]:
            if run[kind].ndim == 5:
                file.write_bytes(b"?")
    ds = tk.open(store)
    np.testing.assert_array_equal(ds.latent[4], run.latent[4])
    np.testing.assert_array_equal(tk.at(ds, step=4).latent, run.latent[4])
    with pytest.raises(ValueError, match="cut off"):
        ds.latent[0].load()


# --- who else is there


def test_the_second_of_two_threads_is_refused(tmp_path):
    store, found = tmp_path / "run.zarr", []
    go_on, here = threading.Event(), threading.Event()

    def wait(step):
        here.set()
        go_on.wait(20)
        return {}

    def first():
        found.append(tk.sample(mixture(), steps=4, save=tk.Save(store=store, fn=wait), **QUIET))

    runner = threading.Thread(target=first)
    runner.start()
    try:
        assert here.wait(20)
        before = files(store)
        with pytest.raises(BlockingIOError, match=r"run\.zarr.*another run is writing it.*Try: tk\.open"):
            tk.sample(mixture(), steps=4, save=tk.Save(store=store, fn=wait), **QUIET)
        code = """
            import sys, crashing
            from pathlib import Path
            import toolkit as tk
            def wait(step):
                return {}
            wait.__qualname__ = sys.argv[2]
            try:
                save = tk.Save(store=sys.argv[1], fn=wait)
                tk.sample(crashing.mixture(), steps=4, save=save, progress=False)
            except BlockingIOError as exc:
                print(exc)
        """
        assert "another run is writing it" in python(code, store, wait.__qualname__).stdout
        assert files(store) == before
    finally:
        go_on.set()
        runner.join()
    assert "stopped" not in found[0].attrs


def test_two_that_begin_at_once(tmp_path):
    """Only one makes the store; the others are refused, or find it whole."""
    barrier, refused, made = threading.Barrier(4), [], []

    def begin():
        barrier.wait()
        try:
            made.append(RUNS["ladder, shared"](tmp_path / "run.zarr").load())
        except BlockingIOError as exc:
            refused.append(exc)

    threads = [threading.Thread(target=begin) for _ in range(4)]
    with blocks_of(3):  # outside of the threads, each of which would put it back
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(made) + len(refused) == 4
    assert made
    for run in made:
        xr.testing.assert_identical(run, RUNS["ladder, shared"]())
    assert [p.name for p in tmp_path.iterdir()] == ["run.zarr"]


@pytest.mark.parametrize("exc", [KeyboardInterrupt, SystemExit, RuntimeError])
@pytest.mark.parametrize("name", ["offsets", "growing", "sample, fn"])
def test_the_same_process_goes_on_after_it_was_interrupted(name, exc, tmp_path):
    store = tmp_path / "run.zarr"
    for calls in (0, 1, 2):
        with stopping(calls, exc), pytest.raises(exc):
            RUNS[name](store)
        assert not [t for t in threading.enumerate() if t.name == "toolkit store"]
        tk.open(store).load()
    xr.testing.assert_identical(RUNS[name](store).load(), RUNS[name]())


def test_a_bookmark_that_is_behind_the_flags(tmp_path):
    """As a kill between the two leaves them; then Ctrl-C before the next hop. The last row may be missing."""
    store, name = tmp_path / "run.zarr", "growing sample"
    full, whole = RUNS[name](every=1), RUNS[name]()
    for calls in range(3, full.attrs["model_calls"] - 3, 9):
        shutil.rmtree(store, ignore_errors=True)
        stopped(name, store, calls)
        before = (store / "resume" / "bookmark").read_bytes()
        stopped(name, store, 3)  # a hop more: dpm_adaptive asks three times
        (store / "resume" / "bookmark").write_bytes(before)
        stopped(name, store, 0)
        ds = tk.open(store)
        there = ds.latent.notnull()
        xr.testing.assert_equal(ds.latent.where(there), full.latent[: ds.sizes["step"]].where(there))
        xr.testing.assert_identical(RUNS[name](store).load(), whole)


def test_an_interrupt_while_it_waits_for_the_disk_loses_nothing(tmp_path, monkeypatch):
    store, put, turns = tmp_path / "run.zarr", tk.writer.Writer.put, []

    def interrupted(self, item):
        turns.append(1)
        if len(turns) == 3:
            raise KeyboardInterrupt
        put(self, item)

    monkeypatch.setattr(tk.writer.Writer, "put", interrupted)
    with pytest.raises(KeyboardInterrupt, match="stopped at row 3 of 9"):
        RUNS["sample"](store)
    assert tk.open(store).sizes["step"] == 4
    xr.testing.assert_identical(RUNS["sample"](store).load(), RUNS["sample"]())


def test_what_fn_hands_over_may_be_written_on(tmp_path):
    """A function that fills one array again and again."""
    held = np.zeros((1, 4, 6, 6))

    def fill(step):
        held[...] = step.x.numpy()
        return {"seen": held}

    runs = [tk.sample(mixture(), steps=9, save=tk.Save(store=store, fn=fill), **QUIET)
            for store in (None, tmp_path / "run.zarr")]  # fmt: skip
    xr.testing.assert_identical(runs[1].load(), runs[0])


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc")
def test_threads_and_files_are_given_back(tmp_path):
    def round_of(number: int) -> None:
        store = tmp_path / f"{number}.zarr"
        for name in ("ladder, independent", "offsets", "growing sample"):
            place = store / name.replace(", ", "-")
            if not name.startswith("ladder"):
                stopped(name, place, 3)
                with pytest.raises(ValueError, match="another run"):
                    RUNS["sample"](place)
                with pytest.MonkeyPatch.context() as patch:
                    Disk(patch, 2, FULL)
                    with pytest.raises(OSError, match="No space"):
                        RUNS[name](place)
            RUNS[name](place).load()
        with pytest.raises(ValueError, match="not a run"):
            RUNS["sample"](tmp_path)

    round_of(0)
    gc.collect()
    before = threading.active_count(), open_files()
    for number in range(1, 3):
        round_of(number)
    gc.collect()
    assert (threading.active_count(), open_files()) == before
    assert not [t for t in threading.enumerate() if t.name == "toolkit store"]


# --- netCDF


def with_odd_attributes() -> xr.Dataset:
    attrs = {"none": None, "yes": True, "no": False, "nested": {"a": [1, {"b": None}], "c": "ü"}, "list": [],
             "texts": ["a", "b"], "whole": 3, "real": 0.1, "inf": float("inf"), "large": 2**70, "empty": "",
             "a name with spaces": [1.5], "text": "json_attributes"}  # fmt: skip
    return tk.testing.ladder_dataset().assign_attrs(attrs)


NETCDF = {
    **{name: RUNS[name] for name in RUNS},
    "round trip": lambda: tk.round_trip(mixture(), picture(), steps=4, **QUIET),
    "diagnostics": lambda: tk.diagnostics.moments(RUNS["offsets"]()),
    "one row": lambda: RUNS["offsets"]().isel(step=-1),
    "normalised": lambda: tk.normalized(RUNS["ladder, independent"](), "channel"),
    "half precision": lambda: RUNS["ladder, independent"](dtype="float16"),
    "odd attributes": with_odd_attributes,
    "no attributes": lambda: tk.testing.ladder_dataset().drop_attrs(deep=False),
}


@pytest.mark.parametrize("name", NETCDF)
def test_netcdf_comes_back(name, tmp_path):
    ds = NETCDF[name]()
    file = tk.to_netcdf(ds, tmp_path / "deep" / "run.nc")
    with tk.open(file) as back:
        xr.testing.assert_identical(back.load(), ds)
        for kind, variable in ds.variables.items():
            assert back[kind].dtype == (np.float32 if variable.dtype == np.float16 else variable.dtype)
        assert {n: type(v) for n, v in back.attrs.items()} == {n: type(v) for n, v in ds.attrs.items()}
    assert [p.name for p in file.parent.iterdir()] == ["run.nc"]


@pytest.mark.parametrize("name", KINDS)
def test_netcdf_of_a_store(name, tmp_path):
    ds = RUNS[name](tmp_path / "run.zarr")
    with tk.open(tk.to_netcdf(ds, str(tmp_path / "run.nc"))) as back:
        xr.testing.assert_identical(back.load(), ds.load())


def test_a_file_that_was_read_replays(tmp_path):
    up = RUNS["offsets"]()
    with tk.open(tk.to_netcdf(up, tmp_path / "run.nc")) as back:
        down = tk.sample(mixture(), start=back, **QUIET)
    xr.testing.assert_identical(down, tk.sample(mixture(), start=up, **QUIET))


def test_netcdf_is_replaced_when_it_is_whole(tmp_path, monkeypatch):
    file, ds = tmp_path / "run.nc", RUNS["offsets"]()
    tk.to_netcdf(RUNS["algebraic"](), file)
    before = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *a, **k: (_ for _ in ()).throw(FULL))
        with pytest.raises(
            OSError, match=r"path='.*run\.nc': cannot be written.*No space.*Try: tk\.to_netcdf"
        ):
            tk.to_netcdf(ds, file)
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.nc"]
    tk.to_netcdf(ds, file)
    with tk.open(file) as back:
        xr.testing.assert_identical(back.load(), ds)


def test_netcdf_where_it_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file" / "run.nc", tmp_path):
        with pytest.raises(OSError, match=r"cannot be written.*Try: tk\.to_netcdf"):
            tk.to_netcdf(RUNS["offsets"](), place)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    with pytest.raises(TypeError, match=r"(?s)^ds=.*Try: tk\.to_netcdf"):
        tk.to_netcdf(RUNS["offsets"]().latent, tmp_path / "run.nc")


def test_netcdf_that_is_missing_or_not_ours(tmp_path, monkeypatch):
    ds = RUNS["offsets"]()
    file = tk.to_netcdf(ds, tmp_path / "run.nc")
    xr.Dataset({"a": ("b", [1.0])}).to_netcdf(tmp_path / "foreign.nc", engine="netcdf4")
    (tmp_path / "text.nc").write_text("no file of ours")
    (tmp_path / "half.nc").write_bytes(file.read_bytes()[:2000])
    for name in ("foreign.nc", "text.nc", "half.nc"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(ValueError, match=rf"path='.*{name}'.*Try: tk\.to_netcdf"):
            tk.open(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    monkeypatch.setitem(sys.modules, "netCDF4", None)
    for act in (lambda: tk.to_netcdf(ds, tmp_path / "other.nc"), lambda: tk.open(file)):
        with pytest.raises(ImportError, match="pip install netCDF4"):
            act()
    assert not (tmp_path / "other.nc").exists()


# --- what it costs

STREAMED = """
    import os, sys, threading, time, torch
    import toolkit as tk
    torch.set_num_threads(1)
    def held():
        return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    def run(rungs, store):
        model = tk.denoiser(lambda x, sigma: x)
        x = torch.zeros(1, 4, 64, 64)
        save = tk.Save(store=store)
        return tk.ladder(model, x, schedule="karras", steps=rungs - 1, save=save, progress=False)
    run(20, sys.argv[1] + "/warm.zarr")
    start, most, on = held(), 0, True
    def watch():
        global most
        while on:
            most = max(most, held())
            time.sleep(0.002)
    thread = threading.Thread(target=watch)
    thread.start()
    ds = run(2000, sys.argv[1] + "/run.zarr")
    on = False
    thread.join()
    assert ds.sizes["step"] == 2000 and ds.latent.dtype == "float32"
    print((max(most, held()) - start) / 2**20)
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc")
def test_a_streamed_ladder_needs_little_memory(tmp_path):
    """131 MB of rungs."""
    assert float(python(STREAMED, tmp_path).stdout) < 110


THOUSAND = """
    import gc, json, os, sys, threading
    import torch
    import crashing
    import toolkit as tk
    torch.set_num_threads(1)
    model, image, told = crashing.mixture(), crashing.picture(), []
    for k in range(1000):
        store = f"{sys.argv[1]}/{k}.zarr" if k % int(sys.argv[2]) == 0 else None
        tk.unsample(model, image, solver="euler", steps=2, save=tk.Save(store=store), progress=False)
        if k in (49, 524, 999):
            gc.collect()
            held = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            told.append((held, len(os.listdir("/proc/self/fd")), threading.active_count()))
    print(json.dumps(told))
"""


def thousand(folder: Path, stored: int) -> None:
    """1,000 unsamples in one process, every so many into a store: memory, files and threads stay."""
    first, _, last = json.loads(python(THOUSAND, folder, stored).stdout)
    assert last[0] < 1.02 * first[0]
    assert last[1:] == first[1:]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc")
def test_a_thousand_unsamples(tmp_path):
    thousand(tmp_path, 20)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc")
def test_a_thousand_stores(tmp_path):
    thousand(tmp_path, 1)
