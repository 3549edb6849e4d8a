"""Each family of pipelines, from a folder: what it samples itself, round trips, regions, what is recorded."""

import functools
import inspect
import math

import numpy as np
import pytest
import tiny
import torch
import xarray as xr
from conftest import relative
from PIL import Image
from test_resume import stopped

import toolkit as tk
from toolkit.pipelines.adapter import TEXT_ENCODERS

QUIET = {"progress": False}
NETWORKS = ["sd1", "sd2", "sdxl", "sd3", "flux dev", "flux schnell", "dit", "ddpm"]
TEXTS = NETWORKS[:6]
SAMPLED = ["sd1 euler", "sd1 linspace", "sd2 zero snr", *NETWORKS]  # the last has nothing to guide
PROMPTS = {"dit": (7, 2), "ddpm": (None, None)}  # else texts
SIZES = {"dit": (8, 8), "ddpm": (16, 16)}  # of latents; else not square
CHANNELS = {"sd3": 16, "flux dev": 16, "flux schnell": 16, "ddpm": 3}
FACTORS = {"dit": 4, "ddpm": 1}  # pixels a latent pixel
PREDICTIONS = {"sd2": "v", "sd2 zero snr": "v", "sd3": "flow", "flux dev": "flow", "flux schnell": "flow"}
# prediction -> x0 of a state in our convention, by hand
X0 = {
    "eps": lambda x, sigma, out: x - sigma * out,
    "v": lambda x, sigma, out: x / (1 + sigma**2) - sigma / math.sqrt(1 + sigma**2) * out,
    "flow": lambda x, sigma, out: x - sigma * out,
}


@pytest.fixture(scope="module")
def pipe(saved):
    """The pipeline of a name as diffusers reads it."""
    return functools.cache(lambda name: tiny.read(saved(name)))


@pytest.fixture(scope="module")
def load(saved):
    """The model of a name from its folder, one for each way to ask for it."""
    return functools.cache(lambda name, **options: tk.load(saved(name), **options))


def prompts(name: str) -> list:
    return list(PROMPTS.get(name, ("a cat on a mat", "two dogs")))


def size(name: str) -> tuple[int, int]:
    return SIZES.get(name, (8, 12))


def shape(name: str, samples: int = 1) -> tuple[int, ...]:
    return (samples, CHANNELS.get(name, 4), *size(name))


