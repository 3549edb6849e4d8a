"""Steps become a labelled Dataset: in memory, or streamed into a Zarr store that a run can be gone on with.

Until a run ends, and whenever it does not end well, ``attrs["stopped"]`` says so.
"""

import hashlib
import importlib.metadata
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import xarray as xr

from . import __version__, later
from .bookmarks import Bookmark
from .dataset import LATENT, VARIABLES, Save, label, latent_coordinates, moments, rung_coordinates
from .errors import bad
from .inputs import plain
from .later import as_numpy
from .memory import Memory
from .reading import open as open_store
from .store import RUNG, Store

BLOCK = 8 * 2**20  # bytes of a ladder that are made, and written, at a time


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
            **getattr(model, "recorded", dict)(),
            "versions": versions(),
        }
    )


@cache
def versions() -> dict[str, str]:
    """Of this package, torch and diffusers, which is not imported for it."""
    diffusers = importlib.metadata.version("diffusers")
    return {"toolkit": __version__, "torch": torch.__version__, "diffusers": diffusers}


def digest(x: Any) -> str | None:
    """A short name of the exact bits of an array; None for none."""
    return None if x is None else hashlib.sha256(np.ascontiguousarray(as_numpy(x)).tobytes()).hexdigest()[:16]


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
    blocks : whether rows come many at a time, by `rungs`.
    inputs : arrays (or None) that the run was handed: another call with the same ones goes on with a store.
    device : where the states are. From a GPU rows are taken one hop late, see `toolkit.later`.
    coordinates : further dimensions by name, as (dim, values, attributes).
    levels : what is recorded of every level: name -> (dims, a function of sigma).
    fixed : variables without a row each, which are known from the beginning.
    """

    def __init__(self, save: Save, denoiser: Any, sigmas: Sequence[float], shape: Sequence[int],
                 attrs: Mapping, variables: Sequence[str] = ("latent", "denoised"),
                 dtype: str = "float64", growing: bool = False, blocks: bool = False,
                 inputs: Mapping = MappingProxyType({}), device: Any = "cpu",
                 coordinates: Mapping = MappingProxyType({}), levels: Mapping = MappingProxyType({}),
                 fixed: Mapping = MappingProxyType({})):  # fmt: skip
        self.save, self.denoiser, self.sigmas, self.attrs = save, denoiser, list(sigmas), dict(attrs)
        self.room, self.newest = len(self.sigmas), -1
        self.growing, self.stored = growing, save.store is not None
        self._unkept: torch.Tensor | None = None  # the newest row of a run whose last row is not known
        self.solver = attrs.get("solver", attrs["kind"])
        self.sizes = dict(zip(("step", "sample", "channel", "y", "x"), (self.room, *shape), strict=True))
        rungs = rung_coordinates(sigmas, denoiser.levels, denoiser.path)
        self.coordinates = rungs | latent_coordinates(shape) | dict(coordinates)
        self.sizes |= {name: len(values) for name, (_, values, _) in coordinates.items()}
        self._about = getattr(denoiser, "about", None)  # of a denoiser that knows more of its answers
        self.dtype = np.dtype(save.dtype or dtype)
        self.phase = ""  # what pass over the rows this is, for messages
        self._levels, self._fixed = levels, fixed
        self._own: dict[str, tuple[str, ...]] = {name: dims for name, (dims, _) in levels.items()}
        self._made: set[str] = set()
        self._turn, self._spent = 0, (0, 0)  # passes begun; calls and rows of an earlier process
        self._later = later.Later() if later.is_deferred(device) else None
        # makes a call that records something, or has it made once the states before it are known
        self._do: Callable[..., None] = _now if self._later is None else self._later.add
        # made on the device, but for float16, which torch rounds twice
        self._tells = self._later is not None and self.dtype.itemsize > 2
        # all rows at once cost a tenth of one by one; only where every row is there at the end
        last = save.every == 1 and save.keeps("latent") and not blocks and not self._tells
        names = {name: digest(value) for name, value in inputs.items()} if self.stored else {}
        block = max(1, min(BLOCK // (math.prod(shape) * self.dtype.itemsize), self.room)) if blocks else 0
        self.sink = (Store(save, self.coordinates, self.attrs, names, growing, block) if self.stored
                     else Memory(last, block))  # fmt: skip
        try:
            self._open(variables, device)
        except BaseException:
            self.sink.close()
            raise

    def _open(self, variables: Sequence[str], device: Any) -> None:
        """Room for the variables, and the bookmark of a run that is gone on with."""
        if not self.complete:
            for name in [*variables, *self._levels, "nfe", "rows", "mean", "std"]:
                if name not in ("latent", "denoised") or self.save.keeps(name):
                    self.make(name)
            if self.stored and not self.sink.resumed:
                self.sink.whole(_with_dims(self._fixed))
        self._begun: Bookmark | None = self.sink.publish(device)
        self.newest = self.sink.flagged - 1
        # the last row of a run that stopped is there, kept or not; it is no longer the last when that goes on
        self._lent = self.newest if self.newest >= 0 and not self._keeps(self.newest) else None
        if self.growing and self.newest >= 0:
            self.sigmas = self.sink.small["sigma"][: self.newest + 1].tolist()

    @property
    def complete(self) -> bool:
        """The store holds this run, whole, from an earlier call."""
        return self.sink.complete

    @property
    def calls(self) -> int:
        """Model calls of the run, those of an earlier process too."""
        return self._spent[0] + self.denoiser.calls

    @property
    def rows(self) -> int:
        """Network rows of the run, those of an earlier process too."""
        return self._spent[1] + self.denoiser.rows

    def begin(self) -> Bookmark:
        """A pass over the rows begins; says where an earlier process stood in it, or that it was through."""
        self.settle()
        self._turn += 1
        begun = self._begun
        if begun is None or begun.turn < self._turn:
            return Bookmark(self._turn)
        if begun.turn > self._turn:
            return Bookmark(self._turn, done=True)
        self._spent = (begun.calls, begun.rows)
        # a bookmark may be one hop behind the flags, where the process was killed between the two
        if self.growing and self._turn == 1 and begun.calls == self.sink.small["nfe"][self.newest]:
            self.last(begun.x)
        return begun

    def last(self, x: torch.Tensor) -> None:
        """The state of the newest row, which is kept if it stays the last one."""
        self._unkept = None if self._keeps(self.newest) else x

    def mark(self, i: int, x: torch.Tensor, past: tuple = (), **more: Any) -> None:
        """This is where the run stands in its pass: before hop i, at x."""
        if self.stored:
            mark = Bookmark(self._turn, i, x, past, self.calls, self.rows, more)
            self._do(self.sink.commit, self.sink.pack(mark))
            self.settle(wait=False)

    def settle(self, wait: bool = True) -> None:
        """Returns when what was recorded until now is known to be finite, and handed over."""
        if self._later is not None:
            self._later.settle(wait)

    def flush(self) -> None:
        """Returns when all that was recorded can be read."""
        self.settle()
        if self.stored:
            self.sink.flush()

    def make(self, name: str, dims: Sequence[str] | None = None, shape: Sequence[int] | None = None,
             fill: float | None = None) -> None:  # fmt: skip
        """Room for a variable: of the schema, or the user's own with its dims."""
        dims = dims or self._own.get(name) or VARIABLES[name][0]
        special = {
            "nfe": np.dtype("int64"),
            "rows": np.dtype("int64"),
            "latent": self.dtype,
            "denoised": self.dtype,
        }
        kind = special.get(name, np.dtype("float64"))
        self._made.add(name)
        self.sink.create(name, dims, shape or [self.sizes[d] for d in dims], kind, fill)

    @property
    def count(self) -> int:
        """Rows of the run, as far as it is known."""
        return len(self.sigmas)

    def grow(self, sigma: float) -> None:
        """A row more, of a run whose solver chooses its levels as it goes."""
        self.sigmas.append(sigma)
        row = self.count - 1
        if not self.stored and self.count > self.room:
            self.room = self.sizes["step"] = max(2 * self.room, 16)
            self.sink.resize(self.room)
        if self.stored:
            added = rung_coordinates([sigma], self.denoiser.levels, self.denoiser.path)
            for name in RUNG[1:]:  # the steps themselves are numbered already
                self.put(name, row, added[name][1][0])

    def zeros(self, *names: str) -> None:
        """Makes the variables, 0 in every row, where they are not there yet."""
        for name in names:
            if name not in self._made:
                self._make_later(name, fill=0.0)

    def _make_later(self, name: str, *shaped: Any, **filled: Any) -> None:
        self._made.add(name)
        self._do(partial(self.make, name, *shaped, **filled))

    def _keeps(self, row: int) -> bool:
        return row % self.save.every == 0 or (row == self.count - 1 and not self.growing)

    def check(self, row: int, x: torch.Tensor) -> None:
        """Stops the run where `x`, computed for this row, is not finite."""
        self.settle()
        self._watch(row, x)

    def _watch(self, row: int, x: torch.Tensor, told: later.Copy | None = None) -> None:
        self._do(self._judge, x.sum() if told is None else told, row, self.phase, self.count)

    def _judge(self, seen: torch.Tensor | later.Copy, row: int, phase: str, count: int) -> None:
        """The check, of a state's sum or its means; `phase` and `count` as they were when it was recorded."""
        if isinstance(seen, later.Copy):
            seen = seen.tensor() if seen.coming.ndim == 0 else seen.tensor()[0].sum()
        if not math.isfinite(seen):
            where = f"step {row}, sigma {self.sigmas[row]:.6g}, solver {self.solver}{phase}"
            del self.sigmas[count:]
            raise FloatingPointError(f"NaN or Inf in the state at {where}")

    def state(self, row: int, x: torch.Tensor) -> None:
        """The state at a row; stops the run where it is not finite."""
        self.settle()
        self._take(row, x)

    def _take(self, row: int, x: torch.Tensor) -> None:
        """The state at a row, of a hop whose opinion may be on its way."""
        told = later.held(later.moments(x, self.dtype)) if self._tells else None
        self._watch(row, x, told if self.dtype.itemsize == x.element_size() else None)
        do, put = self._do, self.sink.put
        if self._lent is not None and row > self._lent and "latent" in self.sink.arrays:
            do(put, "latent", self._lent, math.nan)
            self._lent = None
        keep = "latent" in self.sink.arrays and self._keeps(row)
        do(put, "nfe", row, self.calls)
        do(put, "rows", row, self.rows)
        for name, (_, value) in self._levels.items():
            do(put, name, row, value(self.sigmas[row]))
        do(self.sink.state, row, x if keep or told is None else None, keep, self.dtype, told)
        do(self._came, row, (None if keep else x,))

    def _came(self, row: int, unkept: tuple[torch.Tensor | None]) -> None:
        """A row is recorded; a state in a tuple stays where it is."""
        self.newest, self._unkept = max(self.newest, row), unkept[0]

    def opinion(self, row: int, x0: torch.Tensor) -> None:
        """The denoiser's x0 at a row."""
        if x0 is not None and self._keeps(row) and "denoised" in self.sink.arrays:
            self.put("denoised", row, x0)
        if self._about is not None:
            for name, value in self._about(x0).items():
                self.put(name, row, value)

    def put(self, name: str, row: int, value: Any) -> None:
        """Any other variable of the schema at a row, always kept."""
        self._do(self.sink.put, name, row, value)

    def block(self, first: int, end: int) -> np.ndarray:
        """Where rows first..end of a ladder are made: the result itself, or what a store is handed."""
        if not self.stored and "latent" in self.sink.arrays:
            return self.sink.arrays["latent"][first:end]
        return np.empty((end - first, *(self.sizes[d] for d in LATENT[1:])), self.dtype)

    def rungs(self, first: int, latent: np.ndarray, **small: np.ndarray) -> None:
        """Whole rungs of a ladder from row `first`, made in `block`, with their small numbers."""
        end = first + len(latent)
        for row in range(first, end) if self.save.every > 1 else ():
            if not self._keeps(row):
                latent[row - first] = math.nan
        none = np.zeros(len(latent), np.int64)
        self.sink.rungs(first, latent, {**small, "nfe": none, "rows": none})
        self.newest = end - 1

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """The counters until now, `nfe` and `rows`, each (step,)."""
        held = self.sink.small if self.stored else self.sink.arrays
        return tuple(held[name][: self.count].copy() for name in ("nfe", "rows"))

    def count_all(self, nfe: np.ndarray, rows: np.ndarray) -> None:
        """The counters of all rows."""
        self.sink.fill("nfe", nfe)
        self.sink.fill("rows", rows)

    def hop(self, step: Any, row: int, to: int) -> None:
        """One Step of the loop, from `row` to `to`, which is added where the solver chose that level now."""
        if self._later is not None:
            self._later.settle()
        if to == self.count:
            self.grow(step.span.t)
        self.opinion(row, step.seen.x0)
        if self.save.fn is not None:
            self._ask(step, row)
        self._take(to, step.x_next)

    def _ask(self, step: Any, row: int) -> None:
        line = 'tk.Save(fn=lambda step: {"largest": step.x.amax((1, 2, 3))})'
        answer = self.save.fn(step)
        if not isinstance(answer, Mapping):
            raise bad("fn", type(answer), "it must return a dict of numbers or arrays", line, TypeError)
        for name, value in answer.items():
            late = self._later is not None and isinstance(value, torch.Tensor)
            taken = later.held(value) if late else as_numpy(value)
            values = taken.coming if late else taken
            known = ("step", *("sample", "channel", "y", "x")[: values.ndim])
            fits = values.dtype.kind in "biuf" and [self.sizes.get(d) for d in known[1:]] == list(
                values.shape
            )
            used = name in VARIABLES or name in self.coordinates or name == "written"
            if not fits or used or not str(name).isidentifier():
                wanted = (
                    "a new name with a real scalar, (sample,), (sample, channel) or (sample, channel, y, x)"
                )
                raise bad("fn", (name, str(values.dtype), values.shape), wanted, line)
            if name not in self._own:
                self._own[name] = known
                self._make_later(name, known, (self.room, *values.shape))
            self.put(name, row, taken)

    @contextmanager
    def guard(self) -> Iterator["Recorder"]:
        """Whatever stops the run, what was recorded stays, in the store or as ``exc.dataset``."""
        try:
            with torch.no_grad():
                yield self
        except BaseException as raised:
            exc = self._cause(raised)
            reason = str(exc) or type(exc).__name__
            where = f"stopped at row {self.newest} of {self.count - 1}{self.phase}"
            if self.newest >= 0 and not self.complete:
                how = f'tk.open("{self.save.store}")' if self.stored else "exc.dataset"
                note = f"{where}; what was recorded is kept: {how}"
                try:
                    exc.dataset = self.finish(stopped=f"{where}: {reason}")
                except OSError:  # the disk is full, or gone: what it has, it has
                    note = f"{where}; what was written until then is kept: {how}"
                if isinstance(exc, (KeyboardInterrupt, FloatingPointError)):
                    exc.args = (f"{reason}: {note}" if str(exc) else note,)
                else:
                    exc.add_note(note)
            if exc is raised:
                raise
            raise exc from raised
        finally:
            self.sink.close()

    def _cause(self, raised: BaseException) -> BaseException:
        """What ended the run: a bad state, if one was on its way when something else was raised."""
        try:
            self.settle()
        except FloatingPointError as exc:
            return exc if isinstance(raised, Exception) else raised
        except Exception:  # of the device, or the disk: what is there, is there
            self._later.drop()
        return raised

    def opened(self) -> xr.Dataset:
        """The run of a store that is whole already."""
        return open_store(self.sink.folder)

    def finish(self, extra: Mapping[str, Any] | None = None, **attrs: Any) -> xr.Dataset:
        """The Dataset: unreached rows are left out, `extra` arrays and final attributes come in."""
        self.settle()
        rows = slice(0, self.newest + 1)
        if self._unkept is not None and "latent" in self.sink.arrays:  # the last row is always there
            self.sink.put("latent", self.newest, self._unkept)
        attrs = {**self.attrs, **plain(attrs)}
        if self.stored:
            self.sink.finish(_with_dims(extra or {}), attrs)
            return self.opened()
        arrays = {name: array[rows] for name, array in self.sink.arrays.items()}
        if self.sink.moments_last:
            arrays["mean"], arrays["std"] = moments(arrays["latent"])
        named = {
            n: (self._own.get(n, VARIABLES[n][0] if n in VARIABLES else ()), a) for n, a in arrays.items()
        }
        more = {**self._fixed, **(extra or {})}
        data = label({**named, **_with_dims(more)}, {}, {})
        rungs = rung_coordinates(self.sigmas[rows], self.denoiser.levels, self.denoiser.path)
        return data.assign_coords(label({}, {**self.coordinates, **rungs}, {}).coords).assign_attrs(attrs)


def _now(call: Callable, *args: Any) -> None:
    call(*args)


def _with_dims(variables: Mapping[str, Any]) -> dict[str, tuple[Sequence[str], Any]]:
    """Variables with their dims: as they come, or as the schema has them."""
    return {n: v if isinstance(v, tuple) else (VARIABLES[n][0], v) for n, v in variables.items()}
