"""A run's Zarr store: written behind the run, safe to kill at any moment, and gone on with by the same call.

The template comes first, made beside the place and renamed into it: a store is there whole or not at all.
Then, by a thread of its own and in this order, the rows' data, their small numbers, their `written` flags and
the bookmark to go on from; each file is renamed into place. So what is flagged is right, whenever the process
ends. What an unfinished run needs besides lies in the folder ``resume``, which goes when the run is whole.
"""

import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import xarray as xr
import zarr

from .bookmarks import Bookmark
from .bookmarks import write as write_bookmark
from .dataset import attributes, moments
from .errors import bad
from .inputs import plain
from .later import as_numpy, held, mean_and_std
from .reading import checked, leading
from .writer import Writer

UNFINISHED = "unfinished: the process ended, or is still running"
RUNG = ("step", "sigma", "timestep", "alpha", "log_snr")  # coordinates with a value a row
FILL = {"f": math.nan, "i": 0, "b": False}
CAPACITY = 65_536  # rows of a run that adds them as it goes; what is not written takes no room
SMALL = 4096  # rows of a small number in one file
SHARED = ("versions",)  # of the attributes: may differ from those of the run that is gone on with


def codec(name: str | None) -> Any:
    """The compressor of a name: none, or what suits floating noise."""
    if name is None:
        return None
    from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

    return {"blosc": BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"), "zstd": ZstdCodec(level=1),
            "gzip": GzipCodec(level=1)}[name]  # fmt: skip


