"""The two nodes called BatchUnsampler: their numbers, their order, their quirks, and what we refuse."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import DATA, PATHS, reference_mixture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import toolkit as tk
from toolkit.comfy import batches

with np.load(DATA / "ladder.npz") as _data:
    REFERENCE = dict(_data)
IMAGES = torch.from_numpy(REFERENCE["image_batch2"])
SCALE = 0.18215
NODE = re.compile(
    r"node_(?P<which>itmix|demofusion)__(?P<sampler>\w+?)__(?P<scheduler>[a-z]+)__(?P<steps>\d+)__(start(?P<start>\d+)__)?"
    r"end(?P<end>\d+)__(inc(?P<inc>\d+)__)?norm(?P<norm>\d)(__scale(?P<scale>[\d.]+))?__z(?P<ends>_first_last)?$"
)
CASES = [key for key in REFERENCE if NODE.match(key)]
FULL = [key for key in CASES if len(REFERENCE[key])]
DEMOFUSION, ITERATIVE = tk.comfy.batch_unsampler_demofusion, tk.comfy.batch_unsampler_iterative_mixer
BOTH = {"demofusion": DEMOFUSION, "itmix": ITERATIVE}
SMALL = torch.linspace(-1.0, 1.0, 16).reshape(1, 4, 2, 2)  # float32


def small(path=tk.VE, scale=1.0):
    """A model of any size whose network must not be asked."""

    def network(x, sigma):
        raise AssertionError("the network was asked")

    model = tk.denoiser(network, path)
    model.latent_scale = scale
    return model


@pytest.fixture(scope="module")
def model(reference):
    """The reference mixture with a latent scale."""

    def make(scale=1.0, path=tk.VE):
        made = reference_mixture(reference, path)
        made.latent_scale = scale
        return made

    return make


def relative(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def asked(key):
    """The function and the parameters of a reference key."""
    m = NODE.match(key)
    own = {
        "steps": int(m["steps"]),
        "end_at_step": int(m["end"]),
        "sampler_name": m["sampler"],
        "scheduler": m["scheduler"],
    }
    if m["which"] == "demofusion":
        return DEMOFUSION, own | {"step_increment": int(m["inc"]), "positive": 0, "negative": 1}, 1.0
    return (
        ITERATIVE,
        own | {"start_at_step": int(m["start"]), "normalize": m["norm"] == "1"},
        float(m["scale"]),
    )


@pytest.mark.parametrize("key", FULL)
def test_the_nodes_meet_the_reference(model, key):
    """With the global generator, which the reference seeded with 0, and with its draws given."""
    node, own, scale = asked(key)
    torch.manual_seed(0)
    run = node(model(scale), latent_image={"samples": IMAGES[:1]}, **own)
    rows = [0, -1] if key.endswith("first_last") else slice(None)
    # float32 levels of another order of operations: karras is 1e-6 apart
    assert relative(run.latent[rows, 0], REFERENCE[key]) < 2e-6
    torch.manual_seed(0)
    noise = torch.randn((run.sizes["step"], *IMAGES.shape[1:]))[:, None]
    same = node(model(scale), latent_image={"samples": IMAGES[:1]}, noise=noise, **own)
    np.testing.assert_array_equal(same.latent, run.latent)
    if (levels := re.sub("__z.*", "__sigmas", key)) in REFERENCE:  # in the space of the VAE
        np.testing.assert_allclose(run.sigma / scale, REFERENCE[levels], rtol=2e-6)


def test_the_reference_covers_what_the_nodes_can_do():
    found = [NODE.match(key).groupdict() for key in FULL]
    for part, values in {
        "which": {"itmix", "demofusion"},
        "sampler": {"euler", "dpm_2"},
        "scheduler": {"normal", "karras"},
        "start": {"0", "2", "3"},
        "end": {"7", "8", "10000"},
        "norm": {"0", "1"},
        "scale": {"1", str(SCALE)},
    }.items():
        assert values <= {f[part] for f in found}, part
    assert [key for key in CASES if key not in FULL] == [k for k in CASES if "start5__end4" in k] != []


def with_levels(monkeypatch, falling):
    """Both nodes walk these levels, whatever the schedule: the reference's, to the last bit."""
    monkeypatch.setattr(batches, "schedule_sigmas", lambda *given: np.ascontiguousarray(falling))


