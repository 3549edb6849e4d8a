"""Impact Pack's regional sampler: its numbers, its masks, its quirks by name, and what we refuse."""

import inspect
import math
import re
import sys
import warnings

import numpy as np
import pytest
import torch
from conftest import DATA, PATHS, reference_mixture, relative

import toolkit as tk
from toolkit.comfy import calls, grids, quirks, regions, streams
from toolkit.comfy.batches import SAMPLERS

pytestmark = pytest.mark.filterwarnings("ignore:RegionalSamplerAdvanced")

with np.load(DATA / "regional.npz") as _data:
    REFERENCE = dict(_data)
NODE, KS, PROMPT = tk.comfy.regional_sampler_advanced, tk.comfy.KSamplerAdvanced, tk.comfy.RegionalPrompt
HARD = ("hard_left", "hard_right", "hard_disc")
SOFT = ("soft_left", "soft_right", "soft_blob")
SETS = {"hard2": HARD[:2], "hard3": HARD, "soft2": SOFT[:2], "soft3": SOFT}
KEY = re.compile(
    r"(?P<low>latentres_)?(?P<set>(hard|soft)[23])__(?P<sampler>\w+?)__(?P<mode>DISABLE|ratio_between|ratio_additional)"
    r"__ov(?P<ov>\d+)__restore(?P<restore>\d)(__(?P<extra>.+?))?$"
)
CASES = [key for key in REFERENCE if KEY.match(key) and not key.endswith("__calls")]
# multiplying its noise by 1 + 1e-7 moves this one by 5e-3 and more
CHAOTIC = "hard2__dpmpp_2m_sde__ratio_between__ov0__restore1__zero_latent"


def options(extra):
    """The parameters that the end of a key names: of the node, of samplers, of region 0."""
    node, sampler, first = (
        {"latent_image": REFERENCE["latent_image"]},
        {"scheduler": "normal", "cfg": 1.5},
        {},
    )
    for part in extra.split("__") if extra else ():
        name, *values = re.findall(r"^[a-z]+|[\d.]+|linear|slerp", part)
        if name == "start":
            node |= {"start_at_step": int(values[0]), "end_at_step": int(values[1])}
        elif name == "leftover":
            node["return_with_leftover_noise"] = True
        elif name == "ratio":
            node["additional_sigma_ratio"] = float(values[0])
        elif part.startswith("recovery_"):
            node["additional_sampler"] = part.removeprefix("recovery_")
        elif part == "zero_latent":
            node["latent_image"] = np.zeros_like(node["latent_image"])
        elif part == "add0_noisy_input":
            node |= {"latent_image": REFERENCE["noisy_input"], "add_noise": False}
        elif name == "variation":
            method, v, seed = values[:3]
            first = {"variation_method": method, "variation_strength": float(v), "variation_seed": int(seed)}
        elif part == "cfg1":
            sampler["cfg"] = 1.0
        elif part == "karras":
            sampler["scheduler"] = "karras"
        else:
            raise AssertionError(f"a part that is not understood: {part}")
    node["latent_image"] = {"samples": torch.from_numpy(node["latent_image"]).double()}
    return node, sampler, first


@pytest.mark.parametrize("key", CASES)
def test_the_node_meets_the_reference_with_as_many_calls(reference, key):
    m = KEY.match(key)
    own, sampler, first = options(m["extra"])
    sampler |= {"negative": 1, "sampler_name": m["sampler"]}
    masks = [REFERENCE[f"{'mask16' if m['low'] else 'mask'}__{name}"] for name in SETS[m["set"]]]
    prompts = [PROMPT(k, KS(2 + j, **sampler), **({} if j else first)) for j, k in enumerate(masks)]
    run = NODE(reference_mixture(reference), noise_seed=5, overlap_factor=int(m["ov"]),
               base_sampler=KS(0, **sampler), restore_latent=m["restore"] == "1", regional_prompts=prompts,
               additional_mode=m["mode"].replace("_", " "), **own)  # fmt: skip
    got, want = torch.from_numpy(run.latent[-1].values), torch.from_numpy(REFERENCE[key]).double()
    assert relative(got, want) < (2e-2 if key == CHAOTIC else 3e-4)
    assert run.attrs["model_calls"] == REFERENCE[f"{key}__calls"]


def test_the_reference_covers_what_the_node_can_do():
    found = [KEY.match(key).groupdict() for key in CASES]
    extras = " ".join(f["extra"] or "" for f in found)
    assert {f["set"] for f in found} == set(SETS)
    assert {f["mode"] for f in found} == {"DISABLE", "ratio_between", "ratio_additional"}
    assert {f["ov"] for f in found} >= {"0", "3", "10"}
    assert {f["restore"] for f in found} == {"0", "1"}
    names = "euler heun dpm_2 lms ddim deis ipndm res_multistep uni_pc lcm euler_ancestral dpmpp_2m dpmpp_sde"
    assert {f["sampler"] for f in found} == {*names.split(), "dpmpp_2m_sde", "dpmpp_3m_sde"}
    for part in ("leftover1", "start5_end12", "add0", "zero_latent", "karras", "cfg1", "linear", "slerp",
                 "ratio0", "ratio1", "recovery_euler", "start0_end1"):  # fmt: skip
        assert part in extras, part


# --- levels and masks

with np.load(DATA / "sigmas.npz") as _data:
    SIGMAS = {k: v for k, v in _data.items() if k.endswith(("std", "penultimate")) and np.isfinite(v).all()}
LEVELS = {"eps": tk.Levels.scaled_linear(), "eps_zsnr": tk.Levels.scaled_linear(zero_snr=True),
          "edm_0.002_120": tk.Levels.edm(0.002, 120.0), "flow_shift1": tk.Levels.flow(shift=1.0),
          "flow_shift3": tk.Levels.flow(), "flux_shift1.15": tk.Levels.flux()}  # fmt: skip


@pytest.mark.parametrize("kind", LEVELS)
def test_levels_are_comfyuis_to_the_last_bit(kind):
    """To the last but one, where another machine rounds exp otherwise; in float64 they are 28 bits apart."""
    keys = [key for key in SIGMAS if key.startswith(f"{kind}__")]
    assert {key.split("__")[1] for key in keys} >= {"normal", "karras", "simple", "beta"}
    for key in keys:
        _, name, steps, variant = key.split("__")
        sampler = "dpm_2" if variant == "discard_penultimate" else "euler"
        got = grids.float32_sigmas(LEVELS[kind], name, int(steps), sampler)
        assert got.dtype == np.float32
        assert len(got) == len(SIGMAS[key]), key
        assert abs(got.view(np.int32) - SIGMAS[key].view(np.int32)).max() <= 1, key


def test_other_schedules_are_the_tables_of_the_package():
    for name, ours in (("AYS SD1", "ays_sd1"), ("AYS SDXL", "ays_sdxl")):
        got = grids.float32_sigmas(LEVELS["eps"], KS(0, scheduler=name).schedule, 10, "euler")
        np.testing.assert_array_equal(got, tk.schedule(LEVELS["eps"], ours, 10).sigma)