def draw(name: str, samples: int = 1, seed: int = 1) -> torch.Tensor:
    return torch.randn(
        shape(name, samples), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def asked(name: str, pipe, prompt: list, cfg: float, negative: str | None = None) -> dict:
    """How a pipeline is asked for what our `prompt` and `cfg` say."""
    if name == "ddpm":
        return {"batch_size": len(prompt)}
    if name == "dit":
        return {"class_labels": prompt, "guidance_scale": cfg}
    factor = FACTORS.get(name, 8)
    call = {"prompt": prompt, "height": factor * size(name)[0], "width": factor * size(name)[1]}
    told = {} if negative is None else {"negative_prompt": [negative] * len(prompt)}
    if "true_cfg_scale" not in inspect.signature(pipe.__call__).parameters:
        return {**call, "guidance_scale": cfg, **told}
    return {**call, "true_cfg_scale": cfg, "negative_prompt": "", **told} if cfg > 1 else call


# --- what the pipeline itself gives ----


@pytest.mark.parametrize(("name", "cfg"), [(n, c) for n in SAMPLED for c in (1.0, 4.0)][:-1])
def test_sampling_is_that_of_the_pipeline(name, cfg, pipe, load):
    """Fed the pipeline's own levels and start noise: every state, and x0 of every prediction."""
    own, prompt = pipe(name), prompts(name)[0]
    want = tiny.reference(own, steps=6, **asked(name, own, [prompt], cfg))
    run = tk.sample(
        load(name), want.start, sigmas=want.sigmas, add_noise=False, prompt=prompt, cfg=cfg, **QUIET
    )
    assert run.latent.shape[1:] == shape(name)
    for got, state in zip(run.latent.values, want.states, strict=True):
        assert relative(torch.from_numpy(got), state) < 1e-4
    kept = math.sqrt(1 + want.sigmas[-1] ** 2)  # DDIM stops above 0, at the lowest level it was trained at
    assert relative(torch.from_numpy(run.latent.values[-1]) / kept, want.latent) < 1e-4
    by_hand = X0[PREDICTIONS.get(name, "eps")]
    for i, out in enumerate(want.outputs):
        x0 = by_hand(want.states[i], want.sigmas[i], out)
        assert relative(torch.from_numpy(run.denoised.values[i]), x0) < 1e-4


@pytest.mark.parametrize("name", [*TEXTS, "dit"])
def test_a_list_of_prompts_is_one_a_sample(name, pipe, load):
    """Both samples as the pipeline's own batch has them; another negative is another answer."""
    own = pipe(name)
    negative = None if name == "dit" else "blurry"
    want = tiny.reference(own, **asked(name, own, prompts(name), 4.0, negative))
    call = {"sigmas": want.sigmas, "add_noise": False, "cfg": 4.0, **QUIET}
    run = tk.sample(load(name), want.start, prompt=prompts(name), negative=negative, **call)
    got = torch.from_numpy(run.latent.values)
    assert run.sizes["sample"] == 2
    assert relative(got[-1], want.states[-1]) < 1e-4
    swapped = tk.sample(load(name), want.start, prompt=prompts(name)[::-1], negative=negative, **call)
    assert relative(torch.from_numpy(swapped.latent.values[-1]), want.states[-1]) > 1e-3
    if negative:
        without = tk.sample(load(name), want.start, prompt=prompts(name), **call)
        assert relative(torch.from_numpy(without.latent.values[-1]), want.states[-1]) > 1e-3


def test_no_negative_is_what_the_pipeline_takes_for_none(pipe, load):
    """SDXL: zeros where the config says so, which an empty text is not."""
    own, model = pipe("sdxl"), load("sdxl")
    call = asked("sdxl", own, ["a cat"], 4.0)
    for negative in (None, ""):
        want = tiny.reference(own, steps=2, **call, negative_prompt=negative)
        run = tk.sample(model, want.start, sigmas=want.sigmas, add_noise=False, prompt="a cat", cfg=4.0,
                        negative=negative, **QUIET)  # fmt: skip
        assert relative(torch.from_numpy(run.latent.values[-1]), want.states[-1]) < 1e-4
    empty = model.condition("").tensors
    none = model.condition(None, negative=True).tensors
    assert all(float(none[each].abs().max()) == 0 < float(empty[each].abs().max()) for each in empty)


def test_sd3_without_its_third_encoder(saved, pipe):
    """As users leave it out, being the largest: its rows of the prompt are zeros."""
    left_out = {"text_encoder_3": None, "tokenizer_3": None}
    own, model = tiny.read(saved("sd3"), **left_out), tk.load(saved("sd3"), **left_out)
    want = tiny.reference(own, steps=2, **asked("sd3", own, ["a cat"], 4.0))
    call = {"sigmas": want.sigmas, "add_noise": False, "prompt": "a cat", "cfg": 4.0, **QUIET}
    run = tk.sample(model, want.start, **call)
    assert relative(torch.from_numpy(run.latent.values[-1]), want.latent) < 1e-4
    whole = tk.sample(tk.load(saved("sd3")), want.start, **call)
    assert relative(torch.from_numpy(whole.latent.values[-1]), want.latent) > 1e-3


@pytest.mark.parametrize("name", ["flux dev", "flux schnell"])
def test_flux_is_told_its_guidance_where_it_was_distilled(name, saved, pipe):
    own = pipe(name)
    want = tiny.reference(own, steps=2, **asked(name, own, ["a cat"], 1.0), guidance_scale=6.0)
    told = {"guidance": 6.0} if name == "flux dev" else {}
    model = tk.load(saved(name), **told)
    run = tk.sample(model, want.start, sigmas=want.sigmas, add_noise=False, prompt="a cat", **QUIET)
    assert relative(torch.from_numpy(run.latent.values[-1]), want.latent) < 1e-4
    assert run.attrs.get("guidance") == told.get("guidance")


def test_flux_dev_shifts_its_levels_by_the_size_of_the_image(pipe, load):
    own, model = pipe("flux dev"), load("flux dev")
    for height, width in ((64, 96), (512, 512)):
        start = torch.zeros((1, height * width // 256, 64))
        want = tiny.reference(own, prompt="", height=height, width=width, latents=start).sigmas
        sized = model.sized(height, width)
        np.testing.assert_allclose(tk.schedule(sized, "simple", steps=4).sigma, want, atol=1e-3)


# --- images ----


@pytest.mark.parametrize("name", NETWORKS)
def test_images_become_latents_as_the_vae_has_them(name, pipe, load):
    model, factor = load(name), FACTORS.get(name, 8)
    height, width = (factor * side for side in size(name))
    pixels = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    latents = model.encode(pixels)
    assert latents.shape == shape(name, 2)
    assert latents.dtype == torch.float64
    assert torch.equal(model.encode([Image.fromarray(one) for one in pixels]), latents)
    seen = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    images = model.decode(latents)
    assert images.shape == pixels.shape
    if name == "ddpm":
        want, back = seen, seen
    else:
        vae = pipe(name).vae
        scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
        with torch.no_grad():
            want = scale * (vae.encode(seen).latent_dist.mode() - shift)
            back = vae.decode(want / scale + shift).sample
        assert (model.latent_scale, model.latent_shift) == (scale, shift)
    assert torch.allclose(latents.float(), want, atol=1e-5)
    np.testing.assert_allclose(images, (back / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1), atol=1e-4)


@pytest.mark.parametrize(("name", "side"), [("dit", 32), ("ddpm", 16)])
def test_a_network_of_one_size_takes_no_other(name, side, load):
    with pytest.raises(ValueError, match=rf"image=.*Try: image\.resize\(\({side}, {side}\)\)"):
        load(name).encode(Image.new("RGB", (side, 2 * side)))


# --- there and back ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NETWORKS)
def test_round_trips_are_exact(name, dtype, load):
    """The state is float64 whatever the network is: it sees bit-identical inputs both ways."""
    model = load(name, dtype=dtype)
    assert model.network.dtype == dtype
    prompt, latents = prompts(name), draw(name, 2)
    trip = tk.round_trip(model, latents, solver="obelm", prompt=prompt, steps=4, truth=False, **QUIET)
    assert trip.attrs["inverse"] == "algebraic"
    assert float(trip.error.max()) < 1e-7
    if name != "ddpm":
        trip = tk.round_trip(model, latents, prompt=prompt, cfg=4.0, steps=3, truth=False, **QUIET)
        assert trip.attrs["inverse"] == "offsets"
        assert float(trip.error.max()) < 1e-7


@pytest.mark.parametrize("name", TEXTS)
def test_half_the_digits_answer_as_the_pipeline_s(name, saved, load):
    """Flux is told its level and guidance in bfloat16 by its own network, so float32 is no measure."""
    own, model = tiny.read(saved(name)).to(torch.bfloat16), load(name, dtype=torch.bfloat16)
    prompt = "a cat"
    want = tiny.reference(own, steps=3, **asked(name, own, [prompt], 1.0))
    bound, by_hand = tk.guide(model, prompt), X0[PREDICTIONS.get(name, "eps")]
    for state, sigma, out in zip(want.states, want.sigmas, want.outputs, strict=False):
        x0 = bound.denoise(state, sigma).x0
        assert x0.dtype == torch.float64
        assert relative(x0, by_hand(state, sigma, out)) < 0.02


# --- regions ----


def halves(name: str, first, second) -> list[tk.Region]:
    """Two prompts, left and right, masks as large as the image."""
    factor = FACTORS.get(name, 8)
    mask = np.zeros([factor * side for side in size(name)], np.float32)
    mask[:, : mask.shape[1] // 2] = 1.0
    return [tk.Region(mask, prompt=first, name="left"), tk.Region(1 - mask, prompt=second, name="right")]


@pytest.mark.parametrize("name", [*TEXTS, "dit"])
def test_two_prompts_by_masks_of_the_image_s_size(name, load):
    model, start = load(name), draw(name)
    sigma = model.levels.sigma_max / 2
    call = {"sigmas": [sigma, sigma / 2, 0.0], "add_noise": False, "cfg": 4.0, **QUIET}
    run = tk.regional(model, halves(name, *prompts(name)), start, **call)
    weight = run.weight[0].sel(region=["left", "right"]).values
    middle = size(name)[1] // 2
    for w, sure in ((weight[0], slice(0, middle - 1)), (weight[1], slice(middle + 1, None))):
        np.testing.assert_allclose(w[:, sure], 1.0, atol=1e-6)
    alone = [tk.guide(model, prompt, cfg=4.0).denoise(start, sigma).x0 for prompt in prompts(name)]
    assert relative(*alone) > 1e-3
    by_hand = sum(torch.from_numpy(w) * x0 for w, x0 in zip(weight, alone, strict=True))
    assert relative(torch.from_numpy(run.denoised.values[0]), by_hand) < 1e-4
    up = tk.unsample(model, start, regions=halves(name, *prompts(name)), solver="obelm", steps=3, **QUIET)
    back = tk.sample(model, up, **QUIET)
    assert relative(torch.from_numpy(back.latent.values[-1]), start) < 1e-7


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux dev"])
def test_a_larger_canvas_by_windows(name, load):
    model = load(name)
    wide = tk.tiled(model, size=(8, 12), window=(8, 8), stride=(8, 4))
    trip = tk.round_trip(wide, draw(name), prompt=prompts(name)[0], steps=2, truth=False, **QUIET)
    assert float(trip.error.max()) < 1e-7
    x, bound = draw(name), tk.guide(model, prompts(name)[0])
    left, right = bound.denoise(x[..., :8], 0.7).x0, bound.denoise(x[..., 4:], 0.7).x0
    got = tk.guide(wide, prompts(name)[0]).denoise(x, 0.7).x0
    assert relative(got[..., :4], left[..., :4]) < 1e-5  # where a window is alone
    assert relative(got[..., 8:], right[..., 4:]) < 1e-5
    if model.multiple > 1:
        with pytest.raises(ValueError, match=r"window=\(7, 8\): multiples of 2.*Try: .*window=\(6, 8\)\)"):
            tk.tiled(model, size=(8, 12), window=(7, 8))


# --- how a network is asked ----


def counted(modules, call) -> list[int]:
    """Rows of every forward of some networks during a call."""
    rows = []
    hooks = [each.register_forward_pre_hook(lambda _, given, named: rows.append(
        len(given[0] if given else named.get("hidden_states", named.get("input_ids")))), with_kwargs=True)
        for each in modules]  # fmt: skip
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return rows


@pytest.mark.parametrize("name", TEXTS)
def test_prompts_are_encoded_once(name, saved):
    """By every encoder, and once however many steps, samples and runs there are."""
    model = tk.load(saved(name))
    encoders = [getattr(model.pipe, part, None) for part in TEXT_ENCODERS]
    encoders = [each for each in encoders if each is not None]
    assert len(encoders) == {"sd1": 1, "sd2": 1, "sd3": 3}.get(name, 2)

    def texts(prompt) -> float:
        call = {"prompt": prompt, "cfg": 4.0, "steps": 2, **QUIET}
        return len(counted(encoders, lambda: tk.unsample(model, draw(name, 3), **call))) / len(encoders)

    assert texts("a cat") == 2  # and the negative
    assert texts("a cat") == 0
    assert texts(["a dog", "a bird", "a dog"]) == 2


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "flux dev", "dit"])
def test_rows_go_in_groups_as_large_as_asked(name, load):
    """3 samples under guidance are 6 rows, all at once or 4 at most; a replay that groups alike is exact."""
    latents = draw(name, 3)
    call = {"prompt": prompts(name)[0], "solver": "euler", "steps": 2, "cfg": 4.0, **QUIET}
    ups = {}
    for most, groups in ((None, [6]), (4, [4, 2])):
        model = load(name, max_rows=most)
        rows = counted([model.network], lambda: ups.update({most: tk.unsample(model, latents, **call)}))  # noqa: B023
        assert rows == groups * int(ups[most].attrs["model_calls"])
        assert ups[most].attrs["max_rows"] == most
        assert ups[most].attrs["network_rows"] == sum(rows)
        back = tk.sample(model, ups[most], **QUIET)
        assert relative(torch.from_numpy(back.latent.values[-1]), latents) < 1e-7
    assert relative(*(torch.from_numpy(ups[most].latent.values[-1]) for most in (None, 4))) < 1e-4
    assert counted([model.network], lambda: tk.guide(model, cfg=1.0).denoise(latents[:1], 0.7)) == [1]
    with pytest.warns(UserWarning, match=r"max_rows=4.*max_rows=None.*Try: tk\.load\(\.\.\., max_rows=4\)"):
        tk.sample(load(name), ups[4], **QUIET)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_run_says_what_was_used(name, saved, load):
    model = load(name)
    run = tk.sample(model, shape=shape(name), prompt=prompts(name)[0], steps=2, **QUIET)
    facts, config = run.attrs, model.pipe.scheduler.config
    assert facts["prediction"] == model.prediction == PREDICTIONS.get(name, "eps")
    assert facts["levels"] == model.levels.describe()
    assert facts["path"] == ("FLOW" if facts["prediction"] == "flow" else "VE")
    kind = {"sd3": "flow", "flux dev": "flux", "flux schnell": "flow"}.get(name, "from_betas")
    assert facts["levels"]["kind"] == kind
    if kind == "from_betas":
        assert facts["levels"]["first"] == pytest.approx(config.beta_start, rel=1e-6)
        assert facts["levels"]["last"] == pytest.approx(config.beta_end, rel=1e-6)
    else:
        assert facts["levels"]["shift"] == pytest.approx({"sd3": 3.0, "flux dev": 1.15}.get(name, 1.0))
    vae = getattr(model.pipe, "vae", None)
    assert facts["latent_scale"] == (1.0 if vae is None else vae.config.scaling_factor)
    assert facts["latent_shift"] == (0.0 if vae is None else vae.config.shift_factor or 0.0)
    assert facts["network_dtype"] == "float32"
    assert facts["model"] == str(saved(name))
    assert facts["fingerprint"] == model.fingerprint == tk.load(saved(name)).fingerprint
    assert len(facts["fingerprint"]) == 16


@pytest.mark.parametrize("name", ["sd1", "flux dev"])
def test_a_run_that_is_stopped_goes_on(name, load, tmp_path):
    model, latents = load(name), draw(name)

    def make(store=None):
        return tk.unsample(
            model, latents, prompt="a cat", cfg=4.0, steps=4, save=tk.Save(store=store), **QUIET
        )

    whole = make()
    stopped(model, 7, lambda: make(tmp_path / "run.zarr"))
    assert "stopped" in tk.open(tmp_path / "run.zarr").attrs
    xr.testing.assert_identical(make(tmp_path / "run.zarr").load(), whole)


def test_a_pipeline_in_memory_is_the_one_from_its_folder(pipe, load):
    own, model = tk.load(pipe("sd1")), load("sd1")
    assert own.fingerprint == model.fingerprint
    x = draw("sd1")
    got, want = (tk.guide(each, "a cat", cfg=3.0).denoise(x, 1.0).x0 for each in (own, model))
    assert torch.equal(got, want)