@pytest.mark.parametrize("schedule, norm", [("normal", 0), ("normal", 1), ("karras", 1)])
def test_iterative_mixer_on_given_levels_has_every_bit(model, monkeypatch, schedule, norm):
    """Its function takes the whole schedule, 0 too, which the node does where a schedule is short."""
    with_levels(monkeypatch, REFERENCE[f"function__{schedule}__10__sigmas_flipped"][::-1])
    torch.manual_seed(0)
    run = ITERATIVE(model(), steps=11, latent_image=IMAGES[:1], normalize=bool(norm))
    np.testing.assert_array_equal(
        run.latent[:, 0], REFERENCE[f"function_itmix__{schedule}__10__batch1__norm{norm}__z"]
    )
    assert "zero_row" in run.attrs["quirks"]


@pytest.mark.parametrize("schedule, batch", [("normal", 1), ("karras", 2)])
def test_demofusion_on_given_levels_has_every_bit(model, monkeypatch, schedule, batch):
    """A batch of two as well: row k B + b of the node's batch is sample b of level k."""
    with_levels(monkeypatch, REFERENCE[f"function__{schedule}__10__sigmas_flipped"][::-1])
    torch.manual_seed(0)
    run = DEMOFUSION(model(), steps=10, latent_image=IMAGES[:batch])
    want = REFERENCE[f"function_demofusion__{schedule}__10__batch{batch}__norm0__z"]
    np.testing.assert_array_equal(run.latent.values.reshape(want.shape), want)


@pytest.mark.parametrize("normalize", [False, True])
def test_iterative_mixer_runs_a_batch_sample_by_sample(normalize):
    """As calls for one sample each, in turn; upstream breaks. One note says so, where there is a batch."""
    two = torch.cat([SMALL, 3.0 - SMALL])
    ask = {"scheduler": "karras", "steps": 7, "normalize": normalize}
    torch.manual_seed(3)
    alone = [ITERATIVE(small(scale=SCALE), latent_image=two[b : b + 1], **ask) for b in range(2)]
    torch.manual_seed(3)
    both = ITERATIVE(small(scale=SCALE), latent_image=two, **ask)
    for name in ("latent", "mean", "std", "shift", "scale"):
        parts = [run[name].values for run in alone]
        np.testing.assert_array_equal(both[name].values, np.concatenate(parts, axis=1), err_msg=name)
    assert "one after the other" in both.attrs["note"]
    assert "note" not in alone[0].attrs
    assert "note" not in DEMOFUSION(small(), latent_image=two).attrs


# --- quirks: the whole list, so that a name that should not be there is seen as well ----