@pytest.mark.parametrize("key", [key for key in REFERENCE if key.startswith("derived__")])
def test_masks_are_rounded_and_grown_as_in_the_node(key):
    _, name, overlap = key.split("__")
    mask = torch.from_numpy(REFERENCE[f"mask__{name}"])
    got = regions.region_mask(mask, int(overlap.removeprefix("overlap")))
    np.testing.assert_array_equal(got, REFERENCE[key][0, 0])
    assert got.shape == mask.shape[::-1]


@pytest.mark.parametrize("shape", [(12, 12), (9, 14)])
@pytest.mark.parametrize("k", [1, 2, 3, 6, 40, 10_000])
def test_growth_is_a_window_that_reaches_further_down_and_right(shape, k):
    """By its definition: any 1 from i - p to i - p + k - 1, p = ceil((k - 1)/2); of a non-square mask too."""
    mask = torch.zeros(shape)
    mask[4, 5] = mask[7, 2] = 1.0
    hard = torch.nn.functional.interpolate(mask[None, None], size=shape[::-1], mode="bilinear")[0, 0].round()
    p, want = math.ceil((k - 1) / 2), torch.zeros_like(hard)
    for i in range(hard.shape[0]):
        for j in range(hard.shape[1]):
            rows, columns = slice(max(i - p, 0), max(i - p + k, 0)), slice(max(j - p, 0), max(j - p + k, 0))
            want[i, j] = hard[rows, columns].any()
    torch.testing.assert_close(regions.region_mask(mask, k), want)
    assert k < 40 or want.all()


def test_the_base_gets_what_is_zero_in_every_mask():
    one, two = torch.zeros(2, 3), torch.zeros(2, 3)
    one[0, 0], two[0, 0], two[1, 2] = 1e-6, 1.0, 0.5
    assert regions.base_mask([one, two]).tolist() == [[0, 1, 1], [1, 1, 0]]


@pytest.mark.parametrize("name", ["soft_radial_128", "up_5x7"])
def test_masks_are_fitted_and_mixed_as_in_comfyui(name):
    images, noise = (torch.from_numpy(REFERENCE[k]).double() for k in ("image_batch2", "noise_batch2"))
    where = calls.area(torch.from_numpy(REFERENCE[f"{name}__mask"])[0], images)
    np.testing.assert_allclose(where.mask[0, 0], REFERENCE[f"{name}__fitted"], rtol=0, atol=1e-7)
    want = torch.from_numpy(REFERENCE[f"{name}__composite"]).double()
    assert relative(where.mix(noise, images), want) < 1e-6


# --- the algorithm once more, for Euler, on both paths

SHAPE = (4, 8, 8)
LATENT = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def small(path=tk.VE, scale=1.0, shift=0.0):
    means = np.random.default_rng(5).standard_normal((3, 2, *SHAPE))
    made = tk.GaussianMixture(means, 0.5, path=path)
    made.latent_scale, made.latent_shift = scale, shift
    return made


def half(side="left", size=64, soft=1.0):
    mask = torch.zeros(size, size)
    if side == "left":
        mask[:, : size // 2] = soft
    else:
        mask[size // 4 :, size // 2 :] = soft
    return mask


def node(model, *, base=None, region=None, masks=None, latent=LATENT[:1], **own):
    """The node with a small default: 4 steps, the left half a region, nothing clamped and nothing grown."""
    asked = {"steps": 4, "end_at_step": 4, "overlap_factor": 0, **own}
    masks = [half()] if masks is None else masks
    prompts = [PROMPT(mask, KS(2, 1, 2.0, **(region or {}))) for mask in masks]
    prompts = asked.pop("regional_prompts", prompts)
    base = KS(0, 1, 2.0, **(base or {}))
    return NODE(model, latent_image=latent, base_sampler=base, regional_prompts=prompts, **asked)


def both(name, **own):
    """The same sampler for the base and the region."""
    return {"base": {"sampler_name": name}, "region": {"sampler_name": name}, **own}


def call(model, x, m, s, t, prompt, noise=None, clean=False, outside=None):
    """One hop of Euler under a mask: its state over alpha, or with `clean` its x0.

    `outside` is the noise that the model sees outside the mask, in place of the start noise.
    """

    def alpha(sigma):
        return 1.0 - sigma if model.path.name == "FLOW" else 1.0

    top = model.path.name == "VE" and s >= model.levels.sigma_max * (1 - 1e-5)
    noise = torch.zeros_like(x) if noise is None else noise
    outside = noise if outside is None else outside
    scale = float(np.sqrt(np.float32(1 + s * s))) if top else s
    z = alpha(s) * x + scale * noise
    seen = m * z + (1 - m) * (alpha(s) * x + s * outside)
    u, c = (model.x0(seen, s, [p] * len(x)) for p in (1, prompt))
    x0 = m * (u + 2.0 * (c - u)) + (1 - m) * x
    return x0 if clean else (z + (t - s) * (z - x0) / s) / alpha(t)


def by_hand(model, x, masks, inv, grids, noise, first, last, restore, leftover):
    """The rows after the first: `grids` are the levels of the base, then of the regions."""
    rows = []
    for i in range(first, last - 1):
        x = call(model, x, inv, grids[0][i], grids[0][i + 1], 0, noise if i == first else None)
        for m, levels in zip(masks, grids[1:], strict=True):
            y = call(model, x, m, levels[i], levels[i + 1], 2)
            x = m * y + (1 - m) * x if restore else y
        rows.append(x)
    if not restore:
        s, t = grids[0][last - 1], grids[0][last] if leftover else 0.0
        rows.append(call(model, x, inv, s, t, 0, clean=not leftover))
    return torch.stack(rows)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "own",
    [
        {},
        {"restore_latent": False},
        {"restore_latent": False, "return_with_leftover_noise": True},
        {"restore_latent": False, "start_at_step": 2, "end_at_step": 5},
        {"restore_latent": False, "end_at_step": 5, "return_with_leftover_noise": True},
        {"start_at_step": 1, "add_noise": False},
        {"noise_seed": 2**64 - 1, "overlap_factor": 9},
    ],
    ids=str,
)
def test_euler_by_hand_on_both_paths_for_a_batch_with_schedulers_of_their_own(path, own):
    model, asked = small(PATHS[path]), {"steps": 7, "end_at_step": 7, "noise_seed": 9, **own}
    base, region = {"scheduler": "karras"}, {"scheduler": "beta", "sigma_factor": 0.9}
    masks = [half(), half("right")]
    run = node(model, base=base, region=region, masks=masks, latent=LATENT, **asked)
    own = [grids.float32_sigmas(model.levels, n, 7, "euler") for n in ("karras", "beta")]
    scaled = own[1] * np.float32(0.9)  # in float32: near a choice between two modes the model amplifies it
    levels = [levels.astype(np.float64) for levels in (own[0], scaled, scaled)]
    k = asked.get("overlap_factor", 0)
    areas = [regions.base_mask(masks), *(regions.region_mask(m, k) for m in masks)]
    inv, *fitted = (
        torch.nn.functional.interpolate(a[None, None], (8, 8), mode="bilinear").double() for a in areas
    )
    noise = torch.randn(LATENT.shape, generator=torch.Generator().manual_seed(asked["noise_seed"])).double()
    noise = noise if asked.get("add_noise", True) else None
    first, restore = asked.get("start_at_step", 0), asked.get("restore_latent", True)
    leftover = asked.get("return_with_leftover_noise", False)
    want = by_hand(model, LATENT, fitted, inv, levels, noise, first, asked["end_at_step"], restore, leftover)
    got = torch.from_numpy(run.latent.values)
    assert got.shape == (len(want) + 1, *LATENT.shape)
    assert relative(got[1:], want) < 1e-5
    s = levels[0][first]
    n = 0.0 if noise is None else noise
    ve = LATENT + (math.sqrt(1 + s * s) if first == 0 else s) * n
    assert relative(got[0], s * n + (1 - s) * LATENT if path == "FLOW" else ve) < 1e-6
    end = asked["end_at_step"]
    sigma = [*levels[0][first:end], *([] if restore else [levels[0][end] if leftover else 0.0])]
    np.testing.assert_array_equal(run.sigma, sigma)
    np.testing.assert_allclose(run.region_mask, torch.cat(fitted)[:, 0], atol=1e-6)
    np.testing.assert_allclose(run.base_mask, inv[0, 0], atol=1e-6)


# --- samplers in calls of one step

AS_EULER = ("lms", "dpm_fast", "dpmpp_2m", "ipndm", "ipndm_v", "deis", "res_multistep",
            "gradient_estimation", "heunpp2")  # fmt: skip
CFG_PP = ("euler_cfg_pp", "dpmpp_2m_cfg_pp", "res_multistep_cfg_pp", "gradient_estimation_cfg_pp")
EULER_A = ("euler_ancestral", "res_multistep_ancestral", "ddpm")
GROUPS = [("euler", *AS_EULER), CFG_PP, EULER_A, ("dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_2m_sde_gpu"),
          ("euler_ancestral_cfg_pp", "res_multistep_ancestral_cfg_pp"), ("uni_pc", "uni_pc_bh2"),
          ("sa_solver", "sa_solver_pece")]  # fmt: skip


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: g[0])
def test_without_history_these_samplers_are_one(group):
    runs = {n: node(small(), additional_mode="DISABLE", **both(n)) for n in group}
    first = torch.from_numpy(runs[group[0]].latent.values)
    for name, run in runs.items():
        assert relative(torch.from_numpy(run.latent.values), first) < 1e-6, name


