"""Steps become a labelled Dataset: in memory, or streamed row by row into a Zarr store.

The store gets its template first (coordinates and attributes), then the data, then the `written` flag of the
row, so it opens at any moment; until the run ends, and whenever it does not end well, ``attrs["stopped"]``
says so.
"""

import importlib.metadata
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
import xarray as xr

from . import __version__
from .dataset import VARIABLES, Save, attributes, label, latent_coordinates, moments, rung_coordinates
from .dataset import open as open_store
from .errors import bad
from .inputs import plain

UNFINISHED = "unfinished: the process ended, or is still running"
FILL = {"f": math.nan, "i": 0, "b": False}
RUNG = ("step", "sigma", "timestep", "alpha", "log_snr")  # coordinates with a value a row


def provenance(denoiser: Any, **facts: Any) -> dict[str, Any]:
    """The attributes of a run: what was asked, of which model, with which versions. Plain JSON, no clock."""
    model = getattr(denoiser, "model", None) or denoiser
    return plain(
        {
            **facts,
            "path": denoiser.path.name,
            "levels": denoiser.levels.describe(),
            "prediction": getattr(model, "prediction", "x0"),
            "latent_space": "model",
            "latent_scale": float(getattr(model, "latent_scale", 1.0)),
            "latent_shift": float(getattr(model, "latent_shift", 0.0)),
            "model": getattr(model, "name", type(model).__name__.strip("_").lower()),
            "fingerprint": getattr(model, "fingerprint", None),
            "versions": versions(),
        }
    )


@cache
def versions() -> dict[str, str]:
    """Of this package, torch and diffusers, which is not imported for it."""
    diffusers = importlib.metadata.version("diffusers")
    return {"toolkit": __version__, "torch": torch.__version__, "diffusers": diffusers}


def as_numpy(x: Any) -> np.ndarray:
    """A tensor (or anything array-like) on the host."""
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


