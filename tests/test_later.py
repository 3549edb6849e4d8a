"""Recording behind a device, on a stand-in for one: what is held back becomes the record made at once."""

import contextlib
from itertools import chain

import numpy as np
import pytest
import torch
import xarray as xr
from crashing import RUNS, Kind, mixture, picture
from torch.utils._python_dispatch import TorchDispatchMode

import toolkit as tk
from toolkit import later, plans
from toolkit.dataset import moments
from toolkit.store import Store

QUIET = {"progress": False}


class Slow(later.Copy):
    """A copy as from a device that is never done: nothing is in it until somebody waits for it."""

    def __init__(self, x: torch.Tensor):
        self._seen = x.detach().clone()
        self._held = torch.full_like(self._seen, torch.nan if x.is_floating_point() else 77)

    def ready(self) -> bool:
        return False

    def tensor(self) -> torch.Tensor:
        return self._held.copy_(self._seen)


class Quick(Slow):
    """A copy that is there at once."""

    def ready(self) -> bool:
        return True


@contextlib.contextmanager
def behind(kind: type = Slow):
    """Every run is recorded as from a device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(later, "Copy", kind)
        patch.setattr(later, "is_deferred", lambda device: True)
        yield


def halves(**asked):
    """Two regions and what is left of the canvas."""
    left = tk.Region(tk.box(0.0, 0.0, 0.5, 1.0, size=(6, 6)), prompt=1, feather=1)
    return {"regions": [left], "prompt": 0, "negative": 1, "cfg": 2.0, **asked}


def regional(model, **asked):
    return tk.regional(model, **halves(**asked))


KINDS = {
    **RUNS,
    "regions": Kind(tk.unsample, picture, solver="heun", steps=3, **halves()),
    "regions, step": Kind(regional, steps=3, solver="dpmpp_2m", mode="step"),
    "defect": Kind(tk.unsample, picture, solver="euler", inverse="defect", steps=3),
    "reverse": Kind(tk.unsample, two := RUNS["algebraic"].given[0], solver="dpmpp_2m", inverse="reverse"),
    "every, float16": Kind(tk.sample, solver="heun", steps=6, kept={"every": 4, "dtype": "float16"}),
}  # fmt: skip
assert two().shape[0] == 2


def same(ds: xr.Dataset, want: xr.Dataset) -> None:
    """Bit for bit, but for mean and std: a device sums in an order of its own."""
    ds, want = ds.load(), want.load()
    for name in ("mean", "std"):
        scale = max(1.0, float(np.abs(want[name]).max()))
        np.testing.assert_allclose(ds[name], want[name], rtol=0, atol=1e-12 * scale)
    xr.testing.assert_identical(ds.drop_vars(["mean", "std"]), want.drop_vars(["mean", "std"]))


@contextlib.contextmanager
def spoiled(spoil):
    """`spoil(call, x0)` in place of every answer of the model; yields the calls made."""
    made, x0 = [], tk.GaussianMixture.x0

    def answer(self, x, sigma, conditions):
        made.append(sigma)
        return spoil(len(made) - 1, x0(self, x, sigma, conditions))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tk.GaussianMixture, "x0", answer)
        yield made


def inf_at(call: int, then: type[BaseException] | None = None):
    """One pixel is Inf at a call; at the next one `then` is raised."""

    def spoil(number: int, x0: torch.Tensor) -> torch.Tensor:
        if then is not None and number == call + 1:
            raise then
        if number == call:
            x0 = x0.clone()
            x0[0, 1, 2, 3] = torch.inf
        return x0

    return spoil


def stop_at(call: int):
    """Ctrl-C at a call."""

    def spoil(number: int, x0: torch.Tensor) -> torch.Tensor:
        if number == call:
            raise KeyboardInterrupt
        return x0

    return spoil


def counted(kind: Kind) -> int:
    with spoiled(lambda call, x0: x0) as made:
        kind()
    return len(made)


def ended(kind: Kind, spoil, store=None) -> tuple[str, str, xr.Dataset]:
    """How a run ends: the error's name, its words without the place, its Dataset."""
    with spoiled(spoil), pytest.raises((FloatingPointError, KeyboardInterrupt, RuntimeError)) as caught:
        kind(store)
    return type(caught.value).__name__, str(caught.value).replace(str(store), "PLACE"), caught.value.dataset


