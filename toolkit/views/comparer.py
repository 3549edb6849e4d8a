"""The comparer: two or more runs at equal noise, and what differs there."""

from collections.abc import Sequence
from functools import cache, partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import traitlets as t
import xarray as xr

from ..dataset import LATENT
from ..diagnostics import difference
from ..diagnostics.pairs import FIGURES, MATCHES, figures, meet
from ..errors import bad
from ..spaces import in_space
from .page import PAGE_BYTES, SIX_BITS, packed, place, write
from .paired import apart, still
from .payload import ATLAS, KINDS, RUNGS, TOP, Payload, check, column, cut, rows_with_latent, shown
from .scene import Scene
from .unpacked import Run
from .widget import RungView, levels_of, some, source

MODES, AXES, RUNS = ("side", "split", "blink"), ("log_sigma", "sigma"), ("A", "B")
LINE = "tk.views.compare(a, b)"
STATE = ("rung", "sigma", "sample", "channel", "focused", "a", "b", "mode", "axis", "match", "divider")
FINE_BYTES = 2 * PAGE_BYTES  # a run, with two bytes a value: the difference is what the page is for
FINE = 254  # parts of the step between two codes that a second byte tells apart


@cache
def module() -> str:
    """The comparer's ES module."""
    return source("rungs.js", "pairs.js", "compare.js")


def checked(runs: Sequence[Any], model: Any) -> list[xr.Dataset]:
    """The runs in one latent space, all dimensions in order; or the error that says why not."""
    if len(runs) < 2:
        raise bad("runs", len(runs), "two runs or more", LINE)
    out = []
    for run in runs:
        try:
            out.append(check(run, model))
        except (ValueError, TypeError) as error:  # the line to type is another one here
            raise type(error)(str(error).rsplit(" Try: ", 1)[0] + f" Try: {LINE}") from None
    shapes = [tuple(ds.latent.shape[1:]) for ds in out]
    for shape in shapes[1:]:
        if shape != shapes[0]:
            wanted = f"the first run has (sample, channel, y, x) {shapes[0]}"
            cut = [n for n, i, j in zip(LATENT[1:], shapes[0], shape, strict=True) if i != j]
            line = "tk.views.compare(a.isel({0}=[0]), b.isel({0}=[0]))".format(cut[0])
            raise bad("runs", shape, wanted, line if cut[0] in ("sample", "channel") else LINE)
    if len({ds.attrs.get("latent_space") for ds in out}) > 1:
        out = [in_space(ds, "model") if ds.attrs.get("latent_space") == "vae" else ds for ds in out]
    return out


def spoken(words: Sequence[str]) -> str:
    """Solver and schedule of a run, from its provenance: what stands before its steps."""
    first = next(i for i, word in enumerate(words) if word.split()[-1] in ("step", "steps", "rung"))
    return ", ".join(words[:first])