class _Memory:
    """Rows in preallocated arrays."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.rowed: set[str] = set()  # those with a row a step

    def create(self, name: str, dims: Sequence[str], shape: Sequence[int], dtype: np.dtype) -> None:
        self.arrays[name] = np.full(shape, FILL[dtype.kind], dtype)
        if dims[0] == "step":
            self.rowed.add(name)

    def resize(self, rows: int) -> None:
        """Room for more rows."""
        for name in self.rowed:
            old = self.arrays[name]
            self.arrays[name] = np.full((rows, *old.shape[1:]), FILL[old.dtype.kind], old.dtype)
            self.arrays[name][: len(old)] = old

    def level(self, row: int, coordinates: Mapping[str, Any]) -> None:
        """Nothing to write: coordinates are made at the end."""

    def flag(self, row: int) -> None:
        """Nothing to flag: memory does not outlive the run."""


class _Store:
    """Rows in a Zarr group, one plain chunk a rung, no compressor: noise does not compress."""

    def __init__(self, path: Any, coordinates: Mapping, attrs: Mapping) -> None:
        import zarr

        folder = FilePath(path)
        line = f'tk.Save(store="{folder.with_name(folder.stem + "-2" + folder.suffix)}")'
        if folder.exists():
            why = "there is something of that name already, and nothing is overwritten"
            raise bad("store", str(path), why, line)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            empty = xr.Dataset(coords=dict(coordinates), attrs={**attrs, "stopped": UNFINISHED})
            empty.to_zarr(folder, mode="w-", zarr_format=3, consolidated=False)
        except OSError as exc:
            line = 'tk.Save(store="run.zarr")'
            raise bad("store", str(path), f"cannot be written ({exc})", line, type(exc)) from exc
        self.group = zarr.open_group(folder, mode="r+")
        self.arrays: dict[str, Any] = {}
        self.rowed: set[str] = set()
        steps = len(coordinates["step"][1])
        self.create("written", ("step",), (steps,), np.dtype(bool))

    def create(self, name: str, dims: Sequence[str], shape: Sequence[int], dtype: np.dtype) -> None:
        chunks = (1, *shape[1:]) if len(shape) > 3 and dims[0] == "step" else tuple(shape)
        fill, told = FILL.get(dtype.kind, False), attributes(name)
        self.arrays[name] = self.group.create_array(
            name, shape=shape, chunks=chunks, dtype=dtype, compressors=None, fill_value=fill,
            dimension_names=dims, attributes=told,
        )  # fmt: skip
        if dims[0] == "step":
            self.rowed.add(name)

    def resize(self, rows: int) -> None:
        """Room for more rows."""
        for name in [*self.rowed, *RUNG]:
            array = self.group[name]
            array.resize((rows, *array.shape[1:]))
        self.arrays |= {name: self.group[name] for name in self.rowed}

    def level(self, row: int, coordinates: Mapping[str, Any]) -> None:
        """The coordinates of a row that was added."""
        for name in RUNG:
            self.group[name][row] = coordinates[name][1][-1]

    def flag(self, row: int) -> None:
        """The row is all there."""
        self.arrays["written"][row] = True


class Recorder:
    """Takes the rows of one run and gives its Dataset.

    Parameters
    ----------
    save : Save
    denoiser : Denoiser
        Whose path, levels and counters label the rows.
    sigmas : sequence of float
        The level of every row.
    shape : (sample, channel, y, x)
    attrs : dict
        From `provenance`.
    variables : names of `dataset.VARIABLES` to make room for, beside the counters and the moments.
    dtype : default of latent and denoised.
    growing : whether rows are added as the run goes, by `grow`.
    """

    def __init__(self, save: Save, denoiser: Any, sigmas: Sequence[float], shape: Sequence[int],
                 attrs: Mapping, variables: Sequence[str] = ("latent", "denoised"),
                 dtype: str = "float64", growing: bool = False):  # fmt: skip
        self.save, self.denoiser, self.sigmas, self.attrs = save, denoiser, list(sigmas), dict(attrs)
        self.room, self.newest = len(self.sigmas), -1
        self.growing = growing
        self._unkept: dict[str, np.ndarray] = {}  # the newest row of a run whose last row is not known
        self.solver = attrs.get("solver", attrs["kind"])
        self.sizes = dict(zip(("step", "sample", "channel", "y", "x"), (self.room, *shape), strict=True))
        rungs = rung_coordinates(sigmas, denoiser.levels, denoiser.path)
        self.coordinates = rungs | latent_coordinates(shape)
        self.dtype = np.dtype(save.dtype or dtype)
        self.phase = ""  # what pass over the rows this is, for messages
        self._own: dict[str, tuple[str, ...]] = {}
        self.sink = _Store(save.store, self.coordinates, self.attrs) if save.store is not None else _Memory()
        for name in variables:
            if name not in ("latent", "denoised") or save.keeps(name):
                self.make(name)
        for name in ("nfe", "rows", "mean", "std"):
            self.make(name)
        # all rows at once cost a tenth of one by one; only where every row is there at the end
        self._moments_last = isinstance(self.sink, _Memory) and save.every == 1 and save.keeps("latent")

    def make(self, name: str, dims: Sequence[str] | None = None, shape: Sequence[int] | None = None) -> None:
        """Room for a variable: of the schema, or the user's own with its dims."""
        dims = dims or VARIABLES[name][0]
        special = {
            "nfe": np.dtype("int64"),
            "rows": np.dtype("int64"),
            "latent": self.dtype,
            "denoised": self.dtype,
        }
        kind = special.get(name, np.dtype("float64"))
        self.sink.create(name, dims, shape or [self.sizes[d] for d in dims], kind)

    @property
    def count(self) -> int:
        """Rows of the run, as far as it is known."""
        return len(self.sigmas)

    def grow(self, sigma: float) -> None:
        """A row more, of a run whose solver chooses its levels as it goes."""
        self.sigmas.append(sigma)
        if self.count > self.room:
            self.room = self.sizes["step"] = max(2 * self.room, 16)
            self.sink.resize(self.room)
        added = rung_coordinates([sigma], self.denoiser.levels, self.denoiser.path)
        added["step"] = ("step", np.array([self.count - 1]))
        self.sink.level(self.count - 1, added)

    def zeros(self, *names: str) -> None:
        """Makes the variables, 0 in every row, where they are not there yet."""
        for name in names:
            if name not in self.sink.arrays:
                self.make(name)
                self.sink.arrays[name][...] = 0.0

    def _keeps(self, row: int) -> bool:
        return row % self.save.every == 0 or (row == self.count - 1 and not self.growing)

    def check(self, row: int, x: torch.Tensor) -> None:
        """Stops the run where `x`, computed for this row, is not finite."""
        if not math.isfinite(float(x.sum())):
            where = f"step {row}, sigma {self.sigmas[row]:.6g}, solver {self.solver}{self.phase}"
            raise FloatingPointError(f"NaN or Inf in the state at {where}")

    def state(self, row: int, x: torch.Tensor) -> None:
        """The state at a row; stops the run where it is not finite."""
        self.check(row, x)
        arrays, values = self.sink.arrays, as_numpy(x)
        self._unkept = {}
        if "latent" in arrays:
            if self._keeps(row):
                arrays["latent"][row] = values
            else:
                self._unkept["latent"] = values
        arrays["nfe"][row] = self.denoiser.calls
        arrays["rows"][row] = self.denoiser.rows
        if not self._moments_last:
            arrays["mean"][row], arrays["std"][row] = moments(values.astype(self.dtype, copy=False))
        self.newest = row
        self.sink.flag(row)

    def opinion(self, row: int, x0: torch.Tensor) -> None:
        """The denoiser's x0 at a row."""
        if x0 is not None and self._keeps(row) and "denoised" in self.sink.arrays:
            self.sink.arrays["denoised"][row] = as_numpy(x0)

    def put(self, name: str, row: int, value: Any) -> None:
        """Any other variable of the schema at a row, always kept."""
        self.sink.arrays[name][row] = as_numpy(value)

    def add_counts(self, calls: np.ndarray, rows: np.ndarray) -> None:
        """What another pass over the rows has cost, (step,), added to the counters."""
        for name, more in (("nfe", calls), ("rows", rows)):
            array = self.sink.arrays[name]
            array[: len(more)] = array[: len(more)] + more

    def hop(self, step: Any, row: int, to: int) -> None:
        """One Step of the loop, from `row` to `to`, which is added where the solver chose that level now."""
        if to == self.count:
            self.grow(step.span.t)
        self.opinion(row, step.seen.x0)
        if self.save.fn is not None:
            self._ask(step, row)
        self.state(to, step.x_next)

    def _ask(self, step: Any, row: int) -> None:
        line = 'tk.Save(fn=lambda step: {"largest": step.x.amax((1, 2, 3))})'
        answer = self.save.fn(step)
        if not isinstance(answer, Mapping):
            raise bad("fn", type(answer), "it must return a dict of numbers or arrays", line, TypeError)
        for name, value in answer.items():
            values = np.asarray(as_numpy(value))
            known = ("step", *("sample", "channel", "y", "x")[: values.ndim])
            fits = values.dtype.kind in "biuf" and [self.sizes.get(d) for d in known[1:]] == list(
                values.shape
            )
            taken = name in VARIABLES or name in self.coordinates or name == "written"
            if not fits or taken or not str(name).isidentifier():
                wanted = (
                    "a new name with a real scalar, (sample,), (sample, channel) or (sample, channel, y, x)"
                )
                raise bad("fn", (name, str(values.dtype), values.shape), wanted, line)
            if name not in self._own:
                self._own[name] = known
                self.make(name, known, (self.room, *values.shape))
            self.sink.arrays[name][row] = values

    @contextmanager
    def guard(self) -> Iterator["Recorder"]:
        """Whatever stops the run, what was recorded stays, in the store or as ``exc.dataset``."""
        try:
            with torch.no_grad():
                yield self
        except BaseException as exc:
            reason = str(exc) or type(exc).__name__
            where = f"stopped at row {self.newest} of {self.count - 1}{self.phase}"
            if self.newest >= 0:
                exc.dataset = self.finish(stopped=f"{where}: {reason}")
                how = f'tk.open("{self.save.store}")' if self.save.store is not None else "exc.dataset"
                note = f"{where}; what was recorded is kept: {how}"
                if isinstance(exc, (KeyboardInterrupt, FloatingPointError)):
                    exc.args = (f"{reason}: {note}" if str(exc) else note,)
                else:
                    exc.add_note(note)
            raise

    def finish(self, extra: Mapping[str, Any] | None = None, **attrs: Any) -> xr.Dataset:
        """The Dataset: unreached rows are left out, `extra` arrays and final attributes come in."""
        rows = slice(0, self.newest + 1)
        for name, values in self._unkept.items():  # the last row is always there
            self.sink.arrays[name][self.newest] = values
        attrs = {**self.attrs, **plain(attrs)}
        if isinstance(self.sink, _Memory):
            arrays = {name: array[rows] for name, array in self.sink.arrays.items()}
            if self._moments_last:
                arrays["mean"], arrays["std"] = moments(arrays["latent"])
            named = {
                n: (self._own.get(n, VARIABLES[n][0] if n in VARIABLES else ()), a) for n, a in arrays.items()
            }
            data = label({**named, **(extra or {})}, {}, {})
            rungs = rung_coordinates(self.sigmas[rows], self.denoiser.levels, self.denoiser.path)
            return data.assign_coords(label({}, {**self.coordinates, **rungs}, {}).coords).assign_attrs(attrs)
        for name, value in (extra or {}).items():
            dims, array = value if isinstance(value, tuple) else (VARIABLES[name][0], value)
            self.sink.create(name, dims, array.shape, np.asarray(array).dtype)
            self.sink.arrays[name][...] = array
        self.sink.group.attrs.put(attrs)
        return open_store(self.save.store)