@pytest.mark.parametrize("add_noise", [True, False])
def test_ddim_is_euler_that_sees_other_noise_outside_the_mask(add_noise):
    """That of the next seed, also in calls that add none."""
    model, m = small(), torch.zeros(1, 1, 8, 8).double()
    m[..., :4] = 1.0
    run = node(model, end_at_step=2, noise_seed=6, add_noise=add_noise, **both("ddim"))
    g = grids.float32_sigmas(model.levels, "simple", 4, "ddim").astype(np.float64)
    noise, other = (streams.unit(seed, (1, *SHAPE)).double() for seed in (6, 7))
    x = call(model, LATENT[:1], 1 - m, g[0], g[1], 0, noise if add_noise else None, outside=other)
    x = m * call(model, x, m, g[0], g[1], 2, outside=other) + (1 - m) * x
    assert relative(torch.from_numpy(run.latent[-1].values), x) < 1e-6
    everywhere = node(model, masks=[torch.ones(8, 8)], add_noise=False, **both("ddim"))
    plain = node(model, masks=[torch.ones(8, 8)], add_noise=False)
    # its base has no pixel, and so leaves all as it is
    assert relative(*(torch.from_numpy(r.latent.values) for r in (everywhere, plain))) < 1e-9


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_runs_on_both_paths(path, name):
    own = {"sampler_name": name}
    run = node(small(PATHS[path]), base=own, region=own, restore_latent=False, latent=LATENT, noise_seed=4)
    assert np.isfinite(run.latent).all()
    assert run.attrs["model_calls"] >= 7 - (name == "dpm_adaptive")
    assert not np.array_equal(run.latent[0], run.latent[-1])
    again = node(small(PATHS[path]), base=own, region=own, restore_latent=False, latent=LATENT, noise_seed=4)
    np.testing.assert_array_equal(again.latent, run.latent)


@pytest.mark.parametrize("path", PATHS)
def test_uni_pc_makes_no_step(path):
    """A factor on the whole tensor, mask or not, whatever the model says: in the last call, too."""
    own = {"sampler_name": "uni_pc"}
    model, ask = small(PATHS[path]), {"add_noise": False, "additional_mode": "DISABLE", "start_at_step": 1}
    run = node(model, base=own, region=own, restore_latent=False, return_with_leftover_noise=True, **ask)
    g = grids.float32_sigmas(model.levels, "simple", 4, "uni_pc").astype(np.float64)
    want = LATENT[:1].numpy()

    def hop(x, s, t):
        low, high = (1 - t, 1 - s) if path == "FLOW" else (1, 1)
        return x * high * math.sqrt((1 + t * t) / (1 + s * s)) / low

    for i in (1, 2):
        want = hop(hop(want, g[i], g[i + 1]), g[i], g[i + 1])  # the base's call and the region's
        np.testing.assert_allclose(run.latent[i], want, rtol=1e-5)
    np.testing.assert_allclose(run.latent[-1], hop(want, g[3], 0.001), rtol=1e-5)
    x0 = node(model, base=own, region=own, restore_latent=False, **ask)
    left = np.s_[..., :4]  # outside the base: x0 is the latent
    np.testing.assert_allclose(x0.latent[-1].values[left], x0.latent[-2].values[left], rtol=1e-5)


def test_sa_solver_makes_no_step_above_zero_and_dpm_solvers_none_to_zero():
    own = {"sampler_name": "sa_solver"}
    ask = {"restore_latent": False, "return_with_leftover_noise": True}
    run = node(small(), base=own, region=own, **ask)
    for row in (1, 2, 3):
        np.testing.assert_allclose(run.latent[row], run.latent[0], rtol=1e-12)
    assert abs(run.latent[-1] - run.latent[0]).max() > 1.0
    for name in ("dpm_fast", "dpm_adaptive"):
        stays = node(small(), base={"sampler_name": name}, **ask)
        np.testing.assert_allclose(stays.latent[-1], stays.latent[-2], rtol=1e-6)
        other = node(small(), base={"sampler_name": name}, restore_latent=False)
        moved = float(abs(other.latent[-1] - other.latent[-2]).max())
        assert (moved > 0.01) == (name == "dpm_fast"), "x0 comes out, if the model was asked"


def test_the_unconditional_answer_is_not_masked():
    """So the cfg_pp names move the latent outside every mask, where Euler leaves it in place."""
    for name, kept in (("euler", True), ("euler_cfg_pp", False)):
        own = {"sampler_name": name}
        run = node(small(), base=own, region=own, masks=[torch.zeros(8, 8)], add_noise=False, start_at_step=1)
        only = node(
            small(), base=own, region=own, masks=[torch.full((8, 8), 0.4)], add_noise=False, start_at_step=1
        )
        assert np.allclose(only.latent[-1], LATENT[:1], atol=1e-6) == kept
        assert not np.allclose(run.latent[-1], LATENT[:1], atol=1e-2), "the base has all of it"


# --- noise