def shares(needs: Sequence[int], room: int) -> list[int]:
    """How much of the room each gets: as much as it needs, the largest what is left."""
    out, left = [0] * len(needs), room
    for k, i in enumerate(sorted(range(len(needs)), key=lambda i: needs[i])):
        out[i] = min(needs[i], max(2, left // (len(needs) - k)))
        left -= out[i]
    return out


def remainders(values: np.ndarray, codes: np.ndarray, lo: np.ndarray, hi: np.ndarray, top: int) -> bytes:
    """A second byte for each code: where between code - 1/2 and code + 1/2 the value lies, in 254 parts."""
    low, step = (v.astype(np.float64)[..., None, None] for v in (lo, (hi.astype(np.float64) - lo) / top))
    rest = (np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0) - low) / np.where(step > 0, step, 1)
    return np.clip(np.round((rest - codes + 0.5) * FINE), 0, FINE).astype(np.uint8).tobytes()


def fine(ds: xr.Dataset, payload: Payload, name: str) -> bytes:
    """The second bytes of a variable of a payload."""
    codes = getattr(payload, name)
    if not codes:
        return b""
    shape, sizes = payload.meta["shape"], payload.meta["floats"]
    starts = dict(zip((n for n, _ in sizes), np.cumsum([0, *(s for _, s in sizes[:-1])]), strict=True))
    floats = np.frombuffer(payload.floats, "<f4")
    lo, hi = (floats[(i := starts[f"{name}.{end}"]) : i + np.prod(shape[:3])] for end in ("lo", "hi"))
    values = ds[name][payload.meta["rungs"]].values
    codes = np.frombuffer(codes, np.uint8).reshape(shape)
    return remainders(values, codes, lo.reshape(shape[:3]), hi.reshape(shape[:3]), payload.meta["top"])


def tables(runs: Sequence[xr.Dataset], payloads: Sequence[Payload]) -> dict[str, np.ndarray]:
    """For each two runs, at the rungs shown of the first: its figures against the second, and where that is.

    Figures are of the whole second run; `low`, `high`, `share` are places among its rungs that are shown.
    """
    shown = [ds.isel(step=p.meta["rungs"]) for ds, p in zip(runs, payloads, strict=True)]
    out = {}
    for i, own in enumerate(shown):
        values = own.latent.values.astype(np.float64).reshape(*own.latent.shape[:2], -1)
        with np.errstate(invalid="ignore"):  # a state that ran to infinity has none
            out[f"{i}.std"] = values.std(axis=-1)
        for j, other in enumerate(runs):
            names = [n for n in ("latent", "denoised") if payloads[i].meta[n] and payloads[j].meta[n]]
            for name in names if i != j else ():
                rows, share = meet(own, shown[j], name, MATCHES[0])
                key = f"{i}-{j}.{name}"
                out |= {f"{key}.low": rows[:, 0], f"{key}.high": rows[:, 1], f"{key}.share": share}
                for match in MATCHES:
                    found = figures(own, other, name, *meet(own, other, name, match))
                    out |= {f"{key}.{match}.{what}": found[what] for what in FIGURES}
    return out


def pack(runs: Sequence[xr.Dataset], model: Any = None, top: int = TOP) -> list[Payload]:
    """The scrubber's payload of each run; 256 rungs and 16 MB are shared by all."""
    each = sum(int(np.prod(runs[0].latent.shape[1:])) for n in ("latent", "denoised")
               if any(n in ds for ds in runs))  # fmt: skip
    room = min(RUNGS, ATLAS // (2 * each))
    if room < 2 * len(runs):
        wanted = f"a rung takes {2 * each / 2**20:.1f} MB, and all runs together have {ATLAS // 2**20}"
        raise bad("runs", len(runs), wanted, "tk.views.compare(a.isel(sample=[0]), b.isel(sample=[0]))")
    kept = [rows_with_latent(ds) for ds in runs]
    some = [
        shown(ds, k, m) for ds, k, m in zip(runs, kept, shares([len(k) for k in kept], room), strict=True)
    ]
    kinds = KINDS[: 1 if all("denoised" in ds for ds in runs) else 2]  # what is shown large
    payloads = [cut(ds, model, s, k, top, kinds=kinds) for ds, s, k in zip(runs, some, kept, strict=True)]
    for payload in payloads:
        payload.meta |= {"latent": True, "denoised": bool(payload.denoised)}
    return payloads


class Comparer(RungView):
    """Runs at equal noise; made by ``tk.views.compare``.

    Attributes
    ----------
    focused : {"A", "B"}
        The run whose rungs one moves along; the other one is met at the same sigma.
    rung : int
        The row of the focused run; setting it goes to the nearest rung that is shown. Negative numbers count
        from the end.
    sigma : float
        The level of that rung; setting it goes to the rung nearest to it.
    sample, channel : int
        What is shown.
    a, b : int
        Which runs are compared, by their place in the call. Never the same: what is chosen twice is swapped.
    match : {"interpolated", "nearest"}
        What stands for the other run between two of its rungs.
    mode : {"side", "split", "blink"}
        Side by side, one beside a divider, or in turn.
    axis : {"log_sigma", "sigma"}
        What the rail runs along.
    divider : float
        Where the divider stands, 0 (left) to 1.

    Examples
    --------
    >>> import toolkit as tk
    >>> view = tk.views.compare(tk.testing.ladder_dataset(), tk.testing.ladder_dataset(steps=7))
    >>> view.focused, view.sigma = "B", 7
    >>> view.rung, round(view.sigma, 3)
    (6, 7.095)
    """

    _esm = module()

    channel = t.Int(0).tag(sync=True)
    focused = t.Enum(RUNS, RUNS[0]).tag(sync=True)
    a = t.Int(0).tag(sync=True)
    b = t.Int(1).tag(sync=True)
    mode = t.Enum(MODES, MODES[0]).tag(sync=True)
    axis = t.Enum(AXES, AXES[0]).tag(sync=True)
    match = t.Enum(MATCHES, MATCHES[0]).tag(sync=True)
    divider = t.Float(0.5, min=0.0, max=1.0).tag(sync=True)

    _compare = t.Dict().tag(sync=True)  # what each payload says of itself, and where in the bytes it lies
    _pictures = t.Bytes().tag(sync=True)
    _fine = t.Bytes().tag(sync=True)
    _tables = t.Bytes().tag(sync=True)

    def __init__(self, runs: Sequence[xr.Dataset], names: Sequence[str] | None = None, model: Any = None):
        self._datasets = checked(runs, model)
        named = names is not None
        if named and (isinstance(names, str) or len(names) != len(runs)):
            raise bad(
                "names", names, f"one name for each of {len(runs)} runs", f'{LINE[:-1]}, names=["a", "b"])'
            )
        payloads = pack(self._datasets, model)
        self._given, self._decoded = named, [(p.meta["pictures"], p.pictures) for p in payloads]
        self._names = [str(n) for n in names] if named else [spoken(p.meta["words"]) for p in payloads]
        self._metas, self._tables_of = [p.meta for p in payloads], tables(self._datasets, payloads)
        middle = payloads[0].meta["rungs"][len(payloads[0].meta["rungs"]) // 2]
        start = {"rung": middle, "sigma": float(column(self._datasets[0], "sigma")[middle])}
        super(RungView, self).__init__(**self._parts(payloads), **start)

    def _parts(self, payloads: Sequence[Payload], fine_too: bool = True) -> dict[str, Any]:
        """The traits that carry the payloads: the bytes of all runs one after the other."""
        parts: dict[str, list[bytes]] = {
            f"_{name}": [getattr(p, name) for p in payloads]
            for name in ("latent", "denoised", "floats", "pictures")
        }
        both = zip(self._datasets, payloads, strict=True)
        parts["_fine"] = [fine(ds, p, n) for ds, p in both for n in ("latent", "denoised") if fine_too]
        sizes = {name: [len(part) for part in each] for name, each in parts.items()}
        out: dict[str, Any] = {name: b"".join(each) for name, each in parts.items()}
        flat = [table.ravel() for table in self._tables_of.values()]
        out["_tables"] = np.concatenate(flat).astype("<f4").tobytes()
        index = [[key, table.size] for key, table in self._tables_of.items()]
        runs = [
            p.meta | {"name": name or p.meta["title"]} for p, name in zip(payloads, self._names, strict=True)
        ]
        return out | {"_compare": {"runs": runs, "sizes": sizes, "tables": index}}

    @property
    def called(self) -> list[str]:
        """What A and B are called."""
        return [self._names[k] or self._metas[k]["title"] for k in (self.a, self.b)]

    @property
    def _run(self) -> dict[str, Any]:
        """What the payload of the focused run says of itself."""
        return self._metas[self.a if self.focused == RUNS[0] else self.b]

    @property
    def _levels(self) -> np.ndarray:
        return levels_of(self._run)

    @property
    def difference(self) -> xr.Dataset:
        """A - B at every rung of the focused run: ``tk.diagnostics.difference``."""
        a, b = self._datasets[self.a], self._datasets[self.b]
        return difference(a, b, self.match, self.focused.lower())

    def __repr__(self) -> str:
        told = []
        for letter, k in zip(RUNS, (self.a, self.b), strict=True):
            kind = [] if self._given else [str(self._datasets[k].attrs.get("kind", "run"))]
            words = [*kind, *([self._names[k].replace(", ", " ")] if self._names[k] else [])]
            told.append(f"{letter}: {' '.join(words)}, {some(self._metas[k]['steps'], 'rung')}")
        more = len(self._metas) - 2
        return f"Comparer({'; '.join(told)}{f'; {more} more' if more else ''})"

    def _still(self) -> bytes:
        return still(self)

    def _scene(self, scale: float) -> Scene:
        k = self.a if self.focused == RUNS[0] else self.b
        starts = {name: np.cumsum([0, *sizes]) for name, sizes in self._compare["sizes"].items()}
        names = ("_latent", "_denoised", "_floats")
        own = [getattr(self, name)[starts[name][k] : starts[name][k + 1]] for name in names]
        return Scene(self, partial(apart, self), scale, run=Run(self._metas[k] | {"title": "Compare"}, *own))

    def to_html(self, path: str | PathLike[str]) -> Path:
        path = place(path)
        stride = int(np.prod(self._metas[0]["shape"][1:]))
        for top, fine_too, most in ((TOP, True, FINE_BYTES), (TOP, False, PAGE_BYTES), (SIX_BITS, False, 0)):
            payloads = pack([ds.drop_vars("image", errors="ignore") for ds in self._datasets], None, top)
            for payload, (index, pictures) in zip(payloads, self._decoded, strict=True):
                payload.meta["pictures"], payload.pictures = index, pictures
            parts = self._parts(payloads, fine_too)
            meta = parts.pop("_compare")
            data, layout = packed(parts, {"_latent": stride, "_denoised": stride})
            if len(data) <= most * len(payloads):
                break
        state = {name: getattr(self, name) for name in STATE} | {"_compare": meta}
        words = ["Compare", *(run["name"] for run in meta["runs"])]
        return write(path, words, state, data, layout, module())

    @t.validate("a", "b")
    def _there(self, proposal: Any) -> int:
        name, given, last = proposal["trait"].name, proposal["value"], len(self._metas) - 1
        if not 0 <= given <= last:
            raise bad(
                name, given, f"there are {last + 1} runs, from 0", f"view.{name} = {last}", t.TraitError
            )
        return given

    @t.observe("a", "b")
    def _swap(self, change: Any) -> None:
        other = "b" if change["name"] == "a" else "a"
        if getattr(self, other) == change["new"]:
            setattr(self, other, change["old"])

    @t.observe("focused", "a", "b")
    def _refocus(self, change: Any) -> None:
        levels, rungs = self._levels, self._run["rungs"]
        if self.rung not in rungs or levels[rungs.index(self.rung)] != self.sigma:
            near = int(np.nanargmin(np.abs(levels - self.sigma)))
            self.rung, self.sigma = rungs[near], float(levels[near])


def compare(*runs: xr.Dataset, names: Sequence[str] | None = None, model: Any = None) -> Comparer:
    """Compare runs at equal noise: states, what the model sees in them, and the difference.

    Parameters
    ----------
    *runs : Dataset
        Two recorded runs or more, of any kind and direction, with `latent` (step, sample, channel, y, x) of
        the same samples, channels and pixels, and the coordinate `sigma`. They are aligned by sigma: between
        two rungs the other run is interpolated in log sigma, as in ``tk.diagnostics.difference``.
    names : sequence of str, optional
        What the runs are called; else their solver and schedule.
    model : optional
        Anything with ``decode(latent) -> (sample, y, x, rgb)`` in 0..1; adds decoded images.

    Returns
    -------
    Comparer
        A widget whose traits (`rung`, `sigma`, `focused`, `a`, `b`, ...) can be read, set and linked.
        ``view.difference`` is the Dataset of the differences, ``view.to_html(path)`` writes a page. The runs
        share 256 rungs and 16 MB; pictures keep 16 bits of each value's range at its rung, and figures are
        of the values themselves.

    Raises
    ------
    ValueError, TypeError
        For fewer than two runs, runs of different shapes, and what cannot be drawn.

    Examples
    --------
    >>> import toolkit as tk
    >>> tk.views.compare(tk.testing.ladder_dataset(), tk.testing.unsample_dataset(steps=12))
    Comparer(A: ladder karras, 21 rungs; B: unsample euler karras, 13 rungs)
    """
    return Comparer(runs, names, model)
