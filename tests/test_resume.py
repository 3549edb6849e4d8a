"""A run that stops goes on by the same call, bit for bit: every solver, every inverse, whatever is kept."""

import contextlib
import json
import warnings

import numpy as np
import pytest
import torch
import xarray as xr

import toolkit as tk
from toolkit import noise, record
from toolkit.bookmarks import Bookmark, write
from toolkit.solvers.contract import Eval

QUIET = {"progress": False, "schedule": "karras", "steps": 7}
SHAPE = (2, 4, 16, 16)


class Stop(Exception):
    """What ends a run in the middle."""


@contextlib.contextmanager
def cut(model, calls: int):
    """`model` raises at call number `calls`, from 0."""
    made, x0 = [], type(model).x0

    def spoiled(self, x, sigma, conditions):
        made.append(sigma)
        if len(made) > calls:
            raise Stop(f"call {calls}")
        return x0(self, x, sigma, conditions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "x0", spoiled)
        yield made


def counted(model, make) -> int:
    """Model calls of a run."""
    with cut(model, 10**9) as made:
        make()
    return len(made)


def stopped(model, calls: int, make) -> None:
    """Runs `make` until call number `calls`."""
    with cut(model, calls), pytest.raises(Stop):
        make()


def goes_on(model, make, store, cuts) -> None:
    """The run, stopped after each of `cuts` calls more, is the same as one that is not."""
    whole = make(tk.Save(**make.kept))
    for number, calls in enumerate(cuts):
        place = store / f"{number}.zarr"
        save = tk.Save(**make.kept, store=place)
        stopped(model, calls, lambda save=save: make(save))
        assert "stopped" in tk.open(place).attrs
        ds = make(save)
        xr.testing.assert_identical(ds.load(), whole)
        assert not (place / "resume").exists()
        xr.testing.assert_identical(make(save).load(), whole)  # and once more: it is there


class Make:
    """A run of `kind` with its arguments, of what `save` says."""

    def __init__(self, kind, *given, kept=None, **asked):
        self.kind, self.given, self.asked, self.kept = kind, given, asked, kept or {}

    def __call__(self, save):
        with warnings.catch_warnings():  # implicit inverses under guidance say that they do not converge
            warnings.simplefilter("ignore")
            return self.kind(*self.given, **{**QUIET, **self.asked}, save=save)