def test_seeded_noise_is_drawn_at_once_or_picked_by_index():
    torch.manual_seed(7)
    want, state = torch.randn(2, *SHAPE), torch.get_rng_state()
    assert torch.equal(streams.unit(7, (2, *SHAPE)), want)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    torch.manual_seed(7)
    alone = [torch.randn(1, *SHAPE) for _ in range(5)]
    assert torch.equal(streams.unit(7, (3, *SHAPE), [4, 0, 4]), torch.cat([alone[4], alone[0], alone[4]]))
    given = {"samples": LATENT, "batch_index": [3, 1]}
    run = node(small(), latent=given, noise_seed=7)
    top = float(run.sigma[0])
    start = LATENT + math.sqrt(1 + top**2) * torch.cat([alone[3], alone[1]]).double()
    np.testing.assert_allclose(run.latent[0], start, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("default", [torch.float64, torch.float16])
def test_noise_is_float32_on_the_host_whatever_the_defaults(default):
    own = {"sampler_name": "dpmpp_sde"}
    want = node(small(), base=own, region=own)
    model = small()
    try:
        torch.set_default_dtype(default)
        got = node(model, base=own, region=own)
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(got.latent, want.latent)


def varied(mask, v, seed, method):
    return [PROMPT(mask, KS(2, 1, 2.0), seed, v, method)]


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_variation_mixes_in_other_noise_where_the_raw_mask_is_one(method):
    """And leaves none where it is fractional; the noise of a batch is mixed sample by sample."""
    mask = torch.zeros(64, 64)
    mask[:, :36] = 1.0  # its edge lies in the middle of a latent pixel
    noise, gap = regions.start_noise(5, LATENT.shape, None, varied(mask, 0.3, 6, method))
    n, m = (torch.randn(LATENT.shape, generator=torch.Generator().manual_seed(s)).double() for s in (5, 6))
    if method == "linear":
        want = (0.7 * n + 0.3 * m) / math.sqrt(0.7**2 + 0.3**2)
    else:
        both = [torch.stack([x / x.norm() for x in noises]) for noises in (n, m)]
        w = (both[0] * both[1]).sum((1, 2, 3)).acos()[:, None, None, None]
        want = ((0.7 * w).sin() * n + (0.3 * w).sin() * m) / w.sin()
    torch.testing.assert_close(noise[..., :4], want[..., :4])
    assert gap
    assert not noise[..., 4].any()
    assert torch.equal(noise[..., 5:], n[..., 5:])
    run = node(small(), regional_prompts=varied(mask, 0.3, 6, method), noise_seed=5, latent=LATENT)
    top = float(run.sigma[0])
    np.testing.assert_allclose(run.latent[0], LATENT + math.sqrt(1 + top**2) * noise, rtol=1e-6, atol=1e-6)
    whole, none = regions.start_noise(5, LATENT.shape, None, varied(half(), 1.0, 6, method))
    torch.testing.assert_close(whole[..., :4], m[..., :4])
    assert not none


def test_a_variation_of_no_noise_at_all_is_its_own():
    """Where a soft mask has left a sample without noise, slerp takes it as orthogonal: sin(v pi/2) M."""
    soft, left = torch.full((64, 64), 0.5), torch.zeros(64, 64)
    left[:, :32] = 1.0
    sampler = tk.comfy.KSamplerAdvanced(1)
    prompts = [tk.comfy.RegionalPrompt(soft, sampler, 7, 0.3),
               tk.comfy.RegionalPrompt(left, sampler, 8, 0.5, "slerp")]  # fmt: skip
    noise, gap = regions.start_noise(0, (1, 2, 8, 8), None, prompts)
    own, _ = regions.start_noise(8, (1, 2, 8, 8), None, [])
    want = math.sin(0.25 * math.pi) * own
    assert gap and float((noise - want)[..., :4].abs().max()) < 1e-5
    assert float(noise[..., 4:].abs().max()) == 0.0


def test_variations_follow_one_another_and_ignore_the_batch_index():
    ones = torch.ones(8, 8)
    two = varied(ones, 0.5, 6, "linear") + varied(ones, 0.5, 7, "linear")
    noise, _ = regions.start_noise(5, LATENT.shape, [1, 0], two)
    n = streams.unit(5, LATENT.shape, [1, 0]).double()
    for seed in (6, 7):
        n = (n + streams.unit(seed, LATENT.shape).double()) / math.sqrt(2.0)
    torch.testing.assert_close(noise, n)
    same, _ = regions.start_noise(5, LATENT.shape, None, varied(ones, 0.5, 5, "slerp"))
    torch.testing.assert_close(same, streams.unit(5, LATENT.shape).double())  # 0/0, whose limit this is


def test_brownian_calls_share_one_path_and_heun_does_not():
    """Queried beyond its ends the path stands still, without a word of torchsde's."""
    made = streams.Streams(3, (1, *SHAPE), "cpu", 4)
    g = np.array([8.0, 4.0, 2.0, 1.0, 0.0], np.float32)

    def draws(name, *hops):
        return [made.of(name, g, hop, 0)(*hop) for hop in hops]

    whole, first, second = draws("dpmpp_2m_sde", (8.0, 2.0), (8.0, 4.0), (4.0, 2.0))
    torch.testing.assert_close(whole * 6**0.5, first * 2 + second * 2**0.5, rtol=1e-4, atol=1e-4)
    one, two = draws("dpmpp_2m_sde_heun", (8.0, 4.0), (4.0, 2.0))
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    other = made.of("dpmpp_2m_sde_gpu", g, (8.0, 4.0), 0)(8.0, 4.0)
    assert torch.equal(other, first)
    low, lower = draws("dpmpp_sde", (2.0, 1.0), (2.0, 0.5))
    torch.testing.assert_close(lower * 1.5**0.5, low, rtol=1e-5, atol=1e-5)
    assert not draws("dpmpp_sde", (0.5, 0.25))[0].any()
    fresh = draws("euler_ancestral", (8.0, 4.0), (4.0, 2.0))
    assert torch.equal(*fresh)
    assert torch.equal(fresh[0], streams.unit(3, (1, *SHAPE)).double())


@pytest.mark.parametrize("name", [*streams.WHOLE, *streams.HOP])
def test_without_torchsde_the_noise_is_ours_and_the_quirks_say_so(monkeypatch, name):
    own = {"sampler_name": name}
    tree = node(small(), base=own, region=own, additional_mode="DISABLE")
    monkeypatch.setitem(sys.modules, "torchsde", None)
    run = node(small(), base=own, region=own, additional_mode="DISABLE")
    assert ("tree_replaced" in run.attrs["quirks"], "tree_replaced" in tree.attrs["quirks"]) == (True, False)
    assert np.isfinite(run.latent).all()
    assert relative(torch.from_numpy(run.latent.values[-1]), torch.from_numpy(tree.latent.values[-1])) > 1e-3
    again = node(small(), base=own, region=own, additional_mode="DISABLE")
    np.testing.assert_array_equal(again.latent, run.latent)


# --- the recovery sampler


def sde(mode="ratio between", sampler="AUTO", ratio=0.3, name="dpmpp_sde", **own):
    both = {"sampler_name": name}
    more = {"additional_mode": mode, "additional_sampler": sampler, "additional_sigma_ratio": ratio}
    return node(small(), base=both, region=both, **more, **own)


def test_a_recovery_sampler_at_a_ratio_of_the_levels_with_the_noise_again():
    """By hand for uni_pc, whose step is a factor, and Euler after it: the first call of the base."""
    a, model = 0.25, small()
    run = sde(ratio=a, name="uni_pc", sampler="euler", masks=[torch.zeros(8, 8)], noise_seed=3)
    g, plain = (grids.float32_sigmas(model.levels, "simple", 4, n).astype(float) for n in ("uni_pc", "euler"))
    x, n = LATENT[:1], streams.unit(3, (1, *SHAPE)).double()
    ones, s, t = torch.ones_like(x), (1 - a) * g[0], (1 - a) * g[1]
    start = x + s * n  # not the model's highest level any more
    np.testing.assert_allclose(run.latent[0], start, rtol=1e-6)
    y = start * math.sqrt((1 + t * t) / (1 + s * s))
    want = call(model, y, ones, a * plain[0], a * plain[1], 0, n)
    # the region has no pixel: what uni_pc makes of it is not put back
    assert relative(torch.from_numpy(run.latent[1].values), want) < 1e-5
    more = sde(
        mode="ratio additional",
        ratio=a,
        name="uni_pc",
        sampler="euler",
        masks=[torch.zeros(8, 8)],
        noise_seed=3,
    )
    start = x + math.sqrt(1 + g[0] ** 2) * n
    y = start * math.sqrt((1 + g[1] ** 2) / (1 + g[0] ** 2))
    want = call(model, y, ones, a * plain[0], a * plain[1], 0, n)
    assert relative(torch.from_numpy(more.latent[1].values), want) < 1e-5


@pytest.mark.parametrize("name", ["uni_pc", "uni_pc_bh2", *streams.WHOLE])
def test_auto_is_euler_after_all_of_them(name):
    """dpm_fast or dpmpp_2m by name, and each of them Euler in one step."""
    auto, euler, off = sde(name=name), sde(name=name, sampler="euler"), sde(name=name, mode="DISABLE")
    np.testing.assert_allclose(auto.latent, euler.latent, rtol=1e-6, atol=1e-6)
    assert abs(auto.latent[-1] - off.latent[-1]).max() > 1e-3
    np.testing.assert_array_equal(sde(name=name, ratio=0.0).latent, off.latent)
    np.testing.assert_array_equal(sde(name=name, ratio=0.0, mode="ratio additional").latent, off.latent)
    np.testing.assert_allclose(
        sde(name=name, ratio=1.0, sampler="euler").latent[1:], node(small()).latent[1:], rtol=1e-6, atol=1e-6
    )


def test_each_recovery_sampler_is_called():
    last = {n: sde(sampler=n, ratio=0.6).latent[-1].values for n in ("euler", "heun", "dpm_2", "ddpm")}
    same = {
        n: sde(sampler=n, ratio=0.6).latent[-1].values for n in ("AUTO", "dpm_fast", "dpmpp_2m", "heunpp2")
    }
    for name, value in last.items():
        assert all(abs(value - v).max() > 1e-4 for n, v in last.items() if n != name)
    for name, value in same.items():
        np.testing.assert_allclose(value, last["euler"], rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "lcm"])