MASK = torch.ones(2, 2)
DEFAULTS = {"itmix": {"end_at_step": 20, "steps": 20}, "demofusion": {}}
QUIRKS = [
    ("itmix", tk.VE, 1.0, {}, {}, []),
    ("itmix", tk.VE, SCALE, {}, {}, []),
    ("itmix", tk.FLOW, 1.0, {}, {}, ["ve_noising"]),
    ("itmix", tk.VE, 1.0, {"noise": None}, {}, ["global_noise"]),
    ("itmix", tk.VE, 1.0, {"normalize": True}, {}, ["first_row_mean"]),
    ("itmix", tk.VE, 1.0, {"end_at_step": 21}, {}, ["range_clamped"]),
    ("itmix", tk.VE, 1.0, {"end_at_step": 19}, {}, []),
    ("itmix", tk.VE, 1.0, {"start_at_step": 19}, {}, []),
    ("itmix", tk.VE, 1.0, {"sampler_name": "dpm_2", "scheduler": "karras"}, {}, []),
    # beta makes 199 steps of 200, and its 0 is the level of step 199
    ("itmix", tk.VE, 1.0, {"scheduler": "beta", "steps": 200, "end_at_step": 200}, {}, ["zero_row"]),
    ("itmix", tk.VE, 1.0, {"scheduler": "beta", "steps": 200, "end_at_step": 199}, {}, []),
    ("itmix", tk.VE, 1.0, {"scheduler": "beta", "steps": 200}, {}, []),
    # 845 levels for 995 steps: any end past them takes the 0 along
    ("itmix", tk.VE, 1.0, {"scheduler": "beta", "steps": 995, "end_at_step": 990}, {}, ["zero_row"]),
    ("itmix", tk.VE, 1.0, {}, {"noise_mask": MASK}, ["inputs_ignored"]),
    ("itmix", tk.VE, 1.0, {}, {"noise_mask": None}, []),
    (
        "itmix",
        tk.FLOW,
        SCALE,
        {"noise": None, "normalize": True, "scheduler": "beta", "steps": 995, "end_at_step": 10_000},
        {"noise_mask": MASK},
        ["inputs_ignored", "ve_noising", "global_noise", "first_row_mean", "zero_row", "range_clamped"],
    ),
    ("demofusion", tk.VE, 1.0, {}, {}, []),
    ("demofusion", tk.VE, SCALE, {}, {}, ["scale_forgotten"]),
    ("demofusion", tk.FLOW, 1.0, {}, {}, ["ve_noising"]),
    ("demofusion", tk.VE, 1.0, {"noise": None}, {}, ["global_noise"]),
    ("demofusion", tk.VE, 1.0, {"end_at_step": 0, "cfg": 1, "normalize": "disable"}, {}, []),
    ("demofusion", tk.VE, 1.0, {"end_at_step": 10_000}, {}, ["inputs_ignored"]),
    ("demofusion", tk.VE, 1.0, {"scheduler": "beta", "steps": 200}, {}, []),
    (
        "demofusion",
        tk.FLOW,
        SCALE,
        {"noise": None, "cfg": 7.5},
        {},
        ["inputs_ignored", "scale_forgotten", "ve_noising", "global_noise"],
    ),
]