class Store:
    """Rows on their way to a Zarr group; see the head of this file.

    Parameters
    ----------
    save : Save
        With the path, the dtype and the compressor.
    coordinates, attrs : dict
        Of the template.
    inputs : dict
        Short names of the arrays that the run was handed, by which it is known again.
    growing : bool
        Whether rows are added as the run goes.
    block : int
        Rungs of a ladder that are written together, as one shard; 0 for one chunk a rung.

    Attributes
    ----------
    complete : bool
        The store holds this very run, whole.
    flagged : int
        Rows written by an earlier process.
    """

    def __init__(self, save: Any, coordinates: Mapping, attrs: Mapping, inputs: Mapping, growing: bool,
                 block: int):  # fmt: skip
        self.folder = FilePath(save.store).absolute()  # the run may go to another folder meanwhile
        self.save, self.growing, self.block = save, growing, block
        self.request = json.loads(json.dumps({**attrs, "inputs": plain(inputs), "save": _kept(save)}))
        self.arrays: dict[str, Any] = {}
        self.small: dict[str, np.ndarray] = {}  # what the run has of the small arrays
        self._disk: dict[str, np.ndarray] = {}  # what the writer has of them
        self._known: dict[int, Any] = {}
        self._items: list[tuple] = []
        self.complete, self.flagged, self._lock, self.writer = False, 0, None, None
        self.resumed = self.folder.exists() and _holds_something(self.folder)
        self._home = self.folder
        try:
            if self.resumed:
                self._reopen()
            else:
                self._template(coordinates, attrs)
            if not self.complete:
                rows = CAPACITY if growing else len(coordinates["step"][1])
                self.create("written", ("step",), (rows,), np.dtype(bool))
                for name in RUNG if growing else ():
                    self._mirror(name, self.group[name])
        except BaseException:
            self.close()
            raise

    # --- the template, or what is there already

    def _template(self, coordinates: Mapping, attrs: Mapping) -> None:
        roomy = {n: _roomy(*coordinates[n], CAPACITY) for n in RUNG} if self.growing else {}
        told = {**attrs, "request": self.request, "stopped": UNFINISHED}
        empty = xr.Dataset(coords={**coordinates, **roomy}, attrs=told)
        coding = {n: {"chunks": (min(SMALL, empty.sizes["step"]),)} for n in RUNG}
        home = self.folder.with_name(f".{self.folder.name}.new")
        with self._named():
            (home / "resume").mkdir(parents=True, exist_ok=True)
            self._lock = _locked(home / "resume" / "lock", self.save.store)
            self._home = home
            for left in [*home.iterdir(), *(home / "resume").iterdir()]:  # of a process that was killed here
                if left.name not in ("resume", "lock"):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            zarr.open_group(home, mode="a").create_group("resume")
            empty.to_zarr(home, mode="a", zarr_format=3, consolidated=False, encoding=coding)
            self.group = zarr.open_group(home, mode="r+")

    def _reopen(self) -> None:
        told, shown = self._other(), str(self.save.store)
        try:
            self.group = zarr.open_group(self.folder, mode="r+")
            attrs = dict(self.group.attrs)
        except Exception as exc:
            why = "there is something of that name already, not a run of this package, and it is not touched"
            raise bad("store", shown, why, told) from exc
        if not isinstance(attrs.get("request"), dict):
            why = "there is a Zarr store of that name, not of a run of this package, and it is not touched"
            raise bad("store", shown, why, told)
        differ = _differences(attrs["request"], self.request)
        if differ:
            why = f"it holds another run: {'; '.join(differ)}. Only the same call goes on with it"
            raise bad("store", shown, why, told)
        for name in SHARED:
            if attrs["request"].get(name) != self.request.get(name):
                was, now = attrs["request"].get(name), self.request.get(name)
                text = f"{shown} was begun with {name} {was} and goes on with {now}: its bits may differ"
                warnings.warn(text, stacklevel=5)
        if "stopped" in attrs:
            with self._named():
                self._lock = _locked(self.folder / "resume" / "lock", self.save.store)
            attrs = dict(zarr.open_group(self.folder, mode="r").attrs)  # it may have ended until then
        if "stopped" not in attrs:
            self.complete = True
            shutil.rmtree(self.folder / "resume", ignore_errors=True)
            return
        try:
            self.group = zarr.open_group(checked(self.folder, read_only=False), mode="r+")
        except Exception as exc:
            raise bad("store", shown, f"cannot be gone on with ({exc})", told) from exc
        for left in self.folder.rglob("*.partial"):  # of a write that was cut off
            left.unlink(missing_ok=True)
        self.flagged = leading(self.group["written"][:])

    def publish(self, device: Any) -> Bookmark | None:
        """The template is made: put it in its place; or the bookmark of the run that goes on."""
        if self._home != self.folder:
            with self._named():
                os.rename(self._home, self.folder)
            self._home, self.group = self.folder, zarr.open_group(self.folder, mode="r+")
            self.arrays = {name: self.group[name] for name in self.arrays}
        if self.complete:
            return None
        self.writer = Writer(self._write)
        try:
            return Bookmark.read(self.folder / "resume" / "bookmark", device) if self.resumed else None
        except Exception as exc:
            why = f"its bookmark cannot be read ({exc}), so it cannot be gone on with; its rows can be read"
            raise bad("store", str(self.save.store), why, self._other()) from exc

    def _other(self) -> str:
        """The line to type where this store is not to be had."""
        named = FilePath(self.save.store)
        return f'tk.Save(store="{named.with_name(named.stem + "-2" + named.suffix)}")'

    def create(self, name: str, dims: Sequence[str], shape: Sequence[int], dtype: np.dtype,
               fill: float | None = None) -> None:  # fmt: skip
        """Room for a variable; one that is there already is taken up."""
        shape = [CAPACITY if d == "step" and self.growing else n for d, n in zip(dims, shape, strict=True)]
        big = dims[:1] == ("step",) and "y" in dims
        fits = name in self.group and self.group[name].shape == tuple(shape)
        if name in self.group and not fits:
            why = f"it has {name} of shape {self.group[name].shape}, not {tuple(shape)}"
            raise bad("store", str(self.save.store), why, self._other())
        if not fits:
            rows = self.block if name == "latent" else 0
            whole = (min(SMALL, shape[0]), *shape[1:]) if dims and dims[0] == "step" else tuple(shape)
            with self._named():
                self.group.create_array(
                    name, shape=shape, dtype=dtype, dimension_names=dims,
                    fill_value=FILL.get(dtype.kind, 0) if fill is None else fill,
                    chunks=(1, *shape[1:]) if big else whole, shards=(rows, *shape[1:]) if rows > 1 else None,
                    compressors=codec(self.save.compressor) if big else None, attributes=attributes(name),
                )  # fmt: skip
        self.arrays[name] = self.group[name]
        if not big and dims and dims[0] == "step":
            self._mirror(name, self.arrays[name])

    def _mirror(self, name: str, array: Any) -> None:
        """A small array is held whole: its rows are written many at once."""
        self.arrays[name], self.small[name] = array, array[...]
        self._disk[name] = self.small[name].copy()

    # --- what the run hands over

    def put(self, name: str, row: int, value: Any) -> None:
        """One row of a variable."""
        if name in self.small:
            self.small[name][row] = as_numpy(value)
            self._items.append(("small", name, row, row + 1, self.small[name][row : row + 1].copy()))
        else:
            # the caller may write on what it handed over before the writer comes to it
            self._items.append(("big", name, row, held(value)))

    def fill(self, name: str, values: Any) -> None:
        """All rows of a small variable, from the first."""
        self.small[name][: len(values)] = values
        self._items.append(("small", name, 0, len(values), self.small[name][: len(values)].copy()))

    def state(self, row: int, x: Any, keep: bool, dtype: np.dtype, told: Any = None) -> None:
        """The state of a row: kept, its mean and std (which may be told), and its flag."""
        self._items.append(("state", row, held(x), keep, dtype, told))

    def rungs(self, first: int, latent: np.ndarray, small: Mapping[str, np.ndarray]) -> None:
        """Whole rungs of a ladder, from row `first`; they are handed over for good."""
        rows = len(next(iter(small.values())))
        if "latent" in self.arrays:
            self._items.append(("big", "latent", slice(first, first + rows), latent))
        for name, values in small.items():
            self.small[name][first : first + rows] = values
            self._items.append(("small", name, first, first + rows, values))
        self._items.append(("flags", first, first + rows))
        self.commit()

    def pack(self, mark: Bookmark) -> tuple:
        """A bookmark as it is now, for `commit`."""
        return mark.pack(self._known)

    def commit(self, packed: tuple | None = None) -> None:
        """Hands over what was put, with where the run stands; waits until what came before is written."""
        if packed is not None:
            self._items.append(("mark", *packed))
        with self._named():
            self.writer.put(self._items)
        self._items = []  # not before: Ctrl-C while it waits loses nothing

    def flush(self) -> None:
        """Returns when all that was put is in the store."""
        self.commit()
        with self._named():
            self.writer.flush()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """An error of the disk says which store it was, and how the run is gone on with."""
        try:
            yield
        except BlockingIOError:
            raise
        except OSError as exc:
            shown, kind = str(self.save.store), type(exc)
            line = f'make room, then the same call with tk.Save(store="{shown}")'
            why = f"cannot be written any more ({exc}); what was written is kept, and the same call goes on"
            if self.writer is None and not self.resumed:
                why, line = f"cannot be written ({exc})", 'tk.Save(store="run.zarr")'
                if self.folder.exists() and _holds_something(self.folder):
                    why, line, kind = "another run has made it meanwhile", self._other(), BlockingIOError
            error = bad("store", shown, why, line, kind)
            error.errno = exc.errno
            raise error from exc

    def read(self, name: str, row: int) -> np.ndarray:
        """A row of a big variable that was written and flushed."""
        return self.arrays[name][row]

    def whole(self, extra: Mapping[str, tuple[Sequence[str], Any]]) -> None:
        """Writes variables that have no row a step."""
        with self._named():
            for name, (dims, values) in extra.items():
                array = np.asarray(values)
                self.group.create_array(
                    name, shape=array.shape, dtype=array.dtype, chunks=array.shape, compressors=None,
                    fill_value=FILL.get(array.dtype.kind, 0), dimension_names=dims, overwrite=True,
                    attributes=attributes(name),
                )  # fmt: skip
                self.group[name][...] = array

    def finish(self, extra: Mapping[str, tuple[Sequence[str], Any]], attrs: Mapping[str, Any]) -> None:
        """Writes what is left, and the final attributes; then the run is whole, or says why it stopped."""
        self.flush()
        self.whole(extra)
        with self._named():
            self.group.attrs.put({**attrs, "request": self.request})
        if "stopped" not in attrs:
            shutil.rmtree(self.folder / "resume", ignore_errors=True)

    def close(self) -> None:
        """Ends the thread, and lets others have the store."""
        if self.writer is not None:
            self.writer.close()
        if self._home != self.folder:
            self._discard()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _discard(self) -> None:
        """Removes a template that was not put in its place."""
        for _ in range(100):  # where one write failed, Zarr may still have others under way
            shutil.rmtree(self._home, ignore_errors=True)
            if not self._home.exists():
                return
            time.sleep(0.01)

    # --- the writer's thread

    def _write(self, items: list[tuple]) -> None:
        """Data, small numbers, flags, bookmark: in this order."""
        ranges: dict[str, tuple[int, int]] = {}
        mark = None

        def small(name: str, first: int, end: int, values: Any) -> None:
            self._disk[name][first:end] = values
            low, high = ranges.get(name, (first, end))
            ranges[name] = (min(low, first), max(high, end))

        for kind, *item in items:
            if kind == "small":
                small(*item)
            elif kind == "big":
                name, rows, value = item
                self.arrays[name][rows] = as_numpy(value)
            elif kind == "state":
                row, x, keep, dtype, told = item
                if keep:
                    self.arrays["latent"][row] = as_numpy(x).astype(dtype, copy=False)
                mean, std = (
                    moments(as_numpy(x).astype(dtype, copy=False)) if told is None else mean_and_std(told)
                )
                small("mean", row, row + 1, mean[None])
                small("std", row, row + 1, std[None])
                small("written", row, row + 1, True)
            elif kind == "flags":
                small("written", *item, True)
            else:
                mark = item
        for name in sorted(ranges, key=lambda n: n == "written"):  # flags last
            low, high = ranges[name]
            self.arrays[name][low:high] = self._disk[name][low:high]
        if mark is not None:
            write_bookmark(self.folder / "resume" / "bookmark", *mark)