def test_other_samplers_have_no_recovery(name):
    """Every mode is DISABLE."""
    runs = [sde(mode=m, name=name) for m in ("DISABLE", "ratio between", "ratio additional")]
    for run in runs[1:]:
        np.testing.assert_array_equal(run.latent, runs[0].latent)


# --- quirks: the whole list, so that a name that should not be there is seen as well

END = ["last_step_lost", "leftover_ignored"]
TWICE = ["stepped_twice"]
OFF = {"additional_mode": "DISABLE"}
QUIET = {"add_noise": False}
EDGE = torch.zeros(64, 64)
EDGE[:, :36] = 1.0


QUIRKS = [
    ("VE", {}, TWICE + END),
    ("VE", QUIET, END),
    ("VE", QUIET | {"masks": [half(), half("right")]}, END),
    ("VE", QUIET | {"masks": [half(), half()]}, TWICE + END),
    ("VE", QUIET | {"overlap_factor": 1}, END),
    ("VE", QUIET | {"overlap_factor": 3}, END),  # one pixel of 64: none of the two that are read is reached
    ("VE", QUIET | {"overlap_factor": 2}, ["growth_asymmetric", *END]),
    ("VE", QUIET | {"overlap_factor": 8}, ["mask_complement_float32", "growth_asymmetric", *TWICE, *END]),
    ("VE", {"end_at_step": 5}, ["range_clamped", *TWICE, *END]),
    ("VE", {"end_at_step": 3}, TWICE + END),
    ("VE", QUIET | {"masks": [half(soft=0.5)]}, ["soft_holes", "masks_rounded", *END]),
    ("VE", QUIET | {"masks": [EDGE]}, ["mask_complement_float32", *TWICE, *END]),
    ("VE", QUIET | {"masks": [torch.ones(64, 32)]}, ["mask_swapped_grid", *END]),
    ("VE", both("dpmpp_2m"), [*TWICE, "history_dropped", *END]),
    ("VE", {"region": {"sampler_name": "lms"}}, [*TWICE, "history_dropped", *END]),
    ("VE", both("dpm_adaptive"), TWICE + END),
    ("VE", both("heun"), TWICE + END),
    ("VE", both("euler_ancestral"), [*TWICE, "same_noise_every_call", *END]),
    ("VE", both("dpmpp_2m_sde", **OFF), [*TWICE, "history_dropped", *END]),
    ("VE", both("dpmpp_sde", **OFF), TWICE + END),
    ("VE", both("dpmpp_2m_sde_heun"), [*TWICE, "history_dropped", "same_noise_every_call", *END]),
    ("VE", both("ddim"), [*TWICE, "ddim_outside_noise", *END]),
    ("VE", both("uni_pc", **OFF), [*TWICE, "history_dropped", "no_step", *END]),
    ("VE", both("sa_solver_pece"), [*TWICE, "history_dropped", "no_step", *END]),
    ("VE", both("dpmpp_sde"), [*TWICE, *END, "recovery", "recovery_noise_again"]),
    ("VE", both("dpmpp_sde", **QUIET), [*END, "recovery"]),
    ("VE", {"region": {"sampler_name": "dpmpp_sde"}}, [*TWICE, *END, "recovery"]),
    ("VE", both("dpmpp_sde", additional_sigma_ratio=0), TWICE + END),
    ("VE", both("dpmpp_sde", additional_sampler="ddpm", **QUIET),
     ["same_noise_every_call", *END, "recovery"]),
    ("VE", both("dpmpp_sde", additional_sampler="dpm_2", **QUIET), [*END, "recovery", "grids_differ"]),
    ("VE", both("dpmpp_2m_sde", additional_sigma_ratio=1.0, additional_sampler="euler"),
     [*TWICE, *END, "recovery", "recovery_noise_again"]),
    ("VE", {"restore_latent": False}, [*TWICE, "regions_unfinished"]),
    ("VE", {"restore_latent": False, "base": {"sampler_name": "dpm_adaptive"}},
     [*TWICE, "no_step", "regions_unfinished"]),
    ("VE", {"restore_latent": False, "base": {"sampler_name": "dpm_fast"}}, [*TWICE, "regions_unfinished"]),
    ("VE", {"restore_latent": False, "return_with_leftover_noise": True,
            "base": {"sampler_name": "dpm_fast"}}, [*TWICE, "no_step", "regions_unfinished"]),
    ("VE", {"start_at_step": 3}, [*END, "noise_never_added"]),
    ("VE", {"start_at_step": 3, **QUIET}, END),
    ("VE", both("dpmpp_2m_sde", start_at_step=3), [*END, "noise_never_added"]),
    ("VE", {"start_at_step": 900, "steps": 995, "end_at_step": 910, "base": {"scheduler": "beta"},
            "region": {"scheduler": "beta"}}, [*END, "noise_never_added"]),
    ("VE", {"regional_prompts": varied(EDGE, 0.5, 1, "linear")},
     ["mask_complement_float32", *TWICE, *END, "variation_gap"]),
    ("VE", {"regional_prompts": varied(EDGE, 0.0, 1, "linear")}, ["mask_complement_float32", *TWICE, *END]),
    ("VE", {"regional_prompts": varied(EDGE, 0.5, 1, "linear"), **QUIET},
     ["mask_complement_float32", *TWICE, *END]),
    ("VE", {"regional_prompts": varied(half(), 0.5, 1, "slerp")}, TWICE + END),
    ("VE", {"region": {"scheduler": "karras"}}, [*TWICE, *END, "grids_differ"]),
    ("VE", {"region": {"sigma_factor": 0.9}}, [*TWICE, *END, "grids_differ"]),
    ("VE", {"region": {"sampler_name": "dpm_2"}}, [*TWICE, *END, "grids_differ"]),
    ("VE", {"region": {"sampler_name": "heun"}}, TWICE + END),
    ("FLOW", {}, [*TWICE, *END, "flow_region_noise_lost"]),
    ("FLOW", {"start_at_step": 1}, TWICE + END),
    ("FLOW", {"start_at_step": 3}, [*END, "noise_never_added"]),
]  # fmt: skip


