"""ComfyUI's own samplers and its small nodes: their numbers."""

import math
import re

import numpy as np
import pytest
import torch
from conftest import DATA, reference_mixture, relative
from PIL import Image

import toolkit as tk
from toolkit.comfy import nodes

SAMPLERS = ("euler", "heun", "dpm_2", "dpmpp_2m", "lms", "uni_pc", "ddim", "euler_cfg_pp")


def latent(mixture, samples=1):
    shape = (samples, mixture.channels, *mixture.shape[1:])
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).double()


def unit(seed, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def last(run):
    return torch.from_numpy(run.latent[-1].values)


@pytest.mark.parametrize("denoise", [1.0, 0.4])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_ksampler_is_tk_sample_on_its_noise_and_levels(mixture, sampler, denoise):
    x = latent(mixture)
    asked = {"steps": 5, "cfg": 2.0, "positive": 0, "negative": 1}
    run = tk.comfy.ksampler(mixture, seed=3, sampler_name=sampler, scheduler="karras", latent_image=x,
                            denoise=denoise, **asked)  # fmt: skip
    levels = tk.schedule(mixture, "karras", 5, solver=sampler, denoise=denoise).sigma
    by_hand = tk.sample(mixture, x, solver=sampler, sigmas=levels, noise=unit(3, x.shape), prompt=0,
                        negative=1, cfg=2.0, progress=False)  # fmt: skip
    assert relative(last(run), last(by_hand)) < 2e-6
    assert run.attrs["node"] == "KSampler" and run.attrs["latent_space"] == "vae"
    assert np.array_equal(last(run), last(run).float().double())  # as a node's output is
    assert denoise == 1.0 or float(run.sigma[0]) < 0.6 * float(mixture.levels.sigma_max)


with np.load(DATA / "sample.npz") as _data:
    MEASURED = dict(_data)
KEY = re.compile(r"(eps|flow)__(\w+?)__karras__s20__cfg(\d)__out_f(64|32)run$")
CASES = {key: KEY.match(key).groups() for key in MEASURED if KEY.match(key)}
# where it is not rounding alone: see `test_solvers`; a float32 output on top
LOOSER = {"heunpp2": 1e-4, "deis": 5e-5, "uni_pc": 1e-4, "uni_pc_bh2": 1e-4, "ddpm": 1e-4,
          "dpmpp_3m_sde": 1.2e-4, "sa_solver_pece": 5e-5}  # fmt: skip


@pytest.mark.parametrize(
    "key", [k for k, (_, name, _, _) in CASES.items() if not tk.SOLVERS[name].stochastic]
)
def test_the_ksampler_meets_the_numbers_of_comfyui(reference, key):
    kind, name, cfg, _ = CASES[key]
    model = reference_mixture(reference, tk.FLOW if kind == "flow" else tk.VE)
    noise = MEASURED["noise"]  # that of seed 11
    run = tk.comfy.ksampler(model, 11, 20, float(cfg), name, "karras", 0, 1, torch.zeros(noise.shape))
    limit = 5e-2 if name == "dpm_adaptive" else LOOSER.get(name, 1e-5)
    assert relative(last(run), torch.from_numpy(MEASURED[key]).double()) < limit


@pytest.mark.filterwarnings("ignore:Should have t")  # torchsde compares float32 with its rounded text
@pytest.mark.parametrize(
    "key", [k for k, (kind, name, _, _) in CASES.items() if tk.SOLVERS[name].stochastic and kind == "eps"]
)
def test_what_it_draws_meets_the_numbers_of_comfyui(reference, key):
    """Measured with the noise of seed 11 and draws of seed 42: so the noise is a state to go on from."""
    _, name, cfg, _ = CASES[key]
    model = reference_mixture(reference)
    start = torch.from_numpy(MEASURED["noise"]).double() * math.sqrt(1 + float(model.levels.sigma_max) ** 2)
    run = tk.comfy.ksampler_advanced(model, "disable", 42, 20, float(cfg), name, "karras", 0, 1, start)
    assert relative(last(run), torch.from_numpy(MEASURED[key]).double()) < LOOSER.get(name, 2e-5)


def test_the_ksampler_under_a_noise_mask(mixture):
    x, mask = latent(mixture), torch.zeros(mixture.shape[1:])
    mask[:, : mask.shape[1] // 2] = 1.0
    asked = {
        "seed": 3,
        "steps": 6,
        "cfg": 2.0,
        "sampler_name": "dpmpp_2m",
        "scheduler": "normal",
        "positive": 0,
    }
    run = tk.comfy.ksampler(mixture, latent_image={"samples": x, "noise_mask": mask}, **asked)
    by_hand = tk.sample(mixture, x, solver="dpmpp_2m", schedule="normal", steps=6, noise=unit(3, x.shape),
                        prompt=0, cfg=2.0, mask=mask, progress=False)  # fmt: skip
    assert relative(last(run), last(by_hand)) < 2e-6
    outside = mask[None, None].expand_as(x) == 0
    assert torch.allclose(last(run)[outside], x[outside], atol=1e-5)
    assert not torch.allclose(last(run)[~outside], x[~outside], atol=0.1)
    assert np.array_equal(run.mask.values[0], mask.numpy())


@pytest.mark.parametrize("sampler", ["euler", "heun", "ddim"])
def test_a_run_in_two_parts_is_the_run(mixture, sampler):
    x = latent(mixture)
    asked = {"steps": 6, "cfg": 2.0, "sampler_name": sampler, "scheduler": "simple", "positive": 0}
    whole = tk.comfy.ksampler(mixture, seed=9, latent_image=x, **asked)
    first = tk.comfy.ksampler_advanced(mixture, noise_seed=9, end_at_step=4, latent_image=x,
                                       return_with_leftover_noise="enable", **asked)  # fmt: skip
    assert first.attrs["quirks"] == ["flow_over_alpha"] * (mixture.path.name == "FLOW")
    second = tk.comfy.ksampler_advanced(mixture, "disable", 1, start_at_step=4,
                                        latent_image=nodes.output(first), **asked)  # fmt: skip
    assert float(first.sigma[-1]) == float(second.sigma[0]) > 0
    assert relative(last(second), last(whole)) < 1e-5


def test_without_leftover_noise_the_part_ends_at_zero(mixture):
    x, asked = latent(mixture), {"noise_seed": 2, "steps": 6, "cfg": 1.0, "positive": 0}
    run = tk.comfy.ksampler_advanced(mixture, end_at_step=3, latent_image=x, **asked)
    levels = tk.schedule(mixture, "simple", 6).sigma.values[:4]
    assert run.sigma.values == pytest.approx([*levels[:3], 0.0], rel=1e-6)
    assert relative(last(run), torch.from_numpy(run.denoised[-2].values)) < 1e-6  # Euler's step to 0


def test_what_is_unsampled_comes_back(mixture, images):
    x = images["in"][:1]
    asked = {"steps": 60, "cfg": 1.0, "sampler_name": "heun", "scheduler": "karras", "positive": 0}
    end = 1 if mixture.path.name == "FLOW" else 0  # at sigma 1 a flow model's node divides by about 0
    up = tk.comfy.unsampler(mixture, end_at_step=end, latent_image=x, **asked)
    back = tk.comfy.ksampler_advanced(
        mixture, "disable", start_at_step=end, latent_image=nodes.output(up), **asked
    )
    assert relative(last(back), x) < 0.05


def test_stochastic_samplers_draw_from_the_seed(mixture):
    x, generator = latent(mixture), torch.Generator().manual_seed(4)
    run = tk.comfy.ksampler(mixture, seed=4, steps=5, cfg=1.0, sampler_name="euler_ancestral",
                            scheduler="normal", positive=0, latent_image=x)  # fmt: skip
    levels, state = run.sigma.values.tolist(), torch.from_numpy(run.latent[0].values)

    def draw(s, t):
        return torch.randn(x.shape, generator=generator).double()

    for step in tk.steps(tk.guide(mixture, 0), tk.solver("euler_ancestral"), state, levels, noise=draw):
        state = step.x_next
    assert relative(last(run), state) < 1e-6


@pytest.mark.parametrize("sampler", ["dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun"])
def test_sde_samplers_repeat_and_follow_their_seed(mixture, sampler):
    x = latent(mixture)
    runs = [
        tk.comfy.ksampler_advanced(mixture, "disable", seed, 4, 1.0, sampler, "karras", 0, None, x)
        for seed in (1, 1, 2)
    ]
    assert torch.equal(last(runs[0]), last(runs[1]))
    assert relative(last(runs[0]), last(runs[2])) > 0.01
    assert torch.isfinite(last(runs[0])).all()


def test_it_is_recorded_behind_its_device(mixture, behind_a_device):
    """From a GPU rows are taken one hop late, so the record must know where the states are."""

    def run():
        return tk.comfy.ksampler(mixture, seed=3, steps=4, positive=0, latent_image=latent(mixture, 2))

    behind_a_device(run)


def test_batch_index_picks_the_noise(mixture):
    x = latent(mixture, 3)
    asked = {"seed": 5, "steps": 3, "cfg": 1.0, "positive": 0}
    three = tk.comfy.ksampler(mixture, latent_image={"samples": x, "batch_index": [0, 1, 2]}, **asked)
    picked = tk.comfy.ksampler(mixture, latent_image=nodes.latent_from_batch(x, 2, 1), **asked)
    assert relative(last(picked)[0], last(three)[2]) < 1e-6


def test_turned_sigmas_unsample(mixture, images):
    levels = nodes.basic_scheduler(mixture, "karras", 40)
    flow = mixture.path.name == "FLOW"
    x, up = images["in"][:1], nodes.flip_sigmas(levels[flow:])
    assert up[0] == np.float32(1e-4) and np.array_equal(up[1:], levels[flow:][::-1][1:])
    asked = {"add_noise": False, "cfg": 1.0, "positive": 0, "sampler": "heun"}
    noise = tk.comfy.sampler_custom(mixture, sigmas=up, latent_image=x, **asked)
    assert noise.attrs["direction"] == "up"
    down = tk.comfy.sampler_custom(mixture, sigmas=levels[flow:], latent_image=nodes.output(noise), **asked)
    assert relative(last(down), x) < 0.05
    x0 = nodes.denoised_output(down)["samples"]
    assert torch.equal(x0.double(), torch.from_numpy(down.denoised[-2].values).float().double())


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"sampler_name": "eular"}, 'sampler_name="euler"'),
        ({"scheduler": "karas"}, 'scheduler="karras"'),
        ({"denoise": 0.0}, "above 0"),
        ({"seed": -1}, "seed=0)"),
        ({"steps": 0}, "steps=20)"),
        ({"cfg": 101}, "cfg=8.0)"),
        ({"latent_image": None}, "what to sample"),
    ],
)
def test_what_the_ksampler_refuses(mixture, asked, said):
    with pytest.raises((ValueError, TypeError), match="Try: ") as caught:
        tk.comfy.ksampler(mixture, **{"latent_image": latent(mixture), **asked})
    assert said in str(caught.value)