def _kept(save: Any) -> dict[str, Any]:
    """What of a Save shapes the store."""
    fn = None if save.fn is None else getattr(save.fn, "__qualname__", type(save.fn).__name__)
    return {"what": sorted(save.what) if save.what is not None else None, "every": int(save.every), "fn": fn,
            "dtype": None if save.dtype is None else np.dtype(save.dtype).name,
            "compressor": save.compressor}  # fmt: skip


def _differences(was: Mapping[str, Any], now: Mapping[str, Any], under: str = "") -> list[str]:
    """What two requests differ in, in words."""
    found = []
    for name in [*was, *(n for n in now if n not in was)]:
        a, b = was.get(name), now.get(name)
        if name in SHARED or a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{under}{name} ")
        else:
            found.append(f"{under}{name} {a!r}, not {b!r}")
    return found


def _roomy(dims: Any, values: np.ndarray, told: Mapping, rows: int) -> tuple:
    """A coordinate on step with room for more rows."""
    more = np.arange(len(values), rows) if values.dtype.kind == "i" else np.full(rows - len(values), math.nan)
    return dims, np.concatenate([values, more]), told


def _holds_something(folder: FilePath) -> bool:
    return not folder.is_dir() or any(folder.iterdir())


def _locked(file: FilePath, shown: Any) -> Any:
    """An open file that no other process has locked; the lock goes with the process, however it ends."""
    file.parent.mkdir(exist_ok=True)
    lock = file.open("w")
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        return lock
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        lock.close()
        why = "another run is writing it at this moment"
        raise bad("store", str(shown), why, f'tk.open("{shown}")', BlockingIOError) from exc
    return lock