@pytest.mark.parametrize("path, own, expected", QUIRKS)
def test_quirks_are_listed_when_and_only_when_they_hold_and_said_once(path, own, expected):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = node(small(PATHS[path]), **own)
    assert run.attrs["quirks"] == expected
    (said,) = caught
    assert said.category is UserWarning
    assert said.filename == __file__ or "test_regional_node" in said.filename
    for name, (what, instead) in quirks.REGIONAL.items():
        there = f"{name}: it {what} (tk.regional {instead})" in str(said.message)
        assert there == (name in expected), name


def test_every_quirk_has_a_case():
    assert {q for *_, expected in QUIRKS for q in expected} | {"tree_replaced"} == set(quirks.REGIONAL)


# --- short and odd ranges


@pytest.mark.parametrize("start, end", [(3, 4), (0, 1), (7, 3)])
@pytest.mark.parametrize("path", PATHS)
def test_an_empty_loop_adds_no_noise_and_calls_the_base_once(path, start, end):
    """With the latent as given: the input comes back, or that call's result."""
    model = small(PATHS[path])
    run = node(model, start_at_step=start, end_at_step=end, latent=LATENT.float())
    assert run.sizes["step"] == 1
    np.testing.assert_array_equal(run.latent[-1], LATENT.float())
    assert run.attrs["model_calls"] == 1
    g = grids.float32_sigmas(model.levels, "simple", 4, "euler").astype(np.float64)
    inv = torch.ones(1, 1, 8, 8).double()
    inv[..., :4] = 0.0
    for leftover in (False, True):
        run = node(model, start_at_step=start, end_at_step=end, restore_latent=False, latent=LATENT,
                   return_with_leftover_noise=leftover)  # fmt: skip
        want = call(model, LATENT, inv, g[end - 1], g[end] if leftover else 0.0, 0, clean=not leftover)
        assert run.sizes["step"] == 2
        assert relative(torch.from_numpy(run.latent[-1].values), want) < 1e-6
        low = 1 - g[end - 1] if path == "FLOW" else 1
        np.testing.assert_allclose(run.latent[0], low * LATENT, rtol=1e-6, atol=1e-7)
        assert run.sigma.values.tolist() == [g[end - 1], g[end] if leftover else 0.0]


@pytest.mark.parametrize("restore", [True, False])
def test_an_end_of_zero_gives_the_input_back(restore):
    run = node(small(), start_at_step=2, end_at_step=0, restore_latent=restore, latent=LATENT.float())
    np.testing.assert_array_equal(run.latent[-1], LATENT.float())
    assert run.attrs["model_calls"] == 0


@pytest.mark.parametrize(
    "own",
    [{"start_at_step": 3, "end_at_step": 3}, {"start_at_step": 4}, {"end_at_step": 0},
     {"start_at_step": 4, "end_at_step": 10_000}],
    ids=str,
)  # fmt: skip
def test_an_empty_range_is_refused(own):
    line = said(lambda: node(small(), **own), "start_at_step", ValueError)
    assert typed(line).sizes["step"] == 4


def test_a_schedule_that_ends_early_is_stayed_at():
    """`beta` has 199 levels for 200 steps: the loop reaches 0, and nothing comes after it."""
    both = {"scheduler": "beta"}
    run = node(small(), base=both, region=both, steps=200, end_at_step=200, start_at_step=196)
    g = grids.float32_sigmas(small().levels, "beta", 200, "euler")
    assert len(g) == 200
    assert run.sigma.values.tolist() == g[196:].tolist()
    more = node(
        small(), base=both, region=both, steps=200, end_at_step=200, start_at_step=196, restore_latent=False
    )
    np.testing.assert_array_equal(more.latent[-1], more.latent[-2].values.astype(np.float32))
    assert run.attrs["model_calls"] == more.attrs["model_calls"] == 6
    late = node(small(), base=both, region=both, steps=995, start_at_step=900, end_at_step=905)
    np.testing.assert_array_equal(late.latent[-1], LATENT[:1].float())
    assert late.attrs["model_calls"] == 0


def test_a_schedule_that_ends_late_is_cut_at_zero():
    """`ddim_uniform` has 334 levels for 300 steps."""
    both = {"scheduler": "ddim_uniform"}
    g = grids.float32_sigmas(small().levels, "ddim_uniform", 300, "euler")
    ask = {"steps": 300, "start_at_step": 297, "end_at_step": 300, "restore_latent": False}
    run = node(small(), base=both, region=both, **ask)
    assert len(g) - 1 == 333
    assert run.sigma.values.tolist() == [*g[297:300].tolist(), 0.0]
    left = node(small(), base=both, region=both, return_with_leftover_noise=True, **ask)
    assert float(left.sigma[-1]) == g[300]


# --- what comes in and out


def test_defaults_are_the_nodes_own():
    found = {n: p.default for n, p in inspect.signature(NODE).parameters.items() if n != "model"}
    assert found == {
        "add_noise": True, "noise_seed": 0, "steps": 20, "start_at_step": 0, "end_at_step": 10_000,
        "overlap_factor": 10, "restore_latent": True, "return_with_leftover_noise": False,
        "latent_image": None, "base_sampler": None, "regional_prompts": (),
        "additional_mode": "ratio between", "additional_sampler": "AUTO", "additional_sigma_ratio": 0.3,
    }  # fmt: skip
    assert repr(KS(3)) == ("KSamplerAdvanced(positive=3, negative=None, cfg=8.0, sampler_name='euler', "
                           "scheduler='simple', sigma_factor=1.0)")  # fmt: skip
    prompt = PROMPT(half(), KS(3))
    assert (prompt.variation_seed, prompt.variation_strength, prompt.variation_method) == (0, 0.0, "linear")