# an implicit inverse, off its model and on so coarse a grid
pytestmark = pytest.mark.filterwarnings("ignore:the sweeps came back to")


@pytest.mark.parametrize("copy", [Slow, Quick])
@pytest.mark.parametrize("name", KINDS)
def test_a_run_is_what_it_is_without(name, copy, tmp_path):
    kind = KINDS[name]
    want = kind()
    with behind(copy):
        same(kind(), want)
        kept = kind(tmp_path / "run.zarr")
    same(kept, want)
    assert not (tmp_path / "run.zarr" / "resume").exists()


# a replay has a run before it, which is spoiled first
SOLVED = [name for name in KINDS if name != "replay" and not name.startswith("ladder")]


@pytest.mark.parametrize("name", SOLVED)
def test_a_bad_state_ends_it_at_the_same_place(name, tmp_path):
    kind, total = KINDS[name], counted(KINDS[name])
    for call in sorted({0, 1, total // 2, total - 2, total - 1}):
        with spoiled(inf_at(call)), contextlib.suppress(FloatingPointError, RuntimeError):
            kind()
            continue  # not every answer reaches a state: the last sweep's, an error estimate's
        want = ended(kind, inf_at(call))
        with behind():
            got = ended(kind, inf_at(call))
            stored = ended(kind, inf_at(call), tmp_path / f"{call}.zarr")
        assert got[:2] == want[:2]
        same(got[2], want[2])
        assert stored[1] == want[1].replace("exc.dataset", 'tk.open("PLACE")')
        same(stored[2], want[2])


@pytest.mark.parametrize("name", ["offsets", "growing", "sample, fn", "sample, every", "regions, step"])
def test_whoever_stops_it_finds_the_same_rows(name, tmp_path):
    kind, total = KINDS[name], counted(KINDS[name])
    for call in {1, total // 2, total - 1}:
        stop = stop_at(call)
        want = ended(kind, stop)
        with behind():
            got = ended(kind, stop)
            stored = ended(kind, stop, tmp_path / f"{call}.zarr")
        assert got[:2] == want[:2]
        assert want[0] == "KeyboardInterrupt"
        same(got[2], want[2])
        same(stored[2], want[2])


@pytest.mark.parametrize("name", ["offsets", "growing", "sample", "sample, fn", "algebraic"])
def test_a_store_goes_on_after_a_bad_state(name, tmp_path):
    kind, total, place = KINDS[name], counted(KINDS[name]), tmp_path / "run.zarr"
    want = kind()
    with behind():
        ended(kind, inf_at(total // 2), place)
        kept = tk.open(place)
        assert np.isfinite(kept["std"]).all()
        same(kind(place), want)
    assert kept.sizes["step"] < want.sizes["step"] or kind.passes == 2


@pytest.mark.parametrize(
    "name", ["offsets", "noise", "growing sample", "sample, fn", "sample, every", "replay"]
)
def test_the_disk_is_given_the_same_things_at_a_time(name, tmp_path):
    """So a kill, whenever it comes, leaves what it may leave of a run that records at once."""

    def batches(where, call) -> list:
        write, found = Store._write, []

        def seen(self, items):
            found.append([_plain(item) for item in items])
            write(self, items)

        with pytest.MonkeyPatch.context() as patch, spoiled(inf_at(call)):
            patch.setattr(Store, "_write", seen)
            with contextlib.suppress(FloatingPointError):
                KINDS[name](where)
        return [batch for batch in found if batch]

    total = counted(KINDS[name])
    for call in (-1, total // 2):
        want = batches(tmp_path / f"at once {call}", call)
        with behind():
            got = batches(tmp_path / f"later {call}", call)
        assert [[item[:3] for item in batch] for batch in got] == [[item[:3] for item in b] for b in want]
        for one, other in zip(chain(*got), chain(*want), strict=True):
            for a, b in zip(one[3:], other[3:], strict=True):
                np.testing.assert_array_equal(a, b)


def _plain(item: tuple) -> tuple:
    """What the writer is handed, as arrays; means are its own."""
    kind, *rest = item
    if kind == "mark":
        text, tensors = rest
        return (
            kind,
            text,
            sorted(tensors),
            *(tensors[name].tensor().numpy().copy() for name in sorted(tensors)),
        )
    if kind == "state":
        row, x, keep, _, _ = rest
        return (kind, row, keep, *([later.as_numpy(x).copy()] if keep else []))
    return (kind, *rest[:2], *(later.as_numpy(value).copy() for value in rest[2:]))


def test_the_run_is_never_waited_for():
    """What a hop computes is asked for when the next one has been, or when the run is over."""
    steps, born, late = 8, {}, []

    class Told(Slow):
        def __init__(self, x):
            super().__init__(x)
            born[id(self)] = (self, len(made))

        def tensor(self):
            late.append((born[id(self)][1], len(made)))
            return super().tensor()

    class Scalars(TorchDispatchMode):
        """Counts what reads a number of a tensor, and so waits for it."""

        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Scalars.count += bool(made) and func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    made = []

    def model(x, sigma):
        made.append(sigma)
        return 0.5 * x

    with behind(Told), Scalars():
        tk.sample(tk.denoiser(model), torch.ones(1, 4, 8, 8, dtype=torch.float64), steps=steps, **QUIET)
    assert len(made) == steps and late
    assert [pair for pair in late if not (pair[1] > pair[0] or pair[1] == steps or pair[0] == 0)] == []
    assert {asked - calls for calls, asked in late if calls > 0 and asked < steps} == {1}
    assert Scalars.count == steps  # the sum of each state but the first, in its copy


@pytest.mark.parametrize("then, named", [(RuntimeError, "FloatingPointError"),
                                         (KeyboardInterrupt, "KeyboardInterrupt")])  # fmt: skip
def test_what_a_bad_state_brings_about_is_not_the_cause(then, named, tmp_path):
    """The next hop is under way when a state is found to be bad; Ctrl-C stays Ctrl-C."""
    kind = KINDS["sample, fn"]  # one call a hop
    _, text, want = ended(kind, inf_at(3))
    with behind():
        got = ended(kind, inf_at(3, then))
        stored = ended(kind, inf_at(3, then), tmp_path / "run.zarr")
        assert got[0] == stored[0] == named
        for ds in (got[2], stored[2]):
            same(ds.drop_attrs(deep=False), want.drop_attrs(deep=False))
        if named == "FloatingPointError":
            assert got[1] == text
        ended(kind, inf_at(3, then), tmp_path / "again.zarr")
        same(kind(tmp_path / "again.zarr"), kind())


def test_a_function_of_the_steps_sees_no_bad_state():
    seen = []

    def fn(step):
        seen.append(bool(torch.isfinite(step.x).all()))
        return {"largest": step.x.amax((1, 2, 3))}

    with behind(), spoiled(inf_at(3)), pytest.raises(FloatingPointError):
        tk.sample(mixture(), solver="euler", steps=6, save=tk.Save(fn=fn), **QUIET)
    assert seen == [True] * 4


def test_what_is_recorded_may_be_written_on():
    """The function's array, and the tensor that it gives, are taken as they are."""
    buffer, held = np.zeros(1), torch.zeros(1, dtype=torch.float64)

    def fn(step):
        buffer[:], held[:] = step.span.i, 10 * step.span.i
        return {"one": buffer, "ten": held}

    with behind():
        ds = tk.sample(mixture(), solver="euler", steps=4, save=tk.Save(fn=fn), **QUIET)
    assert ds.one[:4, 0].values.tolist() == [0, 1, 2, 3]
    assert ds.ten[:4, 0].values.tolist() == [0, 10, 20, 30]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_moments_of_a_tensor_are_those_of_its_row(dtype):
    x = 1e3 + torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mean, std = moments(x.numpy().astype(dtype))
    got = later.mean_and_std(later.Copy(later.moments(x, np.dtype(dtype))))
    np.testing.assert_allclose(got, [mean, std], rtol=1e-12)
    assert np.abs(std - x.numpy().std((2, 3))).max() > 1e-9 or dtype == "float64"


def test_a_replay_sends_the_rows_of_its_record(monkeypatch):
    sent, run = [], RUNS["offsets"]()
    monkeypatch.setattr(plans, "sent", lambda x, device: sent.append((x, device)) or x)
    back = tk.sample(mixture(), run, **QUIET)
    assert back.attrs["bitwise"] and len(sent) == 6
    assert {device for _, device in sent} == {torch.device("cpu")}
    assert torch.equal(sent[0][0], torch.from_numpy(run.latent.values[-1]))


def test_a_device_is_known_by_its_kind():
    assert [later.is_deferred(d) for d in ("cuda", "cuda:1", torch.device("cuda", 0), "cpu")] == [
        True
    ] * 3 + [False]
