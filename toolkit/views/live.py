"""A run that is still being written, or too long to hold: its store, and the rungs that a browser lacks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..errors import bad
from .payload import Payload, cut, described, notice

UNKNOWN = "unfinished"  # what a store says of itself begins so, while nobody can know how it will end
KILLED = "the process that wrote it ended before the run did; the same call goes on with it"
PLANNED = 256  # most levels of the schedule to come
TABLES = ("latent", "denoised")


@dataclass(frozen=True)
class Source:
    """A store as it was at one moment.

    Attributes
    ----------
    path : Path
        The folder.
    request : dict
        What was asked for, by which the run is known again.
    sigma : ndarray
        Every level that is planned, as far as it is known.
    unfinished, running : bool
        The run is not whole; a process is writing it.
    """

    path: Path
    request: Mapping[str, Any]
    sigma: np.ndarray
    unfinished: bool
    running: bool


def look(path: str | PathLike[str]) -> tuple[xr.Dataset, Source | None]:
    """What a store holds at this moment, and the store; None for a file, which nobody is writing."""
    import zarr  # here, as a view of a run in memory needs neither

    from ..reading import checked
    from ..reading import open as open_store

    folder = Path(path).absolute()
    running = _locked(folder / "resume" / "lock")  # first: who ends meanwhile leaves more
    ds = open_store(path)
    if folder.is_file():
        return ds, None
    group = zarr.open_group(checked(folder), mode="r")
    sigma = np.asarray(group["sigma"][:], np.float64)
    known = np.flatnonzero(~np.isnan(sigma))
    unfinished = "stopped" in ds.attrs
    if unfinished and (running or str(ds.attrs["stopped"]).startswith(UNKNOWN)):
        ds = ds.assign_attrs(stopped="" if running else KILLED)
    sigma = sigma[: known[-1] + 1] if len(known) else sigma[:0]
    return ds, Source(folder, dict(group.attrs).get("request", {}), sigma, unfinished, running and unfinished)


def _locked(file: Path) -> bool:
    """Whether a process is writing: it has locked this file, and the lock goes with it, however it ends."""
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        return file.exists()
    try:
        with file.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def opened(dataset: Any) -> tuple[Any, Source | None]:
    """A Dataset of a path or as it is, and the store that it is all of, where that is unfinished."""
    if isinstance(dataset, (str, PathLike)):
        return look(dataset)
    place = dataset.encoding.get("source") if isinstance(dataset, xr.Dataset) else None
    if place is None or "stopped" not in dataset.attrs or not Path(place).is_dir():
        return dataset, None
    now, source = look(place)
    same = {n: v for n, v in now.attrs.items() if n != "stopped"}
    own = {n: v for n, v in dataset.attrs.items() if n != "stopped"}
    steps = dataset.sizes.get("step", -1)
    alike = same == own and steps >= 0 and {**now.sizes, "step": steps} == dict(dataset.sizes)
    if not alike or not np.array_equal(now.sigma[:steps], dataset.sigma, equal_nan=True):
        return dataset, None  # a part of it, or something made of it: more of the store would not fit
    return dataset.assign_attrs({n: now.attrs[n] for n in ("stopped",) if n in now.attrs}), source


def again(source: Source) -> tuple[xr.Dataset, Source]:
    """The same store, later; an error where it is gone, or another run is in its place."""
    ds, now = look(source.path)
    if now is None or now.request != source.request:
        why = "another run is there now"
        raise bad("store", str(source.path), why, f'tk.view("{source.path}")')
    return ds, now


def state(source: Source | None, steps: int) -> dict[str, Any]:
    """For the browser: whether the run goes on, and the schedule to come as [row, level]."""
    if source is None or not source.unfinished:
        return {"live": False, "unfinished": False, "plan": []}
    rows = np.arange(steps, len(source.sigma))
    if len(rows) > PLANNED:
        rows = rows[np.linspace(0, len(rows) - 1, PLANNED).round().astype(int)]
    plan = [[int(row), float(source.sigma[row])] for row in rows if np.isfinite(source.sigma[row])]
    return {"live": source.running, "unfinished": True, "plan": plan}


@dataclass
class Patch:
    """One payload out of another: for each rung, its place among the old ones and, after them, the new."""

    meta: dict[str, Any]
    index: list[int]
    parts: list[bytes]
    whole: Payload


def patch(old: Payload, ds: xr.Dataset, model: Any, rows: np.ndarray, kept: np.ndarray,
          again: Sequence[int] = (), span: Any = None, pictured: Sequence[int] = (),
          plan: int = 0) -> Patch:  # fmt: skip
    """The payload of `rows`, made of an old one and of no more rungs than that lacks.

    Parameters
    ----------
    ds : Dataset
        From `check`.
    kept : ndarray
        All rows that one can go to.
    again : sequence of int
        Rows that the old payload has otherwise than they are now.
    pictured : sequence of int
        New rows that are decoded.
    plan : int
        Rows that an unfinished run is to have.
    """
    there = {row: k for k, row in enumerate(old.meta["rungs"]) if row not in again}
    fresh = np.array([row for row in rows if row not in there], int)
    new = {int(row): len(old.meta["rungs"]) + k for k, row in enumerate(fresh)}
    index = [there.get(int(row), new.get(int(row))) for row in rows]
    names = [n for n in ("denoised",) if n in ds and not old.denoised and old.meta["rungs"]]
    column = plan or len(old.denoised)  # of a run with a column of them, even where these rows have none
    part = cut(ds.drop_vars(names), model, fresh, kept, old.meta["top"], column, pictured)
    meta = old.meta | described(ds, rows, kept, plan) | _joined(old, part, index)
    meta["notice"] = notice(ds, rows, kept, old.meta["top"], span)
    parts = [part.latent, part.denoised, part.floats, part.pictures]
    whole = Payload(
        meta,
        _gathered(old.latent, part.latent, old.meta["shape"][0], index),
        _gathered(old.denoised, part.denoised, old.meta["shape"][0], index),
        _floats(old, part, index),
        old.pictures + part.pictures,
        old.images | part.images,
    )
    return Patch(meta, index, parts, whole)


def _gathered(old: bytes, new: bytes, count: int, index: Sequence[int]) -> bytes:
    """The rungs of two atlases, in the order of `index`."""
    fresh = max([k + 1 - count for k in index], default=0)
    stride = len(old) // count if count else len(new) // max(fresh, 1)
    if not stride:
        return b""
    both = np.concatenate([np.frombuffer(b, np.uint8).reshape(-1, stride) for b in (old, new)])
    return both[list(index)].tobytes()


def _floats(old: Payload, part: Payload, index: Sequence[int]) -> bytes:
    out, first, second = [], 0, 0
    for (_, size), (_, more) in zip(old.meta["floats"], part.meta["floats"], strict=True):
        one, two = old.floats[4 * first : 4 * (first + size)], part.floats[4 * second : 4 * (second + more)]
        out.append(_gathered(one, two, old.meta["shape"][0], index))
        first, second = first + size, second + more
    return b"".join(out)


def _joined(old: Payload, part: Payload, index: Sequence[int]) -> dict[str, Any]:
    """What the meta says rung by rung: calls, faults, pictures, sizes."""
    count, place = old.meta["shape"][0], {k: i for i, k in enumerate(index)}
    called = [*old.meta["called"], *part.meta["called"]]
    faults = [[k, *more] for k, *more in old.meta["faults"]]
    faults += [[count + k, *more] for k, *more in part.meta["faults"]]
    pictures: dict[str, Any] = {"size": old.meta["pictures"]["size"] or part.meta["pictures"]["size"]}
    for kind in TABLES:
        new = [[k + count, s, offset + len(old.pictures), *more]
               for k, s, offset, *more in part.meta["pictures"][kind]]  # fmt: skip
        known = [*old.meta["pictures"][kind], *new]
        pictures[kind] = [[place[k], *more] for k, *more in known if k in place]
    shape = [len(index), *old.meta["shape"][1:]]
    cells = {2: shape[0] * shape[1], 3: shape[0] * shape[1] * shape[2]}
    names = [name for name, _ in part.meta["floats"]]
    return {
        "shape": shape,
        "called": [called[k] for k in index] if called else [],
        "faults": sorted([place[k], *more] for k, *more in faults if k in place),
        "pictures": pictures,
        "floats": [[name, cells[2 if name.endswith("limit") else 3]] for name in names],
    }


def pictured(payload: Payload) -> set[int]:
    """Rows of which a picture is there."""
    rungs, index = payload.meta["rungs"], payload.meta["pictures"]
    return {rungs[entry[0]] for kind in TABLES for entry in index[kind]}