def test_the_record():
    run = node(small(tk.FLOW, 0.5), latent=LATENT, masks=[half(), half("right")], restore_latent=False)
    assert dict(run.sizes) == {"step": 5, "sample": 2, "channel": 4, "y": 8, "x": 8, "region": 2}
    assert run.latent.dims == ("step", "sample", "channel", "y", "x")
    assert {n: v.dims for n, v in run.data_vars.items() if n != "latent"} == {
        "nfe": ("step",), "rows": ("step",), "mean": ("step", "sample", "channel"),
        "std": ("step", "sample", "channel"), "base_mask": ("y", "x"), "region_mask": ("region", "y", "x"),
    }  # fmt: skip
    assert run.nfe.values.tolist() == [0, 3, 6, 9, 10]
    assert run.rows.values.tolist() == [0, 12, 24, 36, 40]
    np.testing.assert_array_equal(run.latent[-1], run.latent[-1].values.astype(np.float32))
    assert not np.array_equal(run.latent[1], run.latent[1].values.astype(np.float32))
    np.testing.assert_allclose(run["mean"], run.latent.values.mean((-1, -2)), rtol=1e-12)
    facts = {"kind": "regional", "node": "RegionalSamplerAdvanced", "latent_space": "vae", "path": "FLOW",
             "solver": "euler", "schedule": "simple", "steps": 4, "seed": 0, "prompt": 0, "cfg": 2.0,
             "model_calls": 10, "network_rows": 40, "latent_scale": 0.5, "overlap_factor": 0}  # fmt: skip
    assert {name: run.attrs[name] for name in facts} == facts
    assert run.attrs["regions"][1] == {
        "positive": 2, "negative": 1, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple",
        "sigma_factor": 1.0, "variation_seed": 0, "variation_strength": 0.0, "variation_method": "linear",
    }  # fmt: skip
    assert all({"units", "long_name"} <= set(run[name].attrs) for name in run.variables)
    lost = node(small(), latent=LATENT)
    assert lost.nfe.values.tolist() == [0, 2, 4, 6]
    assert lost.attrs["model_calls"] == 7
    assert "throws away" in lost.attrs["note"]
    assert "throws away" not in run.attrs["note"]


def test_it_is_recorded_behind_its_device(behind_a_device):
    """From a GPU rows are taken one hop late, so the record must know where the states are."""

    def run():
        return node(small(), latent=LATENT, masks=[half(), half("right")], restore_latent=False)

    behind_a_device(run)


@pytest.mark.parametrize("name", ["euler", "dpmpp_sde"])
def test_rows_are_in_the_space_of_the_vae(name):
    own = both(name)
    plain = node(small(), latent=LATENT, **own)
    run = node(small(scale=0.18215, shift=0.4), latent=LATENT / 0.18215 + 0.4, **own)
    there = tk.in_space(run, "model")
    np.testing.assert_allclose(there.latent, plain.latent, rtol=1e-5, atol=1e-6)
    zeros = torch.zeros_like(LATENT)
    empty, none = node(small(scale=0.5, shift=0.4), latent=zeros, **own), node(small(), latent=zeros, **own)
    # zeros are not shifted on the way in; all that is made of them is on the way out
    np.testing.assert_allclose(empty.latent[0] * 0.5, none.latent[0] + 0.2, rtol=1e-5, atol=1e-6)
    same = node(small(scale=0.5, shift=0.4), latent=zeros, start_at_step=3)
    assert not same.latent[-1].values.any()


def test_a_batch_is_its_samples_but_for_the_draw():
    pair = node(small(), latent=LATENT, add_noise=False)
    for b in (0, 1):
        alone = node(small(), latent=LATENT[b : b + 1], add_noise=False)
        np.testing.assert_allclose(pair.latent[:, b], alone.latent[:, 0], rtol=1e-10, atol=1e-12)
    listed = NODE(small(), steps=4, end_at_step=4, overlap_factor=0, latent_image=LATENT, add_noise=False,
                  base_sampler=KS([0, 1], 1, 2.0),
                  regional_prompts=[PROMPT(half(), KS([2, 0], 1, 2.0))])  # fmt: skip
    np.testing.assert_allclose(listed.latent[:, 0], pair.latent[:, 0], rtol=1e-10, atol=1e-12)
    assert abs(listed.latent[-1, 1] - pair.latent[-1, 1]).max() > 1e-3


def test_the_digits_are_painted_region_by_region(digits_model):
    base, three, five = (KS(p, cfg=2.0) for p in (0, 3, 5))
    prompts = [PROMPT(half(), three), PROMPT(half("right"), five)]
    run = NODE(
        digits_model,
        steps=6,
        latent_image=torch.zeros(2, 4, 8, 8),
        base_sampler=base,
        regional_prompts=prompts,
    )
    assert np.isfinite(run.latent).all()
    assert run.attrs["latent_scale"] == digits_model.latent_scale
    picture = np.asarray(digits_model.decode(tk.in_space(run, "model").latent[-1]))
    assert picture.shape[0] == 2


def test_the_input_is_left_alone_and_its_mask_ignored():
    given = {"samples": LATENT[:1].clone(), "noise_mask": torch.zeros(8, 8), "other": 3}
    mask = half()
    prompt = PROMPT(mask, KS(2, 1, 2.0))
    mask.zero_()
    assert float(prompt.mask.sum()) == 2048
    run = node(small(), latent=given, regional_prompts=[prompt])
    np.testing.assert_array_equal(run.latent, node(small()).latent)
    assert run.attrs["inputs_ignored"] == ["noise_mask"]
    assert torch.equal(given["samples"], LATENT[:1])
    assert sorted(given) == ["noise_mask", "other", "samples"]


@pytest.mark.parametrize(
    "form", [half()[None, None], half().numpy(), half().bool(), half().double().int().numpy()]
)
def test_masks_may_have_any_form(form):
    run = node(small(), masks=[form])
    np.testing.assert_array_equal(run.latent, node(small()).latent)


def test_a_missing_negative_is_one_conditional_call():
    own = {"steps": 3, "latent_image": LATENT}
    prompts = [PROMPT(half(), KS(2, "NegativePlaceholder", 7.0))]
    run = NODE(small(), base_sampler=KS(0, "NegativePlaceholder", 7.0), regional_prompts=prompts, **own)
    prompts = [PROMPT(half(), KS(2, cfg=1.0))]
    plain = NODE(small(), base_sampler=KS(0, cfg=1.0), regional_prompts=prompts, **own)
    np.testing.assert_array_equal(run.latent, plain.latent)
    assert run.attrs["network_rows"] == 2 * run.attrs["model_calls"] == 10


def test_a_run_that_breaks_keeps_its_rows():
    class Breaking(tk.GaussianMixture):
        def x0(self, x, sigma, conditions):
            return super().x0(x, sigma, conditions) * (math.nan if sigma < 2.0 else 1.0)

    broken = Breaking(np.zeros((3, 2, *SHAPE)), 0.5)
    with pytest.raises(FloatingPointError, match=r"NaN.*step 3.*exc\.dataset") as caught:
        node(broken)
    assert caught.value.dataset.sizes["step"] == 3


