"""Recorded runs, read back: lazily from their Zarr store, or from one netCDF file. No torch here."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.abc.store import SuffixByteRequest
from zarr.storage import LocalStore

from .dataset import COORDINATES, VARIABLES
from .errors import bad

JSON = "json_attributes"  # netCDF knows numbers and text alone: names of the attributes that are JSON


class _Checked(LocalStore):
    """A store that says so where a chunk was cut off; Zarr itself would complain of a shape."""

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        got = await super().get(key, prototype, byte_range)
        wanted = self.sizes.get(key.split("/c/")[0]) if got is not None and "/c/" in key else None
        if wanted is not None:
            chunk, index = wanted
            end = None
            if index and (byte_range is None or isinstance(byte_range, SuffixByteRequest)):
                end = got.as_numpy_array()[-index:].tobytes()
            _size_checked(FilePath(self.root) / key, chunk, index, end)
        return got

    sizes: Mapping[str, tuple[int, int]] = {}  # array -> bytes of a chunk, and of what a shard has besides


def _size_checked(file: FilePath, chunk: int, index: int, end: bytes | None) -> None:
    """`end`: the index of a shard, if that was read: where its chunks are said to lie must be possible."""
    size = file.stat().st_size
    whole = size > index and not (size - index) % chunk
    if whole and end is not None:
        first, length = np.frombuffer(end[:-4], "<u8").reshape(-1, 2).T  # both 2^64 - 1: never written
        there = length != 2**64 - 1
        whole = bool((length[there] == chunk).all() and (first[there] <= size - index - chunk).all())
    if not whole:
        wanted = f"{chunk} bytes" if not index else f"{chunk} bytes a rung and {index} more"
        why = f"this chunk was cut off: it has {size} bytes, not {wanted}; the other rungs can be read"
        raise bad(
            "store", str(file), why, "ds.isel(step=slice(0, k)), or run the call again into another store"
        )


def checked(folder: FilePath, read_only: bool = True) -> LocalStore:
    """A store whose chunks are looked at when they are read: one that was cut off is named."""
    store = _Checked(folder, read_only=read_only)
    with _quiet():
        store.sizes = _sizes(zarr.open_group(store, mode="r" if read_only else "r+"))
    return store


def leading(flags: np.ndarray) -> int:
    """How many rows are written, without a gap, from the first."""
    return len(flags) if flags.all() else int(np.argmin(flags))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without a word about a file that was being written when the process ended."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not recognized as a component")
        yield


def _sizes(group: zarr.Group) -> dict[str, tuple[int, int]]:
    """What files of the uncompressed arrays weigh."""
    found = {}
    for name, array in group.arrays():
        if array.compressors or array.ndim == 0:
            continue
        chunk = int(np.prod(array.chunks)) * array.dtype.itemsize
        # 8 bytes each of offset and length a chunk, and a checksum
        inner = 0 if array.shards is None else int(np.prod(array.shards)) // int(np.prod(array.chunks))
        if array.dtype.kind in "biuf":
            found[name] = (chunk, 16 * inner + 4 if inner else 0)
    return found


def open(path: str | PathLike[str]) -> xr.Dataset:
    """A recorded run from its Zarr store, read lazily: one rung is read without touching the others.

    Parameters
    ----------
    path : path
        The folder given as ``tk.Save(store=path)``, or a file that ``tk.to_netcdf`` wrote.

    Returns
    -------
    Dataset
        Identical to the one that the run returned. Rows that were never written (of a run that was stopped,
        or is being written) are trimmed, and the flags of the store are dropped.

    Raises
    ------
    FileNotFoundError
        Where there is no such folder or file.
    ValueError
        Where it is not the store of a run; later, where a chunk that is read was cut off: it is named.

    Examples
    --------
    >>> import tempfile, toolkit as tk
    >>> folder = tempfile.mkdtemp()
    >>> save = tk.Save(store=folder + "/run.zarr")
    >>> run = tk.sample(tk.load(), prompt=3, steps=2, save=save, progress=False)
    >>> tk.open(folder + "/run.zarr").identical(run)
    True
    """
    line = 'tk.sample(model, save=tk.Save(store="run.zarr")), then tk.open("run.zarr")'
    if not isinstance(path, (str, PathLike)):
        raise bad("path", path, "the path of a folder", line, TypeError)
    place = FilePath(path)
    if not place.exists():
        raise bad("path", str(path), "there is no such folder", line, FileNotFoundError)
    if place.is_file():
        return _from_netcdf(place)
    try:
        store = checked(place)
        with _quiet():
            ds = xr.open_zarr(store, chunks=None, consolidated=False)
    except Exception as exc:
        why = f"not a store that can be read ({type(exc).__name__}: {exc})"
        raise bad("path", str(path), why, line) from exc
    if "written" not in ds or "kind" not in ds.attrs:
        raise bad("path", str(path), "a Zarr store, but not of a run of this package", line)
    ds = ds.set_coords([name for name in COORDINATES if name in ds])
    ds = ds.isel(step=slice(0, leading(ds.written.values))).drop_vars("written")
    order = [*COORDINATES, *VARIABLES]  # a store lists its arrays by chance; people read them by meaning
    names = sorted(ds.variables, key=lambda n: order.index(n) if n in order else len(order))
    attrs = {name: value for name, value in ds.attrs.items() if name != "request"}
    run = xr.Dataset({n: ds[n].variable for n in names if n in ds.data_vars},
                     {n: ds[n].variable for n in names if n in ds.coords}, attrs)  # fmt: skip
    run.encoding["source"] = str(place.absolute())  # as xarray notes it; a view reads an unfinished one again
    return run


def to_netcdf(ds: xr.Dataset, path: str | PathLike[str]) -> FilePath:
    """A run as one netCDF 4 file, which ``tk.open`` reads back as it was, and any other program too.

    Parameters
    ----------
    ds : Dataset
        A recorded run, or anything made of one.
    path : path
        Of the file; one that is there is replaced when the new one is whole. Folders are made.

    Returns
    -------
    Path
        The file. Attributes that are not numbers or text are written as JSON text, and listed in the
        attribute ``json_attributes``. float16 comes back as float32, the same numbers: netCDF has none.

    Raises
    ------
    ImportError
        Where netCDF4 is not installed.
    TypeError, OSError
        For what is no Dataset; where the file cannot be written.

    Examples
    --------
    >>> import tempfile, toolkit as tk
    >>> ds = tk.testing.ladder_dataset()
    >>> file = tk.to_netcdf(ds, tempfile.mkdtemp() + "/ladder.nc")
    >>> tk.open(file).identical(ds)
    True
    """
    if not isinstance(ds, xr.Dataset):
        raise bad("ds", ds, "the Dataset of a run", 'tk.to_netcdf(run, "run.nc")', TypeError)
    _needs_netcdf()
    file = FilePath(path)
    attrs = {n: v if _native(v) else json.dumps(v) for n, v in ds.attrs.items()}
    packed = json.dumps([n for n, v in ds.attrs.items() if not _native(v)])
    fresh = file.with_name(f".{file.name}.new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        half = {n: v.astype(np.float32) for n, v in ds.data_vars.items() if v.dtype == np.float16}
        ds.assign(half).assign_attrs(attrs | {JSON: packed}).to_netcdf(fresh, engine="netcdf4")
        os.replace(fresh, file)
    except OSError as exc:
        line = 'tk.to_netcdf(run, "run.nc")'
        raise bad("path", str(path), f"cannot be written ({exc})", line, type(exc)) from exc
    finally:
        with suppress(OSError):
            fresh.unlink()
    return file


def _native(value: Any) -> bool:
    """Whether netCDF has such an attribute: text, a float, a whole number of 64 bits."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return False
    return not isinstance(value, int) or -(2**63) <= value < 2**63


def _from_netcdf(file: FilePath) -> xr.Dataset:
    """What `to_netcdf` wrote, read lazily."""
    _needs_netcdf()
    line = 'tk.to_netcdf(run, "run.nc"), then tk.open("run.nc")'
    try:
        ds = xr.open_dataset(file, engine="netcdf4")
    except Exception as exc:
        why = f"not a file that can be read ({type(exc).__name__}: {exc})"
        raise bad("path", str(file), why, line) from exc
    if JSON not in ds.attrs:
        ds.close()
        raise bad("path", str(file), "a netCDF file, but not of a run of this package", line)
    packed = json.loads(ds.attrs.pop(JSON))
    plain = {n: v.item() if isinstance(v, np.generic) else v for n, v in ds.attrs.items()}
    names = {n: ds[n].astype(object) for n, v in ds.variables.items() if v.dtype.kind == "U"}
    return ds.assign(names).assign_attrs({n: json.loads(v) if n in packed else v for n, v in plain.items()})


def _needs_netcdf() -> None:
    try:
        import netCDF4  # noqa: F401
    except ImportError as exc:
        raise ImportError("netCDF4 is not installed. Try: pip install netCDF4") from exc