KEPT = {
    "all": {},
    "float32": {"dtype": "float32"},
    "every": {"every": 3},
    "denoised in float16, every": {"what": ["denoised"], "every": 2, "dtype": "float16"},
    "nothing": {"what": []},
}
UNSAMPLES = {
    "reverse": {"inverse": "reverse", "solver": "dpmpp_2m"},
    "algebraic": {"solver": "obelm", "cfg": 3.0},
    "algebraic, a pair": {"solver": "edict"},
    "offsets": {"solver": "deis", "cfg": 4.0},
    "offsets, own grid": {"solver": "dpm_fast", "cfg": 2.0},
    "offsets, own levels": {"solver": "dpm_adaptive"},
    "noise": {"solver": "dpmpp_sde", "cfg": 2.0},
    "noise, markov": {"solver": "dpmpp_3m_sde", "coupling": "markov"},
    "noise over the ODE": {"solver": "euler_ancestral", "coupling": "ode"},
    "fixed point": {"solver": "euler", "inverse": "fixed_point"},
    "defect": {"solver": "euler", "inverse": "defect"},
    "mask": {"solver": "euler", "mask": np.pad(np.ones((16, 8)), ((0, 0), (0, 8)))},
}


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("name", UNSAMPLES)
def test_an_unsample_goes_on(name, kept, reference, images, tmp_path):
    model = tk.GaussianMixture(
        reference["mix_means"], float(reference["mix_within_std"]), reference["mix_weights"]
    )
    make = Make(tk.unsample, model, images["in"], prompt=0, negative=1, kept=KEPT[kept], **UNSAMPLES[name])
    calls = counted(model, lambda: make(tk.Save()))
    cuts = {1, calls // 3, calls // 2, calls - 2, calls - 1} if kept == "all" else {calls - 2}
    goes_on(model, make, tmp_path, sorted(cuts))


@pytest.mark.parametrize("name", list(tk.SOLVERS))
def test_a_sample_of_every_solver_goes_on(name, mixture, tmp_path):
    make = Make(tk.sample, mixture, solver=name, shape=SHAPE, prompt=0, negative=1, cfg=2.0)
    calls = counted(mixture, lambda: make(tk.Save()))
    goes_on(mixture, make, tmp_path, [2 * calls // 3])


@pytest.mark.parametrize("name", ["offsets", "algebraic", "algebraic, a pair", "noise", "mask"])
def test_a_replay_goes_on(name, mixture, images, tmp_path):
    up = tk.unsample(mixture, images["off"], prompt=0, negative=1, **QUIET, **UNSAMPLES[name])
    save = tk.Save(store=tmp_path / "down.zarr", dtype="float32")
    whole = tk.sample(mixture, start=up, progress=False, save=tk.Save(dtype="float32"))
    stopped(mixture, 4, lambda: tk.sample(mixture, start=up, progress=False, save=save))
    down = tk.sample(mixture, start=up, progress=False, save=save)
    xr.testing.assert_identical(down.load(), whole)
    other = tk.unsample(mixture, images["in"], prompt=0, negative=1, **QUIET, **UNSAMPLES[name])
    with pytest.raises(ValueError, match=r"inputs (state|image)"):
        tk.sample(mixture, start=other, progress=False, save=save)


def test_a_run_is_stopped_at_every_call_in_turn(mixture, images, tmp_path):
    """Ctrl-C again and again: each time it goes on a call later, and no call is made twice."""
    asked = {"solver": "heun", "prompt": 0, "cfg": 2.0, **QUIET}
    whole, save = tk.unsample(mixture, images["in"], **asked), tk.Save(store=tmp_path / "run.zarr")
    for _ in range(100):
        try:
            with cut(mixture, 2):  # enough for one hop of midpoint and of heun
                ds = tk.unsample(mixture, images["in"], **asked, save=save)
            break
        except Stop:
            continue
    xr.testing.assert_identical(ds.load(), whole)


def test_what_was_computed_is_not_computed_again(mixture, images, tmp_path):
    make = Make(tk.unsample, mixture, images["in"], solver="euler", prompt=0)
    save, total = tk.Save(store=tmp_path / "run.zarr"), counted(mixture, lambda: make(tk.Save()))
    stopped(mixture, 11, lambda: make(save))
    with cut(mixture, 10**9) as made:
        ds = make(save)
    assert len(made) <= total - 10  # midpoint has two calls a hop: half a hop at most is done again
    assert ds.attrs["model_calls"] == total == int(ds.nfe[-1])
    with cut(mixture, 0):
        xr.testing.assert_identical(make(save), ds)


def fine(step):
    return {"largest": step.x.abs().amax((1, 2, 3)), "seen": step.seen.x0}


def test_what_fn_adds_goes_on(mixture, tmp_path):
    make = Make(tk.sample, mixture, solver="dpmpp_2m", shape=SHAPE, kept={"fn": fine, "every": 2})
    goes_on(mixture, make, tmp_path, [1, 3, 5])


@pytest.mark.parametrize("coupling", ["independent", "shared", "markov"])
@pytest.mark.parametrize("kept", ["all", "every", "nothing"])
def test_a_ladder_goes_on(coupling, kept, mixture, images, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "BLOCK", 4 * images["in"].numel() * 4)  # four rungs
    save = tk.Save(**KEPT[kept], store=tmp_path / "ladder.zarr")
    asked = {"steps": 30, "coupling": coupling, "normalize": "channel", "progress": False, "start_at_step": 3}
    whole = tk.ladder(mixture, images["in"], **asked, save=tk.Save(**KEPT[kept]))
    for rung in (9, 10, 23):
        fill = noise.Rungs.fill

        def broken(self, out, at, sigma, rung=rung, fill=fill):
            if at == rung:
                raise KeyboardInterrupt
            fill(self, out, at, sigma)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(noise.Rungs, "fill", broken)
            with pytest.raises(KeyboardInterrupt, match=r"tk\.open"):
                tk.ladder(mixture, images["in"], **asked, save=save)
        cut_off = tk.open(tmp_path / "ladder.zarr")
        assert cut_off.sizes["step"] == rung
        np.testing.assert_array_equal(cut_off["mean"], whole["mean"][:rung])
    ds = tk.ladder(mixture, images["in"], **asked, save=save)
    xr.testing.assert_identical(ds.load(), whole)


# --- what is refused


CHANGES = {
    "cfg": ({"cfg": 3.0}, "cfg 2.0, not 3.0"),
    "prompt": ({"prompt": 1}, "prompt 0, not 1"),
    "solver": ({"solver": "heun"}, "solver 'euler', not 'heun'"),
    "an option": ({"solver": tk.solver("euler", s_noise=1.1)}, "solver_options s_noise"),
    "steps": ({"steps": 8}, "steps 7, not 8"),
    "schedule": ({"schedule": "exponential"}, "schedule 'karras', not 'exponential'"),
    "seed": ({"seed": 1}, "seed 0, not 1"),
    "normalize": ({"normalize": "global"}, "normalize 'off', not 'global'"),
    "every": ({"every": 2}, "save every 1, not 2"),
    "dtype": ({"dtype": "float32"}, "save dtype None, not 'float32'"),
    "what": ({"what": ["latent"]}, "save what None, not ['latent']"),
    "the image": ({"image": 1.5}, "inputs latent"),
    "a mask": ({"mask": np.ones((16, 16))}, "inputs mask None"),
    "the model": ({"model": 1.5}, "fingerprint"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("whole", [True, False])
def test_another_call_is_refused_and_says_what_differs(change, whole, reference, images, tmp_path):
    def model(scale=1.0):
        return tk.GaussianMixture(scale * reference["mix_means"], 0.2, reference["mix_weights"])

    def run(image=1.0, model=None, every=1, dtype=None, what=None, **asked):
        save = tk.Save(store=tmp_path / "run.zarr", every=every, dtype=dtype, what=what)
        asked = {"cfg": 2.0, "prompt": 0, "solver": "euler", **QUIET, **asked}
        return tk.unsample(model or first, image * images["in"], **asked, save=save)

    first = model()
    if whole:
        run()
    else:
        stopped(first, 5, run)
    before = {p: p.read_bytes() for p in (tmp_path / "run.zarr").rglob("*") if p.is_file()}
    given, told = CHANGES[change]
    given = {**given, "model": model(given["model"])} if "model" in given else given
    with pytest.raises(ValueError, match="Only the same call goes on") as caught:
        run(**given)
    assert told in str(caught.value)
    assert str(caught.value).endswith('run-2.zarr")')
    assert before == {p: p.read_bytes() for p in (tmp_path / "run.zarr").rglob("*") if p.is_file()}


def test_another_version_is_gone_on_with_and_said(mixture, tmp_path):
    save = tk.Save(store=tmp_path / "run.zarr")
    make = Make(tk.sample, mixture, shape=SHAPE)
    whole = make(tk.Save())
    stopped(mixture, 3, lambda: make(save))
    file = tmp_path / "run.zarr" / "zarr.json"
    told = json.loads(file.read_text())
    told["attributes"]["request"]["versions"]["torch"] = "1.0"
    file.write_text(json.dumps(told))
    with pytest.warns(UserWarning, match=r"begun with versions .*'1\.0'.* may differ"):
        ds = tk.sample(mixture, shape=SHAPE, **QUIET, save=save)
    xr.testing.assert_identical(ds.load(), whole)


def test_a_store_that_is_being_written_is_left_to_its_run(mixture, images, tmp_path):
    save, found = tk.Save(store=tmp_path / "run.zarr"), []

    def second(step):
        if not found:
            with pytest.raises(BlockingIOError, match="another run is writing it"):
                tk.sample(mixture, shape=SHAPE, **QUIET, save=tk.Save(store=tmp_path / "run.zarr", fn=second))
            found.append(tk.open(tmp_path / "run.zarr"))
        return {}

    ds = tk.sample(mixture, shape=SHAPE, **QUIET, save=tk.Save(store=save.store, fn=second))
    assert "unfinished" in found[0].attrs["stopped"]
    assert "stopped" not in ds.attrs


class Far(torch.Tensor):
    """As on a device: no array but by force."""

    def numpy(self, *, force: bool = False) -> np.ndarray:
        assert force, "of a tensor on a device"
        return self.as_subclass(torch.Tensor).numpy()


def test_the_counters_of_a_pass_may_lie_on_a_device(mixture, images, tmp_path, monkeypatch):
    read, counters = Bookmark.read, ("nfe", "rows", "calls", "network")

    def far(*given):
        mark = read(*given)
        if mark is not None:
            mark.more |= {name: mark.more[name].as_subclass(Far) for name in counters if name in mark.more}
            found.extend(mark.more)
        return mark

    found = []
    monkeypatch.setattr(Bookmark, "read", far)
    make = Make(tk.unsample, mixture, images["in"], solver="euler", prompt=0)
    goes_on(mixture, make, tmp_path, [counted(mixture, lambda: make(tk.Save())) - 2])
    assert set(counters) <= set(found)


# --- the bookmark


def test_a_bookmark_comes_back_as_it_was(tmp_path):
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    half = x.to(torch.bfloat16)
    past = (
        Eval(0.1 + 0.2, x, half, (x, 1.5, (1, "a"), None), 3, {"offset": x}),
        Eval(float("inf"), x[:, :1]),
    )
    given = Bookmark(2, 7, x.transpose(2, 3), past, 11, 22, {"above": None, "list": [x, 3], "flag": True})
    write(tmp_path / "mark", *given.pack({}))
    back = Bookmark.read(tmp_path / "mark", "cpu")
    assert (back.turn, back.i, back.calls, back.rows, back.done) == (2, 7, 11, 22, False)
    assert torch.equal(back.x, x.transpose(2, 3))
    assert back.x.is_contiguous()
    assert back.past[0].sigma == 0.1 + 0.2
    assert torch.equal(back.past[0].x0, half)
    assert torch.equal(back.past[0].aux[0], x)
    assert back.past[0].aux[1:] == (1.5, (1, "a"), None)
    assert back.past[0].calls == 3
    assert back.past[0].info is None
    assert back.past[1].sigma == float("inf")
    assert torch.equal(back.past[1].x, x[:, :1])
    assert back.more["above"] is None
    assert torch.equal(back.more["list"][0], x)
    assert back.more["flag"] is True
    assert Bookmark.read(tmp_path / "none", "cpu") is None


def test_a_bookmark_copies_a_tensor_once():
    x, known = torch.zeros(3), {}
    _, tensors = Bookmark(1, 0, x, (Eval(1.0, x, x),)).pack(known)
    assert len(tensors) == 1
    first = tensors["t0"]
    _, tensors = Bookmark(1, 1, torch.ones(3), (Eval(1.0, x),)).pack(known)
    assert first in tensors.values(), "the copy of the bookmark before"
    x.add_(1)
    assert float(first.tensor().sum()) == 0.0, "and a copy it is"