def test_what_the_others_refuse(mixture):
    x = latent(mixture)
    for asked, said in (
        ({"start_at_step": 20}, "it is empty"),
        ({"add_noise": "yes"}, 'add_noise="'),
        ({"return_with_leftover_noise": True}, "disable"),
    ):
        with pytest.raises(ValueError, match=said):
            tk.comfy.ksampler_advanced(mixture, latent_image=x, **asked)
    top = 0.9 if mixture.path.name == "FLOW" else 9.0
    for asked, said in (
        ({"sigmas": None}, "the levels to walk"),
        ({"sigmas": [0.0, 0.5 * top, top]}, "flip_sigmas"),
        ({"sigmas": [0.1, top], "sampler": "euler_ancestral"}, "that runs upwards"),
        ({"sigmas": [top, 0.0], "add_noise": 1}, "True or False"),
    ):
        with pytest.raises((ValueError, TypeError), match=said):
            tk.comfy.sampler_custom(mixture, latent_image=x, **asked)


# --- the small nodes ------------------------------------------------------------------------------


def test_pictures_and_masks(tmp_path):
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[..., 0], pixels[..., 3], pixels[:, :3, 3] = 51, 255, 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image, mask = nodes.load_image(tmp_path / "a.png")
    assert image.shape == (1, 4, 6, 3) and image.dtype == np.float32 and image[0, 0, 0, 0] == np.float32(0.2)
    assert mask.tolist() == [[[1.0] * 3 + [0.0] * 3] * 4]  # 1 where it is transparent
    assert torch.equal(nodes.load_image_mask(tmp_path / "a.png"), mask)
    assert float(nodes.load_image_mask(tmp_path / "a.png", "red").max()) == np.float32(0.2)
    assert torch.equal(nodes.invert_mask(mask), 1 - mask)
    assert nodes.mask_to_image(mask).shape == (1, 4, 6, 3)
    assert torch.equal(nodes.image_to_mask(nodes.mask_to_image(mask)), mask)
    assert nodes.solid_mask(0.5, 3, 2).tolist() == [[[0.5] * 3] * 2]
    Image.new("RGB", (6, 4)).save(tmp_path / "b.png")
    assert nodes.load_image(tmp_path / "b.png")[1].shape == (1, 64, 64)
    assert nodes.image_scale(image, "nearest-exact", 3, 0).shape == (1, 2, 3, 3)
    assert nodes.image_scale(image, "bilinear", 4, 4, "center").shape == (1, 4, 4, 3)
    assert np.array_equal(nodes.image_scale_by(image, "nearest-exact", 2)[:, ::2, ::2], image)
    with pytest.raises(ValueError, match="alpha"):
        nodes.load_image_mask(tmp_path / "b.png", "hue")
    with pytest.raises(ValueError, match="bicubic"):
        nodes.image_scale(image, "lanczos", 3, 3)