def unit(node, made, latent_image, **own):
    """Draws of the size that this call's result has."""
    rows = BOTH[node](made, latent_image=latent_image, **own).sizes["step"]
    return torch.randn((rows, *SMALL.shape), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("node, path, scale, own, keys, quirks", QUIRKS)
def test_quirks_are_listed_when_and_only_when_they_hold(node, path, scale, own, keys, quirks):
    made, latent = small(path, scale), {"samples": SMALL, **keys}
    own = DEFAULTS[node] | own
    noise = unit(node, made, latent, **own) if "noise" not in own else own.pop("noise")
    run = BOTH[node](made, latent_image=latent, noise=noise, **own)
    assert run.attrs["quirks"] == quirks
    assert bool(run.attrs["inputs_ignored"]) == ("inputs_ignored" in quirks)
    assert run.attrs["coupling"] == ("independent" if noise is None else "given")


def test_every_quirk_of_the_two_nodes_has_a_case():
    assert {q for *_, quirks in QUIRKS for q in quirks} == {
        "inputs_ignored", "scale_forgotten", "ve_noising", "global_noise", "first_row_mean", "zero_row",
        "range_clamped",
    }  # fmt: skip


IGNORED = {
    "end_at_step": 4,
    "step_increment": 3,
    "cfg": 7.5,
    "normalize": "enable",
    "positive": object(),
    "negative": object(),
    "noise_mask": MASK,
    "batch_index": [0],
}


@pytest.mark.parametrize("names", [[], *[[name] for name in IGNORED], list(IGNORED)], ids=str)
def test_demofusion_ignores_and_names_what_it_ignores(names):
    own = {name: IGNORED[name] for name in names if name not in ("noise_mask", "batch_index")}
    keys = {name: IGNORED[name] for name in names if name in ("noise_mask", "batch_index")}
    torch.manual_seed(0)
    plain = DEMOFUSION(small(), latent_image=SMALL)
    torch.manual_seed(0)
    run = DEMOFUSION(small(), latent_image={"samples": SMALL, **keys}, **own)
    assert run.attrs["inputs_ignored"] == names
    assert run.attrs["normalize"] == "off"
    for name in plain.data_vars:
        np.testing.assert_array_equal(run[name], plain[name], err_msg=name)


def test_demofusion_forgets_the_scale_and_iterative_mixer_does_not():
    """Twice the same draws: in model space the one's noise is too weak by the scale, the other's is right."""
    made, noise = small(scale=SCALE), torch.randn(20, *SMALL.shape)
    runs = {
        "itmix": ITERATIVE(made, steps=20, latent_image=SMALL / SCALE, noise=noise),
        "demofusion": DEMOFUSION(made, steps=20, latent_image=SMALL / SCALE, noise=noise),
    }
    for node, factor in (("itmix", 1.0), ("demofusion", SCALE)):
        run = runs[node]
        want = SMALL.numpy() + factor * run.sigma.values[:, None, None, None, None] * noise.numpy()
        there = tk.in_space(run, "model")
        assert relative(there.latent, want) < 1e-6
        assert there.latent.dtype == np.float32
        assert relative(tk.in_space(there, "vae").latent, run.latent) < 1e-6
        assert there.attrs["latent_space"] == "model"
        assert (there["scale"] == 1).all()
        assert (there["shift"] == 0).all()
    np.testing.assert_array_equal(runs["itmix"].sigma, runs["demofusion"].sigma)


def test_iterative_mixer_in_model_space_is_the_ladder():
    """On VE with the same draws: that is all that a scale and a node change of tk.ladder's rungs."""
    made, noise = small(scale=SCALE), torch.randn(20, *SMALL.shape)
    node = tk.in_space(ITERATIVE(made, steps=20, latent_image=SMALL / SCALE, noise=noise), "model")
    first = torch.zeros(1, *SMALL.shape)  # the ladder's rung at 0
    plain = tk.ladder(made, SMALL, schedule="simple", noise=torch.cat([first, noise]), progress=False)[
        {"step": slice(1, None)}
    ]
    for name in ("sigma", "latent", "mean", "std", "timestep"):
        np.testing.assert_allclose(node[name], plain[name], rtol=2e-5, atol=1e-5, err_msg=name)
    assert set(node.data_vars) == set(plain.data_vars)
    assert set(node.coords) == set(plain.coords)


def test_a_normalised_run_says_what_was_subtracted():
    noise = torch.randn(6, *SMALL.shape)
    raw, run = (
        ITERATIVE(small(), steps=6, latent_image=SMALL, noise=noise, normalize=n) for n in (False, True)
    )
    mean = raw.latent[0].values.mean(dtype=np.float64)
    np.testing.assert_allclose(run["shift"], mean, rtol=1e-5)
    np.testing.assert_allclose(run.latent + run["shift"], raw.latent, rtol=1e-5, atol=1e-5)
    assert abs(float(run.latent[0].mean())) < 1e-6
    assert abs(float(run.latent[1].mean())) > 1e-3, "one scalar for all rows, and that of row 0"
    assert (raw.attrs["normalized"], run.attrs["normalized"]) == ("off", "first_row")
    with pytest.raises(ValueError, match="first_row"):
        tk.in_space(run, "model")
    with pytest.raises(ValueError, match="normalised already"):
        tk.normalized(run, "global")


@pytest.mark.parametrize("node", BOTH)
def test_the_record(node):
    """The schema of a ladder, in the space of the VAE, with facts of the model and of the node."""
    two = torch.cat([SMALL, 3.0 - SMALL])
    run = BOTH[node](small(tk.FLOW, SCALE), steps=5, latent_image=two)
    assert dict(run.sizes) == {"step": 5, "sample": 2, "channel": 4, "y": 2, "x": 2}
    assert run.latent.dims == ("step", "sample", "channel", "y", "x")
    assert run.latent.dtype == np.float32
    assert {n: run[n].dims for n in run.data_vars if n != "latent"} == {
        **dict.fromkeys(("mean", "std", "shift", "scale"), ("step", "sample", "channel")),
        "nfe": ("step",),
        "rows": ("step",),
    }
    assert not run.nfe.any()
    assert not run.rows.any()
    flat = run.latent.values.astype(np.float64)
    np.testing.assert_allclose(run["mean"], flat.mean((-1, -2)), rtol=1e-12)
    np.testing.assert_allclose(run["std"], flat.std((-1, -2)), rtol=1e-12)
    want = tk.schedule(small(tk.FLOW), "simple", 5).sigma.values[-2::-1]
    np.testing.assert_array_equal(run.sigma, want)
    np.testing.assert_array_equal(run.alpha, 1 - want)
    facts = {"kind": "ladder", "node": "BatchUnsampler", "latent_space": "vae", "latent_scale": SCALE,
             "path": "FLOW", "schedule": "simple", "sampler_name": "euler", "steps": 5}  # fmt: skip
    assert {name: run.attrs[name] for name in facts} == facts
    assert all({"units", "long_name"} <= set(run[name].attrs) for name in run.variables)


def test_rows_of_a_long_ladder_are_read_in_parts(monkeypatch):
    """Moments, and the search for NaN, do not depend on how many rows are read at once."""
    noise = torch.randn(7, *SMALL.shape)
    whole = ITERATIVE(small(), steps=7, latent_image=SMALL, noise=noise)
    monkeypatch.setattr(batches, "BLOCK", 2 * SMALL.numel())  # 7 rows as 2, 2, 2, 1
    xr.testing.assert_identical(ITERATIVE(small(), steps=7, latent_image=SMALL, noise=noise), whole)
    noise[-1, 0, 3, 1, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        ITERATIVE(small(), steps=7, latent_image=SMALL, noise=noise)


@pytest.mark.parametrize("node", BOTH)
def test_the_global_generator_is_drawn_only_without_noise(node):
    noise = torch.randn(5, *SMALL.shape)
    torch.manual_seed(11)
    BOTH[node](small(), steps=5, latent_image=SMALL, noise=noise)
    first = BOTH[node](small(), steps=5, latent_image=SMALL)
    second = BOTH[node](small(), steps=5, latent_image=SMALL)
    torch.manual_seed(11)
    again = BOTH[node](small(), steps=5, latent_image=SMALL)
    xr.testing.assert_identical(again, first)
    assert not np.array_equal(first.latent, second.latent)


@pytest.mark.parametrize("node", BOTH)
@pytest.mark.parametrize("default", [torch.float64, torch.float16])
def test_the_draw_is_float32_on_the_host_whatever_the_defaults_and_the_latent(node, default):
    torch.manual_seed(0)
    want = BOTH[node](small(), steps=5, latent_image=SMALL)
    try:
        torch.set_default_dtype(default)
        torch.manual_seed(0)
        with torch.device("meta"):
            got = BOTH[node](small(), steps=5, latent_image=SMALL.double())
    finally:
        torch.set_default_dtype(torch.float32)
    xr.testing.assert_identical(got, want)


@pytest.mark.parametrize("node", BOTH)
def test_what_is_given_may_have_any_form_and_is_left_alone(node):
    noise = torch.randn(5, *SMALL.shape)
    kept = noise.clone(), SMALL.clone()
    run = BOTH[node](small(), steps=5, latent_image={"samples": SMALL}, noise=noise)
    dims = ("step", "sample", "channel", "y", "x")
    for latent, draws in [
        (SMALL.numpy(), noise.numpy()),
        (SMALL.double(), noise.double()),
        (xr.DataArray(SMALL, dims=dims[1:]), xr.DataArray(noise, dims=dims)),
        (SMALL.clone().requires_grad_(), noise.clone().requires_grad_()),
        (SMALL.to(memory_format=torch.channels_last), noise.transpose(3, 4).contiguous().transpose(3, 4)),
    ]:
        other = BOTH[node](small(), steps=5, latent_image=latent, noise=draws)
        xr.testing.assert_identical(other, run)
    run.latent[:] = 0.0
    assert torch.equal(noise, kept[0])
    assert torch.equal(SMALL, kept[1])


@pytest.mark.parametrize("node", BOTH)
def test_conditions_that_were_bound_hide_no_latent_scale(model, node):
    torch.manual_seed(0)
    want = BOTH[node](model(SCALE), steps=5, latent_image=IMAGES)
    torch.manual_seed(0)
    got = BOTH[node](tk.guide(model(SCALE), prompt=1, cfg=3.0), steps=5, latent_image=IMAGES)
    xr.testing.assert_identical(got, want)
    assert got.attrs["latent_scale"] == SCALE


def test_defaults_are_the_nodes_own():
    found = {node: inspect.signature(call).parameters for node, call in BOTH.items()}
    assert {n: p.default for n, p in found["demofusion"].items() if n != "model"} == {
        "steps": 20, "end_at_step": 0, "step_increment": 1, "cfg": 1.0, "sampler_name": "euler",
        "scheduler": "simple", "normalize": "disable", "positive": None, "negative": None,
        "latent_image": None, "noise": None,
    }  # fmt: skip
    assert {n: p.default for n, p in found["itmix"].items() if n != "model"} == {
        "sampler_name": "euler", "scheduler": "simple", "steps": 10_000, "start_at_step": 0,
        "end_at_step": 10_000, "latent_image": None, "normalize": False, "noise": None,
    }  # fmt: skip
    run = ITERATIVE(small(), latent_image=SMALL)
    assert (run.sizes["step"], run.attrs["quirks"]) == (10_000, ["global_noise"])
    assert DEMOFUSION(small(), latent_image=SMALL).sizes["step"] == 20


def test_all_42_names_are_taken_and_four_drop_a_level():
    assert len(set(batches.SAMPLERS)) == 42
    assert set(batches.SAMPLERS) <= set(tk.SOLVERS)
    plain = tk.schedule(small(), "karras", 6).sigma.values[-2::-1]
    other = {"dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"}
    for name in batches.SAMPLERS:
        for node in BOTH.values():
            sigma = node(small(), steps=6, scheduler="karras", sampler_name=name, latent_image=SMALL).sigma
            assert np.array_equal(sigma, plain) == (name not in other), name


# --- what is refused ----


def said(call, argument, kind=(ValueError, TypeError)):
    """The line to type of the error that names `argument`."""
    with pytest.raises(kind) as caught:
        call()
    found = re.fullmatch(r"(?s)(\w+)=(.+?): (.+)\. Try: (\S.*)", str(caught.value))
    assert found, f"not of the form name=given: wanted. Try: line, but {caught.value}"
    assert found[1] == argument, str(caught.value)
    return found[4]


def typed(line, latent=SMALL):
    """What comes of typing a line."""
    return eval(line, {"tk": tk, "model": small(), "latent": latent})


EMPTY = [
    ({"steps": 10, "start_at_step": 5, "end_at_step": 4}, "start_at_step", 4),
    ({"steps": 10, "start_at_step": 10}, "start_at_step", 10),
    ({"steps": 10, "start_at_step": 4, "end_at_step": 4}, "start_at_step", 4),
    ({"steps": 10, "start_at_step": 10_000}, "start_at_step", 10),
    ({"start_at_step": 10_000}, "start_at_step", 10_000),
    ({"steps": 0}, "steps", 10_000),
    ({"steps": 0, "start_at_step": 3}, "steps", 10_000),
    # the node's range is not empty here, but the levels end before it
    ({"steps": 995, "start_at_step": 980, "scheduler": "beta"}, "start_at_step", None),
]


@pytest.mark.parametrize("own, argument, rows", EMPTY, ids=str)
@pytest.mark.parametrize("normalize", [False, True])
def test_an_empty_range_is_refused(own, argument, rows, normalize):
    """Of which the node makes an empty batch, or an IndexError; the line to type gives rungs."""
    line = said(
        lambda: ITERATIVE(small(), latent_image=SMALL, normalize=normalize, **own), argument, ValueError
    )
    assert typed(line).sizes["step"] == (rows or own["steps"])


def changed(name, value):
    return pytest.param({name: value}, name, id=f"{name}={value!r}"[:40])


WHOLE = [-1, 10_001, 2.0, "3", True, None, [3], np.nan]
NUMBERS = [
    *[("demofusion", changed("steps", v)) for v in (0, *WHOLE)],
    *[("itmix", changed("steps", v)) for v in WHOLE],
    *[("itmix", changed("start_at_step", v)) for v in WHOLE],
    *[("itmix", changed("end_at_step", v)) for v in (0, *WHOLE)],
    *[("demofusion", changed("end_at_step", v)) for v in WHOLE],
    *[("demofusion", changed("step_increment", v)) for v in (0, *WHOLE)],
    *[("demofusion", changed("cfg", v)) for v in (-0.1, 100.5, "2", True, np.nan, np.inf, [1.0], None)],
    *[("demofusion", changed("normalize", v)) for v in (True, False, "enabled", None, 1, ["enable"])],
    *[("itmix", changed("normalize", v)) for v in ("enable", None, 1, 0.0, [True])],
    *[(n, changed("sampler_name", v)) for n in BOTH for v in ("eulr", "midpoint", "obelm", None, ["euler"])],
    *[(n, changed("scheduler", v)) for n in BOTH for v in ("karas", "beta57", None, ["karras"])],
]


@pytest.mark.parametrize(
    "node, own, argument",
    [pytest.param(n, *p.values, id=f"{n}-{p.id}") for n, p in NUMBERS],
)
def test_bad_parameters_are_refused_with_a_line_that_runs(node, own, argument):
    """Also of inputs that the node then ignores."""
    line = said(lambda: BOTH[node](small(), latent_image=SMALL, **own), argument)
    assert line.startswith(f"tk.comfy.{BOTH[node].__name__}(model, latent_image=latent")
    assert f"{argument}=" in line
    assert typed(line).sizes["step"] > 0


@pytest.mark.parametrize("node", BOTH)
@pytest.mark.parametrize(
    "own, closest",
    [
        ({"sampler_name": "eulr"}, '"euler"'),
        ({"sampler_name": "dpm2"}, '"dpm_2"'),
        ({"scheduler": "karas"}, '"karras"'),
    ],
    ids=str,
)
def test_the_closest_name_is_offered(node, own, closest):
    line = said(lambda: BOTH[node](small(), latent_image=SMALL, **own), *own, ValueError)
    assert closest in line


LATENTS = {
    "nothing": lambda: None,
    "no samples": lambda: {"latent": SMALL},
    "samples None": lambda: {"samples": None},
    "an image": lambda: Image.new("L", (8, 8)),
    "an image in a dict": lambda: {"samples": Image.new("L", (8, 8))},
    "a list": lambda: SMALL.tolist(),
    "rank": lambda: SMALL[0],
    "no sample": lambda: SMALL[:0],
    "integers": lambda: SMALL.long(),
    "beyond float32": lambda: SMALL.double() * 1e300,
    "NaN": lambda: SMALL / 0 * 0,
}


@pytest.mark.parametrize("node", BOTH)
@pytest.mark.parametrize("name", LATENTS)
def test_a_bad_latent_is_refused(node, name):
    made = small()
    made.encode = lambda image: SMALL  # to model space, which is not what the node takes
    line = said(lambda: BOTH[node](made, steps=3, latent_image=LATENTS[name]()), "latent_image")
    assert "latent_image=" in line
    if line.startswith("tk."):
        assert typed(line).sizes["step"] > 0


NOISES = {
    "no step": lambda: torch.zeros(SMALL.shape),
    "a row short": lambda: torch.zeros(4, *SMALL.shape),
    "a row too many": lambda: torch.zeros(6, *SMALL.shape),
    "as the node's batch": lambda: torch.zeros(5, *SMALL.shape[1:]),
    "two samples": lambda: torch.zeros(5, 2, 4, 2, 2),
    "empty": lambda: torch.zeros(0),
    "NaN": lambda: torch.zeros(5, *SMALL.shape).index_fill(0, torch.tensor(3), torch.nan),
    "Inf": lambda: np.full((5, *SMALL.shape), np.inf),
    "beyond float32": lambda: torch.full((5, *SMALL.shape), 1e300, dtype=torch.float64),
    "integers": lambda: torch.zeros((5, *SMALL.shape), dtype=torch.int64),
    "a list": lambda: torch.zeros(5, *SMALL.shape).tolist(),
    "a seed": lambda: 3,
}


@pytest.mark.parametrize("node", BOTH)
@pytest.mark.parametrize("name", NOISES)
def test_bad_noise_is_refused(node, name):
    line = said(lambda: BOTH[node](small(), steps=5, latent_image=SMALL, noise=NOISES[name]()), "noise")
    assert typed(line).sizes["step"] > 0


@pytest.mark.parametrize("node", BOTH)
@pytest.mark.parametrize("given_model", [None, "digits", 3, tk.VE], ids=str)
def test_the_model_is_a_model(node, given_model):
    said(lambda: BOTH[node](given_model, latent_image=SMALL), "model", TypeError)


# --- any range, any schedule, any batch ----

NAMES = st.sampled_from(["euler", "dpm_2", "uni_pc", "lcm"])
SCHEDULES = st.sampled_from(
    ["simple", "karras", "normal", "beta", "ddim_uniform", "sgm_uniform", "exponential"]
)


@settings(max_examples=150, deadline=None)
@given(
    NAMES, SCHEDULES, st.integers(0, 40), st.integers(0, 45), st.integers(1, 45), st.booleans(),
    st.sampled_from([1.0, SCALE, 2.5]), st.sampled_from(list(PATHS)), st.integers(1, 3),
)  # fmt: skip
def test_any_range_is_the_slice_of_the_schedule_or_refused(
    sampler, scheduler, steps, start, end, normalize, scale, path, samples
):
    made = small(PATHS[path], scale)
    latent = torch.cat([SMALL + b for b in range(samples)])
    own = {"sampler_name": sampler, "scheduler": scheduler, "steps": steps, "start_at_step": start}
    own |= {"end_at_step": end, "normalize": normalize, "latent_image": latent}
    last = min(steps, end)
    first = min(start, last)
    falling = tk.schedule(made, scheduler, steps, sampler).sigma.values if steps else np.zeros(0)
    want = falling[first:last][::-1]
    if len(want) == 0:
        line = said(lambda: ITERATIVE(made, **own), "steps" if steps == 0 else "start_at_step", ValueError)
        assert typed(line).sizes["step"] > 0
        return
    noise = torch.randn((len(want), *latent.shape), generator=torch.Generator().manual_seed(steps))
    run = ITERATIVE(made, noise=noise, **own)
    np.testing.assert_array_equal(run.sigma, want)
    full = latent.double() + torch.from_numpy(want / scale)[:, None, None, None, None] * noise.double()
    if normalize:
        full = full - full[0].mean((1, 2, 3), keepdim=True)
    np.testing.assert_allclose(run.latent, full, rtol=1e-5, atol=1e-6 * float(full.abs().max()))
    assert ("range_clamped" in run.attrs["quirks"]) == (end > steps)
    assert ("zero_row" in run.attrs["quirks"]) == (want[0] == 0)


@settings(max_examples=60, deadline=None)
@given(
    NAMES,
    SCHEDULES,
    st.integers(1, 40),
    st.integers(1, 3),
    st.integers(0, 2**32),
    st.sampled_from([1.0, SCALE]),
)
def test_demofusion_draws_level_by_level(sampler, scheduler, steps, samples, seed, scale):
    """Row k B + b of one draw, as the node flattens it, is sample b of level k; whatever the scale."""
    made, latent = small(scale=scale), torch.cat([SMALL + b for b in range(samples)])
    falling = tk.schedule(made, scheduler, steps, sampler).sigma.values
    torch.manual_seed(seed)
    run = DEMOFUSION(made, steps, sampler_name=sampler, scheduler=scheduler, latent_image=latent)
    torch.manual_seed(seed)
    noise = torch.randn(((len(falling) - 1) * samples, *SMALL.shape[1:])).double()
    flat = torch.from_numpy(run.latent.values).flatten(0, 1)
    for row in range(len(flat)):
        level, sample = divmod(row, samples)
        want = latent[sample].double() + falling[-2 - level] * noise[row]
        torch.testing.assert_close(flat[row].double(), want, rtol=1e-6, atol=1e-5)


MEASURE = """
import re, torch, toolkit as tk
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
model, latent = tk.denoiser(lambda x, sigma: x), torch.zeros(2, 4, 64, 64)
tk.comfy.{name}(model, steps=2, latent_image=latent)
before = peak()
run = tk.comfy.{name}(model, steps=1500, latent_image=latent)
print((peak() - before) / run.latent.nbytes)
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads the peak of memory where Linux has it"
)
@pytest.mark.parametrize("node", BOTH)
def test_a_long_ladder_takes_little_more_memory_than_its_result(node):
    """187 MiB; a copy of it, in float32 or in float64, would be as much again or twice."""
    code = MEASURE.format(name=BOTH[node].__name__)
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0.5 < float(done.stdout) < 1.5