# --- what is refused

TYPED = {"mask": half(), "latent": LATENT[:1], "sampler": KS(0), "positive": 0}


def said(call, argument, kind=(ValueError, TypeError)):
    """The line to type of the error that names `argument`."""
    with pytest.raises(kind) as caught:
        call()
    found = re.fullmatch(r"(?s)(\w+)=(.+?): (.+)\. Try: (\S.*)", str(caught.value))
    assert found, f"not of the form name=given: wanted. Try: line, but {caught.value}"
    assert found[1] == argument, str(caught.value)
    return found[4]


def typed(line):
    """What comes of typing a line."""
    own = {
        "tk": tk,
        "torch": torch,
        "model": small(),
        "base": KS(0, cfg=2.0),
        "prompts": [PROMPT(half(), KS(2))],
    }
    return eval(line, {**TYPED, **own})


WHOLE = [-1, 2.0, "3", True, None, np.nan]
BAD = [
    *[("add_noise", v) for v in (1, None, "yes")],
    *[("restore_latent", v) for v in (0, None)],
    *[("return_with_leftover_noise", v) for v in (0.0, "disable")],
    *[("noise_seed", v) for v in (2**64, *WHOLE)],
    *[("steps", v) for v in (0, 10_001, *WHOLE)],
    *[("start_at_step", v) for v in (10_001, *WHOLE)],
    *[("end_at_step", v) for v in (10_001, *WHOLE)],
    *[("overlap_factor", v) for v in (10_001, *WHOLE)],
    *[("additional_mode", v) for v in ("ratio", "disable", None, ["DISABLE"])],
    *[("additional_sampler", v) for v in ("auto", "lms", None)],
    *[("additional_sigma_ratio", v) for v in (-0.1, 1.1, "0.3", None, np.nan)],
    *[("latent_image", v) for v in (None, {}, {"samples": None}, [1.0], LATENT[0], LATENT[:, :3],
                                    LATENT.long(), LATENT * np.nan)],
    *[("base_sampler", v) for v in (None, "euler", PROMPT(half(), KS(0)))],
    *[("regional_prompts", v) for v in (None, [], (), [half()], [KS(0)], "left",
                                        [PROMPT(half(), KS(0)), PROMPT(half(size=32), KS(0))])],
]  # fmt: skip


class Counted(tk.GaussianMixture):
    """A mixture that must not be asked."""

    def x0(self, x, sigma, conditions):
        raise AssertionError("the model was asked")


def unasked():
    return Counted(np.zeros((3, 2, *SHAPE)), 0.5)


@pytest.mark.parametrize("name, value", BAD, ids=lambda v: str(v)[:30])
def test_bad_parameters_are_refused_with_a_line_that_runs(name, value):
    asked = {
        "latent_image": LATENT[:1],
        "base_sampler": KS(0),
        "regional_prompts": [PROMPT(half(), KS(2))],
        "steps": 3,
    }
    line = said(lambda: NODE(unasked(), **{**asked, name: value}), name)
    if line.startswith("tk.comfy"):
        assert typed(line).attrs["node"] == "RegionalSamplerAdvanced"
    else:
        assert name in line


SAMPLER = [
    *[("cfg", v) for v in (-0.1, 100.5, "2", None, np.nan, True)],
    *[("sampler_name", v) for v in ("eulr", "midpoint", "obelm", None, ["euler"])],
    *[("scheduler", v) for v in ("karas", "beta57", "ays_sd1", "GITS[coeff=1.2]", None, ["karras"])],
    *[("sigma_factor", v) for v in (0, -1.0, 10.1, "1", None)],
]


@pytest.mark.parametrize("name, value", SAMPLER, ids=str)
def test_bad_samplers_are_refused(name, value):
    line = said(lambda: KS(0, **{name: value}), name)
    assert typed(line).positive == 0


MASKS = {
    "a batch": torch.ones(2, 8, 8), "a line": torch.ones(8), "empty": torch.ones(0, 8),
    "NaN": half() * np.nan, "above 1": half() * 255, "below 0": -half(), "a list": half().tolist(),
    "none": None, "complex": half() + 0j, "text": np.array([["a"]]), "a name": "left",
}  # fmt: skip
VARIATION = [
    *[("variation_seed", v) for v in (2**64, *WHOLE)],
    *[("variation_strength", v) for v in (-0.1, 1.1, "0", None)],
    *[("variation_method", v) for v in ("lerp", None, ["slerp"])],
    *[("sampler", v) for v in (None, "euler", half())],
    *[("mask", v) for v in MASKS.values()],
]


@pytest.mark.parametrize("name, value", VARIATION, ids=lambda v: str(v)[:30])
def test_bad_regions_are_refused(name, value):
    line = said(lambda: PROMPT(**{"mask": half(), "sampler": KS(0), name: value}), name)
    assert isinstance(typed(line), PROMPT)


@pytest.mark.parametrize(
    "call, closest",
    [
        (lambda: KS(0, sampler_name="dpm2"), '"dpm_2"'),
        (lambda: KS(0, scheduler="karas"), '"karras"'),
        (lambda: KS(0, scheduler="AYS SDX"), '"AYS SDXL"'),
        (lambda: PROMPT(half(), KS(0), variation_method="slrp"), '"slerp"'),
        (lambda: node(small(), additional_sampler="hun"), '"heun"'),
        (lambda: node(small(), additional_mode="ratio betwen"), '"ratio between"'),
    ],
)
def test_the_closest_name_is_offered(call, closest):
    with pytest.raises(ValueError, match=f"Try: .*{closest}"):
        call()


def test_conditions_and_schedules_are_checked_before_the_model_is_asked():
    def with_(base=None, region=None, **own):
        prompts = [PROMPT(half(), region or KS(2))]
        return NODE(
            unasked(), latent_image=LATENT[:1], base_sampler=base or KS(0), regional_prompts=prompts, **own
        )

    said(lambda: with_(base=KS(7)), "positive", ValueError)
    said(lambda: with_(region=KS(0, 7)), "negative", ValueError)
    said(lambda: with_(region=KS([0, 1])), "positive", ValueError)
    said(lambda: with_(region=KS(0, scheduler="kl_optimal"), steps=1, end_at_step=1), "steps", ValueError)
    said(lambda: with_(region=KS(0, scheduler="AYS SVD")), "schedule", ValueError)
    said(lambda: with_(region=KS(0, sampler_name="ddim"), noise_seed=2**64 - 1), "noise_seed", ValueError)
    for index in ([0, 1], [-1], [0.5], "a"):
        latent = {"samples": LATENT[:1], "batch_index": index}
        said(lambda latent=latent: node(unasked(), latent=latent), "batch_index")
    plain = tk.denoiser(lambda x, sigma: 0.5 * x)
    said(lambda: node(plain), "prompt", ValueError)
    bare = [PROMPT(half(), KS(None, cfg=1.0))]
    run = NODE(plain, steps=3, latent_image=LATENT, base_sampler=KS(None, cfg=1.0), regional_prompts=bare)
    assert run.attrs["model_calls"] == 5
    said(lambda: node("digits"), "model", TypeError)