def test_latents_in_and_out(digits_model):
    image = tk.assets.digits()[0][0]
    pixels, _ = nodes.load_image(image)
    latent = nodes.vae_encode(digits_model, pixels)
    whole = digits_model.encode(image)
    assert torch.allclose(nodes.model_space(digits_model, latent), whole, atol=1e-6)
    assert np.allclose(nodes.vae_decode(digits_model, latent), digits_model.decode(whole), atol=1e-6)
    odd = np.pad(pixels, ((0, 0), (1, 2), (0, 0), (0, 0)), mode="edge")  # 35 rows: the first and two last go
    assert torch.equal(nodes.vae_encode(digits_model, odd)["samples"], latent["samples"])
    assert nodes.empty_latent_image(digits_model, 32, 32, 2)["samples"].shape == (2, 4, 8, 8)
    mask = torch.zeros(1, *pixels.shape[1:3])
    mask[:, :16] = 1.0
    painted = nodes.vae_encode_for_inpaint(digits_model, pixels, mask, grow_mask_by=6)
    assert painted["noise_mask"].shape == (1, 1, 32, 32)
    assert painted["noise_mask"][0, 0, :, 0].sum() == 16 + 3 and not torch.equal(
        painted["samples"], latent["samples"]
    )


def test_latents_between():
    x = torch.arange(2 * 4 * 2 * 2, dtype=torch.float32).reshape(2, 4, 2, 2)
    masked = nodes.set_latent_noise_mask(x, torch.ones(3, 5))
    assert masked["noise_mask"].shape == (1, 1, 3, 5) and torch.equal(masked["samples"], x)
    second = nodes.latent_from_batch(masked, 1, 5)
    assert torch.equal(second["samples"], x[1:]) and second["batch_index"] == [1]
    assert nodes.repeat_latent_batch(second, 2)["batch_index"] == [1, 2]
    assert torch.equal(nodes.latent_add(x, x[:1])["samples"], x + x[:1])
    assert torch.equal(nodes.latent_subtract(x, x)["samples"], 0 * x)
    assert torch.equal(nodes.latent_multiply(x, 2)["samples"], 2 * x)
    assert torch.equal(nodes.latent_upscale_by(x, "nearest-exact", 2)["samples"][..., ::2, ::2], x)
    assert nodes.latent_upscale(x, "bicubic", 32, 24)["samples"].shape == (2, 4, 3, 4)
    with pytest.raises(ValueError, match="samples"):
        nodes.latent_add({"latent": x}, x)


