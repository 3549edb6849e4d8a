"""Bad input, call by call: it raises before the model is asked, and says what was given and what to type."""

import math
import re

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import toolkit as tk

SHAPE = (1, 4, 8, 8)
SMALL = (1, 1, 2, 2)  # for Hypothesis
NAN, INF = math.nan, math.inf


class Counted(tk.GaussianMixture):
    """A mixture of two conditions that knows how often it was asked."""

    asked = 0

    def x0(self, x, sigma, conditions):
        self.asked += 1
        return super().x0(x, sigma, conditions)


def counted(shape=SHAPE[1:], path=tk.VE, conditions=2) -> Counted:
    means = np.random.default_rng(5).standard_normal((conditions, 3, *shape))
    return Counted(means, 0.5, path=path)


def picture(shape=SHAPE, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def array(dims: str, shape=SHAPE) -> xr.DataArray:
    return xr.DataArray(np.zeros(shape[: len(dims.split())]), dims=dims.split())


def spoilt(value: float, dtype=torch.float64) -> torch.Tensor:
    x = picture().to(dtype)
    x[0, 1, 2, 3] = value
    return x


def pinned(value: float, shape=(8, 8)) -> torch.Tensor:
    mask = torch.ones(shape)
    mask[..., 3, 3] = value
    return mask


# --- the public calls, each with arguments that are right ----


def unsample(model, latent=None, **kw):
    return tk.unsample(model, picture() if latent is None else latent, **{"steps": 3, **kw}, progress=False)


def sample(model, start=None, **kw):
    return tk.sample(model, start, **kw, progress=False)


def ladder(model, latent=None, **kw):
    return tk.ladder(model, picture() if latent is None else latent, **{"steps": 3, **kw}, progress=False)


def round_trip(model, latent=None, **kw):
    return tk.round_trip(model, picture() if latent is None else latent, **{"steps": 3, **kw}, progress=False)


def comfy(model, latent_image=None, **kw):
    given = {"samples": picture()} if latent_image is None else latent_image
    return tk.comfy.unsampler(model, **{"steps": 3, **kw}, latent_image=given)


def function(model) -> tk.Denoiser:
    """The counted model as a bare function: any size, no conditions."""
    return tk.denoiser(lambda x, sigma: model.x0(x, sigma, [0] * len(x)))


rungs = tk.testing.ladder_dataset


# --- what every error says ----


def same_given(text: str, argument: str, shown: str) -> None:
    """`argument=<given>: <what is wanted>. Try: <line>`, with `shown` in what was given."""
    found = re.fullmatch(r"(?s)(\w+)=(.+?): (.+)\. Try: (\S.*)", text)
    assert found, f"not of the form name=given: wanted. Try: line, but {text!r}"
    assert found[1] == argument, text
    assert shown in text.split(". Try: ")[0], text


def refused(call, argument: str, shown: str, kinds=(ValueError, TypeError)) -> str:
    with pytest.raises(kinds) as caught:
        call()
    same_given(str(caught.value), argument, shown)
    return str(caught.value)


LATENTS = [
    ("rank 3", lambda: picture()[0], "(4, 8, 8)"),
    ("rank 5", lambda: picture()[None], "(1, 1, 4, 8, 8)"),
    ("rank 0", lambda: torch.tensor(1.0), "()"),
    ("no sample", lambda: picture()[:0], "(0, 4, 8, 8)"),
    ("three channels", lambda: picture()[:, :3], "(1, 3, 8, 8)"),
    ("another size", lambda: picture((1, 4, 8, 9)), "(1, 4, 8, 9)"),
    ("NaN", lambda: spoilt(NAN), "NaN"),
    ("Inf", lambda: spoilt(INF).numpy(), "Inf"),
    ("NaN in float32", lambda: spoilt(NAN, torch.float32), "NaN"),
    ("integers", lambda: picture().round().to(torch.int64), "int64"),
    ("bytes", lambda: np.zeros(SHAPE, np.uint8), "uint8"),
    ("booleans", lambda: np.zeros(SHAPE, bool), "bool"),
    ("complex", lambda: picture().to(torch.complex64), "complex64"),
    ("text in an array", lambda: np.full(SHAPE, "a"), "U1"),
    ("objects in an array", lambda: np.full(SHAPE, None), "object"),
    ("a list", lambda: picture().tolist(), "list"),
    ("text", lambda: "image.png", "str"),
    ("a number", lambda: 3.0, "float"),
    ("dims of another kind", lambda: array("sample channel h w"), "'h'"),
    ("a step too many", lambda: array("step sample channel y x", (1, *SHAPE)), "'step'"),
    ("a dim short", lambda: array("channel y x"), "'channel'"),
    ("a picture, and no encoder", lambda: Image.new("L", (8, 8)), "Image"),
]
WHOLE = [0, -1, 2.0, 2.5, NAN, True, "3", None, [3]]
NUMBERS = [NAN, INF, -INF, "2", True, [1.0], 1j]
PROMPTS = [2, -1, 1.0, True, "a horse", [0, 0], [9], [], {"label": 0}]
MASKS = [
    ("zero", lambda: torch.zeros(8, 8), "0 everywhere"),
    ("above 1", lambda: pinned(1.5), "1.5"),
    ("below 0", lambda: pinned(-0.25), "-0.25"),
    ("NaN", lambda: pinned(NAN), "nan"),
    ("Inf", lambda: pinned(INF), "inf"),
    ("rank 1", lambda: torch.ones(8), "(8,)"),
    ("rank 5", lambda: torch.ones(1, 1, 1, 8, 8), "(1, 1, 1, 8, 8)"),
    ("two of one sample", lambda: torch.ones(2, 8, 8), "(2, 8, 8)"),
    ("no pixel", lambda: torch.ones(0, 8), "(0, 8)"),
    ("complex", lambda: torch.ones(8, 8, dtype=torch.complex64), "complex64"),
    ("text in an array", lambda: np.full((8, 8), "a"), "U1"),
    ("a list", lambda: [[1.0]], "list"),
    ("text", lambda: "mask.png", "str"),
    ("a number", lambda: 1.0, "float"),
]
GRIDS = [
    ("empty", [], "[]"),
    ("one level", [1.0], "[1.0]"),
    ("negative", [-1.0, 1.0], "-1.0"),
    ("NaN", [0.0, NAN, 1.0], "nan"),
    ("Inf", [0.0, 1.0, INF], "inf"),
    ("up and down", [0.0, 2.0, 1.0, 3.0], "[0.0, 2.0, 1.0, 3.0]"),
    ("twice 0", [0.0, 0.0, 1.0], "[0.0, 0.0, 1.0]"),
    ("nothing but 0", [0.0, 0.0], "[0.0, 0.0]"),
    ("two dimensions", [[0.0, 1.0], [2.0, 3.0]], "[[0.0, 1.0], [2.0, 3.0]]"),
    ("ragged", [[0.0], [1.0, 2.0]], "[[0.0], [1.0, 2.0]]"),
    ("text", "karras", "karras"),
    ("words", ["a", "b"], "['a', 'b']"),
    ("a number", 3.0, "3.0"),
    ("nothing in it", [None, 1.0], "None"),
    ("complex", [0.0, 1j], "1j"),
]
RUNS = {"unsample": unsample, "sample": sample, "ladder": ladder, "round_trip": round_trip}


def rows():
    """(id, call, keywords by name or function, argument, shown) of every bad argument of a run."""
    for name, make, shown in LATENTS:
        for run in ("unsample", "ladder", "round_trip"):
            yield f"{run}: latent, {name}", run, {"latent": make}, "latent", shown
        yield f"sample: start, {name}", "sample", {"start": make}, "start", shown
    for value in WHOLE:
        for run in RUNS:
            if not (run == "sample" and value is None):  # there it means: what the record says
                yield f"{run}: steps={value!r}", run, {"steps": value}, "steps", repr(value)
        if value is not None:
            yield (
                f"sample: end_at_step={value!r}",
                "sample",
                {"end_at_step": value},
                "end_at_step",
                repr(value),
            )
            yield (
                f"ladder: end_at_step={value!r}",
                "ladder",
                {"end_at_step": value},
                "end_at_step",
                repr(value),
            )
        yield f"ladder: every={value!r}", "ladder", {"every": value}, "every", repr(value)
    for value in (*WHOLE[1:], 3, 100):
        yield (
            f"unsample: end_at_step={value!r}",
            "unsample",
            {"end_at_step": value},
            "end_at_step",
            repr(value),
        )
        for run in ("sample", "ladder"):
            kw = {"start_at_step": value, "steps": 3}
            yield f"{run}: start_at_step={value!r}", run, kw, "start_at_step", repr(value)
    for run in ("sample", "ladder"):
        kw = {"steps": 5, "end_at_step": 6}
        yield f"{run}: beyond the end", run, kw, "end_at_step", "6"
        for start, end in ((3, 3), (4, 2)):
            kw = {"steps": 5, "start_at_step": start, "end_at_step": end}
            yield f"{run}: {start} to {end} is empty", run, kw, "end_at_step", str(end)
    for run in RUNS:
        yield f"{run}: seed=1.5", run, {"seed": 1.5}, "seed", "1.5"
        yield f"{run}: seed='1'", run, {"seed": "1"}, "seed", "'1'"
        yield f"{run}: seed=None", run, {"seed": None}, "seed", "None"
        yield f"{run}: schedule", run, {"schedule": "karas"}, "schedule", "karas"
        yield f"{run}: schedule of numbers", run, {"schedule": [1.0, 0.0]}, "schedule", "[1.0, 0.0]"
    for run in ("unsample", "sample", "round_trip"):
        yield f"{run}: solver", run, {"solver": "eulr"}, "solver", "eulr"
        yield f"{run}: solver=3", run, {"solver": 3}, "solver", "3"
        yield f"{run}: solver in a list", run, {"solver": ["euler"]}, "solver", "['euler']"
        for value in NUMBERS:
            yield f"{run}: cfg={value!r}", run, {"cfg": value}, "cfg", repr(value)
        for value in PROMPTS:
            for name in ("prompt", "negative"):
                if not (run == "sample" and name == "prompt" and value == [0, 0]):  # two samples, then
                    kw = {name: value, "cfg": 2.0}
                    yield f"{run}: {name}={value!r}", run, kw, name, repr(value[0] if value == [9] else value)
    for run in ("unsample", "round_trip"):
        yield f"{run}: cfg=None", run, {"cfg": None}, "cfg", "None"
        for value in NUMBERS:
            yield f"{run}: sigma_shift={value!r}", run, {"sigma_shift": value}, "sigma_shift", repr(value)
        yield f"{run}: sigma_shift=-1", run, {"sigma_shift": -1.0}, "sigma_shift", "-1.0"
        for argument, value in (("inverse", "revers"), ("via", "midpont"), ("normalize", "chanel")):
            yield f"{run}: {argument}", run, {argument: value}, argument, value
            yield f"{run}: {argument}=None", run, {argument: None}, argument, "None"
            yield f"{run}: {argument}=3", run, {argument: 3}, argument, "3"
            yield f"{run}: {argument} in a list", run, {argument: [value]}, argument, value
        yield f"{run}: via is stochastic", run, {"via": "euler_ancestral"}, "via", "euler_ancestral"
        yield f"{run}: algebraic euler", run, {"inverse": "algebraic"}, "inverse", "algebraic"
        kw = {"solver": "euler_ancestral", "inverse": "reverse"}
        yield f"{run}: reverse of a stochastic solver", run, kw, "inverse", "reverse"
        for solver, inverse in (("euler", "noise"), ("lms", "fixed_point"), ("lcm", "fixed_point"),
                                ("lcm", "defect"), ("dpm_adaptive", "defect"), ("rex", "fixed_point"),
                                ("uni_pc", "reverse"), ("euler_cfg_pp", "reverse"),
                                ("seeds_2", "algebraic")):  # fmt: skip
            yield (
                f"{run}: {inverse} of {solver}",
                run,
                {"solver": solver, "inverse": inverse},
                "inverse",
                inverse,
            )
        kw = {"solver": tk.solver("dpm_adaptive", eta=1.0)}
        yield f"{run}: levels chosen by noise", run, kw, "solver", "dpm_adaptive"
        for via in ("dpm_fast", "dpm_adaptive", "rex", "lcm", "uni_pc"):
            yield f"{run}: via {via}", run, {"via": via}, "via", via
        kw = {"via": tk.solver("heun", S_churn=5.0)}
        yield f"{run}: via a solver that is churned", run, kw, "via", "heun"
        for coupling in ("shard", None, 1):
            yield f"{run}: coupling {coupling}", run, {"coupling": coupling}, "coupling", str(coupling)
    for argument, value in (("coupling", "shard"), ("normalize", "chanel")):
        yield f"ladder: {argument}", "ladder", {argument: value}, argument, value
        yield f"ladder: {argument}=None", "ladder", {argument: None}, argument, "None"
        yield f"ladder: {argument} in a list", "ladder", {argument: [value]}, argument, value
    for name, make, shown in MASKS:
        yield f"unsample: mask, {name}", "unsample", {"mask": make}, "mask", shown
        yield f"sample: mask, {name}", "sample", {"mask": make, "start": picture}, "mask", shown
    for name, value, shown in GRIDS:
        down = value[::-1] if isinstance(value, list) else value
        shown_down = str(down) if isinstance(down, list) and shown.startswith("[") else shown
        yield f"unsample: sigmas, {name}", "unsample", {"sigmas": value}, "sigmas", shown
        yield f"sample: sigmas, {name}", "sample", {"sigmas": down}, "sigmas", shown_down
    yield "unsample: falling sigmas", "unsample", {"sigmas": [1.0, 0.5, 0.0]}, "sigmas", "[1.0, 0.5, 0.0]"
    yield "sample: rising sigmas", "sample", {"sigmas": [0.0, 0.5, 1.0]}, "sigmas", "[0.0, 0.5, 1.0]"
    kw = {"solver": "obelm", "sigmas": [0.0, 0.5, 1.0, 1.0, 2.0]}
    yield "unsample: obelm on a repeated level", "unsample", kw, "sigmas", "1.0"
    yield "sample: a mask of nothing", "sample", {"mask": lambda: torch.ones(8, 8)}, "mask", "1."
    yield "sample: the state is missing", "sample", {"add_noise": False}, "add_noise", "False"
    for value in [(4, 8, 8), (1, 4, 8), (1, 3, 8, 8), (1, 4, 8, 9), (0, 4, 8, 8), (1, 4, 8.0, 8), 5, "1488"]:
        yield f"sample: shape={value!r}", "sample", {"shape": value}, "shape", repr(value)
    for name, make, shown in LATENTS:
        kw = {"noise": make, "start": picture}
        yield f"sample: noise, {name}", "sample", kw, "noise", shown
    kw = {"noise": lambda: picture((2, 4, 8, 8)), "start": picture}
    yield "sample: noise for two", "sample", kw, "noise", "(2, 4, 8, 8)"
    for name, make, shown in [
        ("one rung of four", picture, "(1, 4, 8, 8)"),
        ("a rung short", lambda: picture((3, *SHAPE)), "(3, 1, 4, 8, 8)"),
        ("NaN", lambda: picture((4, *SHAPE)) * NAN, "NaN"),
        ("integers", lambda: torch.zeros(4, *SHAPE, dtype=torch.int64), "int64"),
        ("text", lambda: "white", ""),
    ]:
        yield f"ladder: noise, {name}", "ladder", {"noise": make}, "noise", shown


ROWS = list(rows())


@pytest.mark.parametrize("run, kw, argument, shown", [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
def test_bad_argument(run, kw, argument, shown, tmp_path):
    model, store = counted(), tmp_path / "run.zarr"
    given = {name: value() if callable(value) else value for name, value in kw.items()}
    if run != "round_trip":
        given["save"] = tk.Save(store=store)
    refused(lambda: RUNS[run](model, **given), argument, shown)
    assert model.asked == 0
    assert not store.exists()


@pytest.mark.parametrize("run", ["unsample", "sample", "ladder"])
@pytest.mark.parametrize("save", [None, "run.zarr", {"every": 2}, 3, tk.Save], ids=repr)
def test_save_is_a_save(run, save):
    model = counted()
    refused(lambda: RUNS[run](model, save=save), "save", repr(save)[:100])
    assert model.asked == 0


def test_round_trip_keeps_no_run():
    model = counted()
    with pytest.raises(TypeError, match=r"^save\b.+\. Try: \S"):
        round_trip(model, save=tk.Save())
    assert model.asked == 0


@pytest.mark.parametrize("run", ["unsample", "sample", "ladder"])
@pytest.mark.parametrize("kind", ["folder", "file", "run"])
def test_a_store_that_exists_is_not_touched(run, kind, tmp_path):
    model, there = counted(), tmp_path / "run.zarr"
    if kind == "folder":
        there.mkdir()
        (there / "letter").write_text("mine")
    elif kind == "file":
        there.write_text("mine")
    else:
        before = ladder(counted(), steps=9, save=tk.Save(store=there))
    text = refused(lambda: RUNS[run](model, save=tk.Save(store=there)), "store", "run.zarr")
    assert model.asked == 0
    assert "run-2.zarr" in text
    if kind == "file":
        assert there.read_text() == "mine"
    elif kind == "folder":
        assert [file.name for file in there.iterdir()] == ["letter"]
    else:
        xr.testing.assert_identical(tk.open(there), before)


@pytest.mark.parametrize("run", ["unsample", "sample", "ladder", "round_trip", "comfy"])
@pytest.mark.parametrize("model", [None, "digits", 3, object(), tk.VE], ids=lambda m: type(m).__name__)
def test_the_model_is_a_model(run, model):
    refused(lambda: {**RUNS, "comfy": comfy}[run](model), "model", repr(model)[:100])


CLOSEST = [
    (lambda m: unsample(m, solver="eulr"), 'solver="euler"'),
    (lambda m: unsample(m, solver="dpmpp2m"), '"dpmpp_2m"'),
    (lambda m: unsample(m, inverse="offset"), 'inverse="offsets"'),
    (lambda m: unsample(m, via="midpont"), 'via="midpoint"'),
    (lambda m: unsample(m, normalize="chanel"), 'normalize="channel"'),
    (lambda m: unsample(m, schedule="karas"), '"karras"'),
    (lambda m: ladder(m, coupling="shard"), 'coupling="shared"'),
    (lambda m: sample(m, solver="huen"), '"heun"'),
    (lambda m: tk.schedule(m, "simpel"), '"simple"'),
    (lambda m: tk.solver("euler_ancestrl"), '"euler_ancestral"'),
    (lambda m: tk.solver("euler_ancestral", s_nose=1.0), "s_noise"),
    (lambda m: tk.at(rungs(), sigm=7), "sigma=7"),
    (lambda m: tk.normalized(rungs(), "globl"), '"global"'),
    (lambda m: tk.Save(what=["latnt"]), '"latent"'),
    (lambda m: comfy(m, sampler_name="eulr"), '"euler"'),
    (lambda m: comfy(m, scheduler="karas"), '"karras"'),
    (lambda m: comfy(m, normalize="enabled"), '"enable"'),
]


@pytest.mark.parametrize("call, line", CLOSEST, ids=[c[1] for c in CLOSEST])
def test_the_closest_name_is_in_the_line_to_type(call, line):
    model = counted()
    with pytest.raises(ValueError, match=r"there are ") as caught:
        call(model)
    tail = str(caught.value).split("Try: ")[1].replace("solver(", "solver=")
    assert line.split("=")[-1] in tail
    assert model.asked == 0


# --- what is not bad input ----

GOOD = [
    ("transposed", lambda: {"latent": picture((1, 8, 8, 4)).permute(0, 3, 1, 2)}),
    ("with a gradient", lambda: {"latent": picture().requires_grad_()}),
    ("of the other byte order", lambda: {"latent": picture().numpy().astype(">f8")}),
    ("float16", lambda: {"latent": picture().half()}),
    ("a DataArray in another order", lambda: {"latent": array("sample channel y x").transpose("x", ...)}),
    ("levels with a gradient", lambda: {"sigmas": torch.tensor([0.0, 1.0, 2.0], requires_grad=True)}),
    ("whole numbers as levels", lambda: {"sigmas": [0, 1, 2]}),
    ("a mask of booleans", lambda: {"mask": np.eye(8) > 0}),
    ("a mask of another size", lambda: {"mask": torch.ones(1, 1, 32, 32)}),
    ("numbers of NumPy", lambda: {"steps": np.int64(3), "cfg": np.float32(2), "prompt": np.int64(1)}),
    ("a prompt a sample", lambda: {"latent": picture((2, 4, 8, 8)), "prompt": (0, 1), "negative": [1, 0]}),
    ("a large seed", lambda: {"seed": 2**70}),
]


@pytest.mark.parametrize("make", [g[1] for g in GOOD], ids=[g[0] for g in GOOD])
def test_what_looks_odd_and_is_fine(make):
    run = unsample(counted(), **make())
    assert np.isfinite(run.latent.values).all()


# --- calls that are no run, and models without conditions ----


OTHERS = [
    ("guide: no model", lambda m: tk.guide(None), "model", "None"),
    ("guide: no denoiser", lambda m: tk.guide(lambda x, s: x), "model", "function"),
    ("guide: prompt of a function", lambda m: tk.guide(function(m), prompt=1), "prompt", "1"),
    ("guide: negative of a function", lambda m: tk.guide(function(m), negative=1), "negative", "1"),
    ("guide: cfg of a function", lambda m: tk.guide(function(m), cfg=2.0), "cfg", "2.0"),
    ("unsample: prompt of a function", lambda m: unsample(function(m), prompt=1), "prompt", "1"),
    ("sample: size of a function", lambda m: sample(function(m)), "shape", "None"),
    *[(f"guide: cfg={v!r}", lambda m, v=v: tk.guide(m, cfg=v), "cfg", repr(v)) for v in (*NUMBERS, None)],
    *[
        (f"guide: {n}={v!r}", lambda m, v=v, n=n: tk.guide(m, **{n: v}), n, str(v).strip("[]"))
        for v in (2, -1, 1.0, True, "a horse", [9])
        for n in ("prompt", "negative")
    ],
    ("denoiser: a number", lambda m: tk.denoiser(3), "fn", "3"),
    ("denoiser: path", lambda m: tk.denoiser(abs, path="VE"), "path", "'VE'"),
    ("denoiser: levels", lambda m: tk.denoiser(abs, levels="karras"), "levels", "'karras'"),
    ("denoiser: a list of levels", lambda m: tk.denoiser(abs, levels=[0.0, 1.0]), "levels", "[0.0, 1.0]"),
    ("schedule: nothing", lambda m: tk.schedule(None), "model_or_levels", "None"),
    ("schedule: name", lambda m: tk.schedule(m, "karas"), "schedule", "karas"),
    ("schedule: name=None", lambda m: tk.schedule(m, None), "schedule", "None"),
    *[(f"schedule: steps={v!r}", lambda m, v=v: tk.schedule(m, steps=v), "steps", repr(v)) for v in WHOLE],
    *[
        (f"schedule: denoise={v!r}", lambda m, v=v: tk.schedule(m, denoise=v), "denoise", repr(v))
        for v in (0.0, -0.5, 1.5, NAN, INF, "1", None, True)
    ],
    ("schedule: solver", lambda m: tk.schedule(m, solver=3), "solver", "3"),
    ("solver: None", lambda m: tk.solver(None), "solver", "None"),
    ("solver: a list", lambda m: tk.solver(["euler"]), "solver", "['euler']"),
    ("solver: an option too many", lambda m: tk.solver("lms", eta=1.0), "eta", "1.0"),
    ("solver: r 0", lambda m: tk.solver("seeds_2", r=0.0), "r", "0.0"),
    ("solver: zeta 0", lambda m: tk.solver("rex", zeta=0), "zeta", "0"),
    ("solver: pece a number", lambda m: tk.solver("sa_solver", pece=1), "pece", "1"),
    ("solver: steps a float", lambda m: tk.solver("dpm_fast", steps=2.5), "steps", "2.5"),
    ("solver: steps 0", lambda m: tk.solver("dpm_fast", steps=0), "steps", "0"),
    ("solver: variant", lambda m: tk.solver("uni_pc", variant="bh3"), "variant", "bh3"),
    ("solver: solver_type", lambda m: tk.solver("dpmpp_2m_sde", solver_type="hen"), "solver_type", "hen"),
    ("solver: S_churn text", lambda m: tk.solver("euler", S_churn="much"), "S_churn", "much"),
    ("measured_order: counts", lambda m: tk.testing.measured_order("euler", counts=[10]), "counts", "[10]"),
    ("round_trip: truth", lambda m: tk.round_trip(m, np.zeros(SHAPE), truth="yes"), "truth", "yes"),
    ("solver: an option it lacks", lambda m: tk.solver("euler_ancestral", order=2), "option", "order"),
    ("means: rank 3", lambda m: tk.GaussianMixture(np.zeros((4, 8, 8)), 1.0), "means", "(4, 8, 8)"),
    ("means: empty", lambda m: tk.GaussianMixture(np.zeros((0, 4, 8, 8)), 1.0), "means", "(0, 4, 8, 8)"),
    ("means: NaN", lambda m: tk.GaussianMixture(np.full(SHAPE, NAN), 1.0), "means", "(1, 4, 8, 8)"),
    ("means: text", lambda m: tk.GaussianMixture("two", 1.0), "means", "two"),
    ("means: None", lambda m: tk.GaussianMixture(None, 1.0), "means", "None"),
    *[
        (f"std={v!r}", lambda m, v=v: tk.GaussianMixture(np.zeros(SHAPE), v), "std", repr(v))
        for v in (0.0, -1.0, NAN, INF, "1", None, [1.0])
    ],
    *[
        (f"weights={v!r}", lambda m, v=v: tk.GaussianMixture(np.zeros(SHAPE), 1.0, v), "weights", repr(v))
        for v in ([0.0], [-1.0], [NAN], [0.5, 0.5], [[1.0], [1.0]], "equal", [None])
    ],
    ("mixture: path", lambda m: tk.GaussianMixture(np.zeros(SHAPE), 1.0, path="FLOW"), "path", "'FLOW'"),
    ("mixture: levels", lambda m: tk.GaussianMixture(np.zeros(SHAPE), 1.0, levels=20), "levels", "20"),
    ("Save: what", lambda m: tk.Save(what=["latnt"]), "what", "latnt"),
    ("Save: what is text", lambda m: tk.Save(what="latent"), "what", "latent"),
    ("Save: what=3", lambda m: tk.Save(what=3), "what", "3"),
    *[
        (f"Save: every={v!r}", lambda m, v=v: tk.Save(every=v), "every", repr(v))
        for v in (0, -2, 1.5, True, "2", None)
    ],
    ("Save: fn", lambda m: tk.Save(fn="std"), "fn", "std"),
    *[
        (f"Save: dtype={v!r}", lambda m, v=v: tk.Save(dtype=v), "dtype", repr(v))
        for v in ("int32", "float31", complex, "U5", 3, torch.float32)
    ],
    *[
        (f"Save: store={v!r}", lambda m, v=v: tk.Save(store=v), "store", repr(v))
        for v in (3, ["run.zarr"], True, b"run")
    ],
    ("at: no level", lambda m: tk.at(tk.testing.ladder_dataset()), "where", "{}"),
    ("at: two levels", lambda m: tk.at(rungs(), sigma=7, step=2), "where", "sigma"),
    ("at: unknown", lambda m: tk.at(rungs(), sigm=7), "where", "sigm"),
    *[
        (f"at: sigma={v!r}", lambda m, v=v: tk.at(rungs(), sigma=v), "sigma", repr(v))
        for v in (NAN, "7", None, [7.0], 7j)
    ],
    ("at: no Dataset", lambda m: tk.at(None, sigma=7), "ds", "None"),
    ("at: no such coordinate", lambda m: tk.at(xr.Dataset({"a": ("step", [1.0])}), sigma=7), "ds", "a"),
    *[
        (f"normalized: {v!r}", lambda m, v=v: tk.normalized(rungs(), v), "normalize", repr(v))
        for v in ("chanel", None, 3)
    ],
    ("normalized: no latent", lambda m: tk.normalized(xr.Dataset({"a": 1}), "global"), "ds", "a"),
    ("normalized: no Dataset", lambda m: tk.normalized(None, "global"), "ds", "None"),
    ("load: a word", lambda m: tk.load("diggits"), "source", "diggits"),
    ("load: a path", lambda m: tk.load("./no/such/folder"), "source", "no/such/folder"),
    ("load: a number", lambda m: tk.load(3), "source", "int"),
    ("load: a model", lambda m: tk.load(m), "source", "Counted"),
    ("load: dtype in words", lambda m: tk.load(dtype="float16"), "dtype", "float16"),
    ("load: whole numbers", lambda m: tk.load(dtype=torch.int8), "dtype", "int8"),
    ("comfy: nothing", lambda m: tk.comfy.unsampler(m), "latent_image", "None"),
    ("comfy: no samples", lambda m: comfy(m, {"latent": picture()}), "latent_image", "latent"),
    ("comfy: NaN", lambda m: comfy(m, {"samples": spoilt(NAN)}), "latent_image", "NaN"),
    ("comfy: rank", lambda m: comfy(m, picture()[0]), "latent_image", "(4, 8, 8)"),
    ("comfy: channels", lambda m: comfy(m, picture()[:, :3]), "latent_image", "(1, 3, 8, 8)"),
    *[(f"comfy: steps={v!r}", lambda m, v=v: comfy(m, steps=v), "steps", repr(v)) for v in (*WHOLE, 10_001)],
    *[
        (f"comfy: end_at_step={v!r}", lambda m, v=v: comfy(m, end_at_step=v), "end_at_step", repr(v))
        for v in (*WHOLE[1:], 10_001)
    ],
    *[(f"comfy: cfg={v!r}", lambda m, v=v: comfy(m, cfg=v), "cfg", repr(v)) for v in (*NUMBERS, -0.1, 100.5)],
    ("comfy: sampler", lambda m: comfy(m, sampler_name="eulr"), "sampler_name", "eulr"),
    ("comfy: no way up", lambda m: comfy(m, sampler_name="euler_ancestral"), "sampler_name", "ancestral"),
    ("comfy: sampler=None", lambda m: comfy(m, sampler_name=None), "sampler_name", "None"),
    ("comfy: sampler in a list", lambda m: comfy(m, sampler_name=["euler"]), "sampler_name", "euler"),
    ("comfy: scheduler", lambda m: comfy(m, scheduler="karas"), "scheduler", "karas"),
    ("comfy: normalize", lambda m: comfy(m, normalize="off"), "normalize", "off"),
    ("comfy: positive", lambda m: comfy(m, positive=7), "positive", "7"),
    ("comfy: negative", lambda m: comfy(m, negative=7), "negative", "7"),
    *[
        (f"comfy: mask, {name}", lambda m, v=v: comfy(m, {"samples": picture(), "noise_mask": v()}),
         "noise_mask", shown)
        for name, v, shown in [
            ("above 1", lambda: pinned(1.5), "1.5"),
            ("NaN", lambda: pinned(NAN), "(8, 8)"),
            ("rank 1", lambda: torch.ones(8), "(8,)"),
            ("text", lambda: "mask.png", "mask.png"),
        ]
    ],
]  # fmt: skip


@pytest.mark.parametrize("call, argument, shown", [r[1:] for r in OTHERS], ids=[r[0] for r in OTHERS])
def test_other_calls(call, argument, shown):
    model = counted()
    refused(lambda: call(model), argument, shown)
    assert model.asked == 0


@pytest.mark.parametrize("name, value", [("eta", NAN), ("eta", "1"), ("eta", None), ("s_noise", INF)])
def test_options_of_a_solver_are_numbers(name, value, tmp_path):
    model, store = counted(), tmp_path / "run.zarr"

    def call():
        sample(
            model, solver=tk.solver("euler_ancestral", **{name: value}), steps=2, save=tk.Save(store=store)
        )

    refused(call, name, repr(value))
    assert model.asked == 0
    assert not store.exists()


def test_bootstrap_of_obelm_is_checked_before_the_run(tmp_path):
    model, store = counted(), tmp_path / "run.zarr"
    chosen = {"bootstrap": "midpont"}
    refused(
        lambda: unsample(model, solver=tk.solver("obelm", **chosen), save=tk.Save(store=store)),
        "bootstrap",
        "midpont",
    )
    assert model.asked == 0
    assert not store.exists()


# --- more than the keys of noise can tell apart ----


@pytest.mark.parametrize("run", ["sample", "noise given", "ladder", "shared ladder", "unsample"])
def test_too_many_samples(run, tmp_path):
    model, store = counted((1, 1, 1)), tmp_path / "run.zarr"
    many, save = torch.zeros(16_385, 1, 1, 1), tk.Save(store=store)
    calls = {
        "sample": lambda: sample(model, shape=tuple(many.shape), steps=2, save=save),
        "noise given": lambda: sample(model, noise=many, steps=2, solver="euler_ancestral", save=save),
        "ladder": lambda: ladder(model, many, save=save),
        "shared ladder": lambda: ladder(model, many, coupling="shared", save=save),
        "unsample": lambda: unsample(model, many, save=save),
    }
    refused(calls[run], "samples", "16385")
    assert model.asked == 0
    assert not store.exists()


def forbidden(*_):
    raise AssertionError("the run was begun")


@pytest.mark.parametrize("run", ["sample", "ladder"])
def test_too_many_rungs(run, tmp_path, monkeypatch):
    """65,536 rungs have keys of their own: a run that would need one more is refused, not begun."""
    model, store, one = counted((1, 1, 1)), tmp_path / "run.zarr", torch.zeros(1, 1, 1, 1)
    kw = {"sample": {"solver": "euler_ancestral", "noise": one}, "ladder": {"latent": one}}[run]
    monkeypatch.setattr(Counted, "x0", forbidden)
    monkeypatch.setattr("toolkit.noise.Keyed.draw", forbidden)
    with pytest.raises(ValueError, match=r"65,?536.*Try: \S"):
        RUNS[run](model, steps=65_600, **kw, save=tk.Save(store=store))
    assert not store.exists()


# --- replays ----


def recorded(**kw) -> xr.Dataset:
    return unsample(counted(), **kw)


def stopped() -> xr.Dataset:
    calls = iter(range(100))
    model = tk.denoiser(lambda x, sigma: x * (NAN if next(calls) == 3 else 0.5))
    with pytest.raises(FloatingPointError) as caught:
        unsample(model)
    return caught.value.dataset


REPLAYS = [
    ("a ladder", lambda: ladder(counted()), {}, "start", "ladder"),
    ("a sample", lambda: sample(counted(), steps=2), {}, "start", "sample"),
    ("a round trip", lambda: round_trip(counted()), {}, "start", "round_trip"),
    ("a schedule", lambda: tk.schedule(counted()), {}, "start", "schedule"),
    ("no run", lambda: xr.Dataset({"a": 1}), {}, "start", "None"),
    ("stopped", stopped, {}, "start", "stopped"),
    ("normalised", lambda: tk.normalized(recorded(), "global"), {}, "start", "global"),
    ("normalised by the node", lambda: comfy(counted(), normalize="enable"), {}, "start", "global"),
    ("latent not kept", lambda: recorded(save=tk.Save(what=["denoised"])), {}, "start", "denoised"),
    ("offsets dropped", lambda: recorded().drop_vars("offset"), {}, "start", ""),
    ("of three channels", lambda: recorded().isel(channel=slice(0, 3)), {}, "start", "'channel': 3"),
    ("of another size", lambda: recorded().isel(y=slice(0, 4)), {}, "start", "'y': 4"),
    ("of another path", lambda: unsample(counted(path=tk.FLOW)), {}, "start", "FLOW"),
    ("other steps", recorded, {"steps": 7}, "steps", "7"),
    ("other schedule", recorded, {"schedule": "karras"}, "schedule", "karras"),
    ("sigmas", recorded, {"sigmas": [1.0, 0.5, 0.0]}, "sigmas", "[1.0, 0.5, 0.0]"),
    ("other solver", recorded, {"solver": "heun"}, "solver", "heun"),
    ("other options", lambda: recorded(solver=tk.solver("obelm", bootstrap="euler"), inverse="offsets"),
     {"solver": "obelm"}, "solver", "obelm"),
    ("unknown solver", recorded, {"solver": "eulr"}, "solver", "eulr"),
    ("noise", recorded, {"noise": picture()}, "noise", "tensor"),
    ("shape", recorded, {"shape": SHAPE}, "shape", "(1, 4, 8, 8)"),
    ("a second mask", lambda: recorded(mask=np.tri(8)), {"mask": torch.ones(8, 8)}, "mask", "tensor"),
    ("start_at_step", recorded, {"start_at_step": 1}, "start_at_step", "1"),
    ("end_at_step", recorded, {"end_at_step": 2}, "end_at_step", "2"),
    ("cfg", recorded, {"cfg": NAN}, "cfg", "nan"),
    ("prompt", recorded, {"prompt": 9}, "prompt", "9"),
    ("a prompt too many", recorded, {"prompt": [0, 1]}, "prompt", "[0, 1]"),
]  # fmt: skip


@pytest.mark.parametrize("make, kw, argument, shown", [r[1:] for r in REPLAYS], ids=[r[0] for r in REPLAYS])
def test_what_cannot_be_replayed(make, kw, argument, shown, tmp_path):
    start, model, store = make(), counted(), tmp_path / "run.zarr"
    refused(lambda: sample(model, start, save=tk.Save(store=store), **kw), argument, shown)
    assert model.asked == 0
    assert not store.exists()


def test_a_recorded_prompt_that_this_model_does_not_know():
    model = counted(conditions=1)
    refused(lambda: sample(model, recorded(prompt=1)), "prompt", "1")
    assert model.asked == 0


def test_what_a_replay_may_be_told():
    """Its own grid by name, another solver where there are no offsets, another prompt and cfg: all run."""
    plain = recorded(inverse="reverse")
    for kw in ({"steps": 3, "schedule": "normal"}, {"solver": "heun"}, {"prompt": 1, "cfg": 2.0}):
        assert np.isfinite(sample(counted(), plain, **kw).latent.values).all()


def test_a_node_s_run_is_replayed_or_refused():
    try:
        again = sample(counted(), comfy(counted()))
    except (ValueError, TypeError) as exc:
        same_given(str(exc), "start", "")
    else:
        assert np.isfinite(again.latent.values).all()


# --- stores, and what the record's function may add ----


@pytest.mark.parametrize("kind", ["nothing", "a file", "an empty folder", "another store"])
def test_open(kind, tmp_path):
    path = tmp_path / "run.zarr"
    if kind == "a file":
        path.write_text("no store")
    elif kind == "an empty folder":
        path.mkdir()
    elif kind == "another store":
        xr.Dataset({"a": ("step", [1.0])}).to_zarr(path, zarr_format=3, consolidated=False)
    refused(lambda: tk.open(path), "path", "run.zarr", FileNotFoundError if kind == "nothing" else ValueError)


@pytest.mark.parametrize("path", [None, 3, ["run.zarr"]])
def test_open_wants_a_path(path):
    refused(lambda: tk.open(path), "path", repr(path))


FUNCTIONS = [
    ("nothing returned", lambda step: None),
    ("a number", lambda step: 3.0),
    ("a name of the schema", lambda step: {"latent": step.x}),
    ("a coordinate", lambda step: {"x": step.x}),
    ("the store's flag", lambda step: {"written": 1.0}),
    ("no identifier", lambda step: {"a name": 1.0}),
    ("a number as a name", lambda step: {3: 1.0}),
    ("another shape", lambda step: {"mine": np.zeros(7)}),
    ("three dimensions", lambda step: {"mine": step.x[0]}),
    ("text", lambda step: {"mine": "large"}),
    ("complex", lambda step: {"mine": 1j}),
]


@pytest.mark.parametrize("kept", ["memory", "store"])
@pytest.mark.parametrize("fn", [f[1] for f in FUNCTIONS], ids=[f[0] for f in FUNCTIONS])
def test_what_a_function_cannot_add(fn, kept, tmp_path):
    """It is asked with the first step, so the model was called; the error is ours all the same."""
    store = tmp_path / "run.zarr" if kept == "store" else None
    refused(lambda: unsample(counted(), save=tk.Save(fn=fn, store=store)), "fn", "")


def test_a_dtype_that_no_store_holds(tmp_path):
    store, kind = tmp_path / "run.zarr", np.dtype(np.longdouble)
    if kind.itemsize > 8:  # where it is float64 by another name, there is nothing to refuse
        refused(lambda: ladder(counted(), save=tk.Save(dtype=kind, store=store)), "dtype", "")
        assert not store.exists()


# --- a pipeline ----


@pytest.fixture(scope="module")
def pipeline():
    """A DiT of random weights, in memory: 4 latent channels, 4 x 4, five classes."""
    import diffusers

    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(in_channels=1, out_channels=1, latent_channels=4, block_out_channels=(8,),
                                  norm_num_groups=4, sample_size=4)  # fmt: skip
    network = diffusers.DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=4, in_channels=4,
                                              num_layers=1, sample_size=4, patch_size=2, norm_num_groups=4,
                                              num_embeds_ada_norm=5, out_channels=8)  # fmt: skip
    return diffusers.DiTPipeline(network, vae, diffusers.DDIMScheduler())


PIPELINE = [
    ("decode: a run", lambda m: m.decode(rungs().latent), "latent", "step"),
    ("decode: rank", lambda m: m.decode(torch.zeros(4, 4, 4)), "latent", "(4, 4, 4)"),
    ("decode: channels", lambda m: m.decode(torch.zeros(1, 3, 4, 4)), "latent", "(1, 3, 4, 4)"),
    ("decode: size", lambda m: m.decode(torch.zeros(1, 4, 8, 8)), "latent", "(1, 4, 8, 8)"),
    ("decode: NaN", lambda m: m.decode(torch.full((1, 4, 4, 4), NAN)), "latent", "NaN"),
    ("decode: integers", lambda m: m.decode(np.zeros((1, 4, 4, 4), np.int64)), "latent", "int64"),
    ("decode: nothing", lambda m: m.decode(None), "latent", "None"),
    ("encode: size", lambda m: m.encode(Image.new("L", (5, 4))), "image", "(4, 5)"),
    ("encode: range", lambda m: m.encode(np.full((4, 4), 2.0)), "image", "2"),
    ("encode: NaN", lambda m: m.encode(np.full((4, 4), NAN)), "image", "nan"),
    ("encode: integers", lambda m: m.encode(np.zeros((4, 4), np.int64)), "image", "int64"),
    ("encode: rank", lambda m: m.encode(np.zeros((1, 1, 1, 4, 4))), "image", "(1, 1, 1, 4, 4)"),
    ("encode: text", lambda m: m.encode("digit.png"), "image", "str"),
    ("encode: nothing", lambda m: m.encode(None), "image", "None"),
    ("encode: an empty list", lambda m: m.encode([]), "image", "[]"),
    ("label", lambda m: tk.unsample(m, torch.zeros(1, 4, 4, 4), prompt=5, progress=False), "prompt", "5"),
    ("label in words", lambda m: tk.sample(m, prompt="three", progress=False), "prompt", "three"),
    ("negative label", lambda m: tk.sample(m, negative=-1, cfg=2.0, progress=False), "negative", "-1"),
    ("device", lambda m: tk.load(m.pipe, device="gpu0"), "device", "gpu0"),
    ("device=3.5", lambda m: tk.load(m.pipe, device=3.5), "device", "3.5"),
]  # fmt: skip


@pytest.mark.parametrize("call, argument, shown", [r[1:] for r in PIPELINE], ids=[r[0] for r in PIPELINE])
def test_pipeline(pipeline, call, argument, shown):
    model = tk.load(pipeline)
    model.pipe, asked = pipeline, []
    hook = model.network.register_forward_hook(lambda *_: asked.append(1))
    refused(lambda: call(model), argument, shown)
    hook.remove()
    assert asked == []


def test_a_folder_that_is_no_pipeline_we_run(tmp_path):
    refused(lambda: tk.load(tmp_path), "source", str(tmp_path)[:60])
    index = tmp_path / "model_index.json"
    index.write_text('{"_class_name": "WuerstchenPipeline"}')
    refused(lambda: tk.load(tmp_path), "source", "Wuerstchen")
    for text in ("{", "[]", ""):
        index.write_text(text)
        refused(lambda: tk.load(tmp_path), "source", "")


# --- junk: it runs with finite results, or says what to type ----

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 6),
    st.floats(),
    st.text(max_size=4),
    st.complex_numbers(max_magnitude=9),
    st.lists(st.integers(-2, 3), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
    st.sampled_from([np.float32(1.5), np.int64(3), np.array(2), np.ones(2), torch.tensor(2), b"3", object]),
)
LEVELS = st.lists(st.floats(1e-3, 1e3) | st.floats() | st.just(0.0), max_size=5)
SIGMAS = st.one_of(
    LEVELS, LEVELS.map(sorted), LEVELS.map(lambda v: sorted(v, reverse=True)), LEVELS.map(np.array), JUNK
)
SIDES = st.lists(st.integers(0, 3), max_size=6).map(tuple)
WEIGHTS = st.sampled_from([-1.0, 0.0, 0.25, 1.0, 1.0, 1.5, NAN, INF])


@st.composite
def filled(draw, sides, values, kinds=("float64",)):
    """An array of a shape out of `sides`, its numbers out of `values`; now and then a tensor."""
    shape = draw(sides)
    numbers = draw(st.lists(values, min_size=1, max_size=4))
    made = np.resize(np.array(numbers), shape)
    with np.errstate(invalid="ignore"):
        made = made.astype(draw(st.sampled_from(kinds)))
    return torch.from_numpy(made) if draw(st.booleans()) else made


MASK = filled(st.just((2, 2)) | SIDES, WEIGHTS, ("float64", "float32")) | JUNK
NUMBER = st.floats(-3, 3) | st.floats()
LATENT = filled(
    st.just(SMALL) | SIDES, NUMBER.filter(lambda v: not 1e100 < abs(v) < INF), ("float64", "int32")
)
quick = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def survives(call) -> None:
    """Finite where it runs; otherwise ValueError or TypeError with the line to type, and no model call."""
    model = counted(SMALL[1:])
    try:
        run = call(model)
    except (ValueError, TypeError) as exc:
        assert re.search(r"(?s)^\w+=.+\. Try: \S", str(exc)), repr(exc)
        assert model.asked == 0, repr(exc)
    else:
        assert np.isfinite(run.latent.values).all()
        assert {"step", "sample", "channel", "y", "x"} == set(run.sizes)


@quick
@given(steps=JUNK, end=JUNK, solver=st.sampled_from(["euler", "dpmpp_2m", "lms", "obelm"]))
def test_junk_steps(steps, end, solver):
    tiny = picture(SMALL)
    survives(lambda m: unsample(m, tiny, steps=steps, end_at_step=end, solver=solver))
    survives(lambda m: ladder(m, tiny, steps=steps, end_at_step=end))
    survives(lambda m: sample(m, steps=steps, end_at_step=end, solver=solver))


@quick
@given(start=st.integers(-2, 6) | JUNK, end=st.integers(-2, 6) | JUNK, every=st.integers(-1, 7) | JUNK)
def test_junk_range(start, end, every):
    tiny = picture(SMALL)
    survives(lambda m: ladder(m, tiny, steps=4, start_at_step=start, end_at_step=end, every=every))
    survives(lambda m: sample(m, tiny, steps=4, start_at_step=start, end_at_step=end))


@quick
@given(cfg=st.floats(-20, 20) | JUNK, shift=st.floats(-1, 1) | JUNK, prompt=JUNK)
def test_junk_cfg_shift_and_prompt(cfg, shift, prompt):
    tiny = picture(SMALL)
    survives(lambda m: unsample(m, tiny, steps=2, cfg=cfg))
    survives(lambda m: unsample(m, tiny, steps=2, prompt=prompt, cfg=2.0))
    survives(lambda m: unsample(m, tiny, steps=2, sigma_shift=shift))
    survives(lambda m: sample(m, steps=2, cfg=cfg, negative=prompt))


@quick
@given(sigmas=SIGMAS, solver=st.sampled_from(sorted(tk.SOLVERS)))
def test_junk_sigmas(sigmas, solver):
    tiny = picture(SMALL)
    survives(lambda m: sample(m, sigmas=sigmas, solver=solver))
    survives(lambda m: unsample(m, tiny, sigmas=sigmas, solver=solver))


@quick
@given(shape=SIDES | st.just(SMALL) | JUNK)
def test_junk_shape(shape):
    survives(lambda m: sample(m, steps=2, shape=shape))
    survives(lambda m: sample(tk.denoiser(lambda x, sigma: 0.5 * x), steps=2, shape=shape))


@quick
@given(mask=MASK)
def test_junk_mask(mask):
    tiny = picture(SMALL)
    survives(lambda m: unsample(m, tiny, steps=2, mask=mask))
    survives(lambda m: sample(m, tiny, steps=2, mask=mask))


@quick
@given(latent=LATENT | JUNK)
def test_junk_latent(latent):
    survives(lambda m: unsample(m, latent, steps=2))
    survives(lambda m: ladder(m, latent, steps=2))
    survives(lambda m: sample(m, latent, steps=2))