def test_the_noise_nodes(mixture, digits_model):
    one = nodes.noisy_latent_image(digits_model, seed=3, width=32, height=32)
    two = nodes.noisy_latent_image(digits_model, seed=4, width=32, height=32, batch_size=2)
    assert torch.equal(one["samples"], unit(3, (1, 4, 8, 8)))
    twice = nodes.duplicate_batch_index(one, 0, 2)
    mixed = nodes.slerp_latent(twice, 0.5, two)["samples"]
    assert torch.allclose(torch.linalg.vector_norm(mixed, dim=(1, 2, 3)), torch.tensor(16.0), atol=1.5)
    assert torch.allclose(nodes.slerp_latent(twice, 0.0, two)["samples"], twice["samples"], atol=1e-5)
    zero, half = {"samples": torch.zeros(2, 4, 8, 8)}, torch.zeros(8, 8)
    half[:4] = 1.0
    noised = nodes.inject_noise(zero, 2.0, two, half)["samples"]
    assert torch.equal(noised[:, :, :4], 2 * two["samples"][:, :, :4]) and not noised[:, :, 4:].any()
    assert torch.equal(nodes.inject_noise(zero, 2.0, one)["samples"], zero["samples"])  # another shape
    levels = tk.schedule(mixture, "karras", 5).sigma.values
    assert nodes.get_sigma(mixture, "euler", "karras", 5, 1, 3) == pytest.approx(levels[1] - levels[3])


def test_levels():
    levels = tk.Levels.scaled_linear()
    ours = tk.schedule(levels, "karras", 5).sigma.values
    ends = {"sigma_max": float(levels.sigma_max), "sigma_min": float(levels.sigma_min)}
    assert np.allclose(nodes.karras_scheduler(5, **ends), ours, rtol=1e-5)
    high, low = nodes.split_sigmas(ours, 2)
    assert high.tolist() == ours[:3].tolist() and low.tolist() == ours[2:].tolist()


def test_what_a_node_hands_on(mixture):
    x = latent(mixture, 2)
    given = {"samples": x, "noise_mask": torch.ones(1, 4, 4), "other": 1}
    run = tk.comfy.unsampler(mixture, steps=2, positive=0, latent_image=given)
    out = nodes.output(run, given)
    assert torch.equal(out["samples"].double(), last(run)) and out["other"] == 1 and "noise_mask" in out
    ladder = tk.comfy.batch_unsampler_demofusion(mixture, steps=3, latent_image=x)
    batch = nodes.output(ladder)["samples"]
    assert batch.shape == (6, *x.shape[1:]) and torch.equal(
        batch[1], torch.from_numpy(ladder.latent[0, 1].values)
    )
