"""What the adapters of all families share: prompts, sizes, clocks, tiles, fingerprints, compilation."""

import math

import diffusers
import numpy as np
import pytest
import tiny
import torch

import toolkit as tk
from toolkit.pipelines import adapter, clocks, prints, texts
from toolkit.pipelines.flux import pack, unpack
from toolkit.pipelines.texts import Condition

QUIET = {"progress": False, "steps": 3}


@pytest.fixture(scope="module")
def sd(saved):
    return tk.load(saved("sd1"))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def image(height: int, width: int, samples: int = 1) -> np.ndarray:
    return np.random.default_rng(0).random((samples, height, width, 3), np.float32)


# --- prompts ----


def test_a_condition_is_a_prompt(sd):
    """The encoded text instead of the text: the same run; an edited one: another, and a repr of its own."""
    cat, x = sd.condition("a cat"), noise(1, 4, 8, 8)
    by_text = tk.unsample(sd, x, prompt="a cat", **QUIET)
    by_condition = tk.unsample(sd, x, prompt=cat, **QUIET)
    assert np.array_equal(by_text.latent, by_condition.latent)
    assert by_condition.attrs["prompt"] == repr(cat) == repr(sd.condition("a cat"))
    moved = Condition("a cat, louder", {name: 1.5 * tensor for name, tensor in cat.tensors.items()})
    assert repr(moved).startswith("Condition('a cat, louder', ") and repr(moved)[-17:] != repr(cat)[-17:]
    assert not np.allclose(tk.unsample(sd, x, prompt=moved, **QUIET).latent, by_text.latent)
    mixed = tk.unsample(sd, noise(2, 4, 8, 8), prompt=[cat, None], **QUIET)
    assert mixed.sizes["sample"] == 2
    back = tk.sample(sd, start=by_condition, prompt=cat, progress=False)
    assert back.attrs["edited"] == [] and back.attrs["bitwise"]
    with pytest.raises(ValueError, match=r"the record has the name .*start=run, prompt=condition"):
        tk.sample(sd, start=by_condition, progress=False)


def test_a_condition_of_another_kind_is_refused(saved, sd):
    xl = tk.load(saved("sdxl"))
    with pytest.raises(ValueError, match=r"it lacks text_embeds\. Try: prompt=model\.condition\('a cat'\)"):
        tk.sample(xl, prompt=sd.condition("a cat"), **QUIET)
    long = Condition("long", {"encoder_hidden_states": torch.zeros(1, 154, 16, dtype=torch.float64)})
    with pytest.raises(ValueError, match=r"encoder_hidden_states of one batch have one shape"):
        tk.sample(sd, prompt=long, cfg=2.0, **QUIET)
    assert tk.sample(sd, prompt=long, **QUIET).sizes["step"] == 4
    with pytest.raises(TypeError, match=r"prompt=3: a text, None"):
        sd.condition(3)


@pytest.mark.parametrize("prompt", [3, 2.5, b"a cat", {"text": "a cat"}])
def test_what_is_no_text_is_refused(sd, prompt):
    with pytest.raises(TypeError, match=r'negative=.*a text, None.*Try: negative="a photograph of a cat"'):
        tk.sample(sd, negative=prompt, cfg=2.0, **QUIET)


def test_an_empty_text_is_no_label(digits_model):
    """As a graph has it, whose negative prompt is always a text."""
    assert digits_model.conditions(["", None, 3], 3) == [10, 10, 3]


def test_a_model_keeps_a_few_prompts(sd):
    for k in range(texts.KEPT + 3):
        sd.conditions(f"number {k}", 1)
    assert len(sd._prompts) == texts.KEPT


# --- sizes and clocks ----


def test_a_run_from_noise_has_the_usual_size(saved, sd):
    assert tk.sample(sd, prompt=["a cat", "a dog"], **QUIET).latent.shape[1:] == (2, 4, 8, 8)
    assert tk.sample(sd.sized(128, 64), **QUIET).latent.shape[1:] == (1, 4, 16, 8)
    assert tk.sample(sd, shape=(1, 4, 8, 12), **QUIET).latent.shape[1:] == (1, 4, 8, 12)
    assert tk.tiled(sd, size=(12, 12)).windows.window == (8, 8)


@pytest.mark.parametrize("name, sides, side", [("sd1", (100, 64), 8), ("flux schnell", (72, 64), 16)])
def test_sides_that_do_not_divide_are_refused(saved, name, sides, side):
    """Of an image, of a latent and of a size that is asked for; the line to type is right."""
    model = tk.load(saved(name))
    near = tuple(side * math.floor(s / side + 0.5) for s in sides[::-1])
    with pytest.raises(
        ValueError, match=rf"multiples of {side} px\. Try: image\.resize\(\({near[0]}, {near[1]}\)\)"
    ):
        model.encode(image(*sides))
    with pytest.raises(ValueError, match=rf"a multiple of {side} px"):
        model.sized(*sides)
    if model.multiple > 1:
        with pytest.raises(ValueError, match=r"multiples of 2\. Try: latent\[\.\.\., :8, :8\]"):
            tk.unsample(model, noise(1, 16, 9, 8), **QUIET)
        with pytest.raises(ValueError, match=r"multiples of 2"):
            tk.sample(model, shape=(1, 16, 9, 8), **QUIET)


def test_sides_beyond_the_places_that_a_model_learnt_are_refused(saved):
    model = tk.load(saved("sd3"))  # 16 patches of 2
    assert model.sized(256, 256).usual_shape == (16, 32, 32)
    with pytest.raises(ValueError, match=r"height=272: a whole number from 16 to 256"):
        model.sized(272, 256)
    with pytest.raises(ValueError, match=r"and 32 at most\. Try: latent\[\.\.\., :32, :8\]"):
        tk.unsample(model, noise(1, 16, 34, 8), **QUIET)
    with pytest.raises(ValueError, match=r"max_rows.*no such option"):
        tk.load("photographs", max_rows=2)


def test_the_shift_of_flux_dev_is_that_of_the_size(saved):
    """mu rises from 0.5 at 256 tokens to 1.15 at 4096, a token for 16 x 16 px."""
    model = tk.load(saved("flux dev"))
    assert model.levels == tk.Levels.flux(1.15)  # 1024 x 1024
    assert model.sized(256, 256).levels == tk.Levels.flux(0.5)
    small = model.sized(512, 512)
    assert small.levels.describe()["shift"] == pytest.approx(0.5 + 768 * 0.65 / 3840)
    assert small.usual_shape == (16, 64, 64) and model.usual_shape == (16, 128, 128)
    run = tk.sample(small, shape=(1, 16, 8, 8), **QUIET)
    assert run.attrs["levels"] == small.levels.describe() and run.attrs["guidance"] == 3.5


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in diffusers' Heun
def test_clocks_come_from_the_scheduler():
    flow = diffusers.FlowMatchEulerDiscreteScheduler
    assert clocks.clock(flow(shift=3.0)).levels == tk.Levels.flow(3.0)
    moving = flow(use_dynamic_shifting=True, base_shift=1.0, max_shift=3.0, time_shift_type="linear")
    assert clocks.clock(moving, 4096).levels == tk.Levels.flow(3.0)
    solver = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0
    )
    assert clocks.clock(solver) == clocks.Clock("flow", tk.Levels.flow(2.0), 1000.0)
    moved = flow(shift=3.0)
    moved.set_shift(6.0)
    assert clocks.clock(moved).levels == tk.Levels.flow(6.0)
    other = diffusers.UniPCMultistepScheduler.from_config(
        moved.config, use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=5.0
    )
    assert clocks.clock(other).levels == tk.Levels.flow(5.0)
    few = diffusers.LCMScheduler(**tiny.SD_BETAS, original_inference_steps=4)
    assert clocks.clock(few).levels.sigma_max == pytest.approx(14.61, abs=0.01)
    heun = diffusers.HeunDiscreteScheduler.from_config(
        diffusers.DDIMScheduler(**tiny.SD_BETAS, rescale_betas_zero_snr=True).config
    )
    assert clocks.clock(heun).levels.sigma_max == pytest.approx(14.61, abs=0.01)
    asked = {**tiny.SD_BETAS, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    found = clocks.clock(diffusers.DDIMScheduler(**asked))
    assert found.prediction == "v" and found.levels.sigma_max > 4000 and found.path == tk.VE
    with pytest.raises(ValueError, match=r"pipe\.scheduler='EDMEulerScheduler'.*Try: pipe\.scheduler = "):
        clocks.clock(diffusers.EDMEulerScheduler())


@pytest.mark.parametrize("spacing, between", [("linspace", True), ("leading", False), ("trailing", False)])
def test_the_clock_runs_between_steps_where_the_scheduler_s_does(spacing, between):
    levels = clocks.clock(tiny.scheduler("euler", timestep_spacing=spacing)).levels
    half = math.sqrt(float(levels.table[500]) * float(levels.table[501]))
    assert (levels.time(half) == pytest.approx(500.5, abs=1e-3)) == between
    assert levels.time(float(levels.table[500])) == pytest.approx(500.0, abs=1e-3)
    assert levels.describe().get("between", False) == between
    assert levels.time(0.0) == 0.0 and levels.time(1e9) == 999.0


def test_packs_are_squares_of_the_latent():
    x = noise(2, 3, 4, 6)
    tokens = pack(x)
    assert tokens.shape == (2, 6, 12)
    assert np.array_equal(tokens[1, 4].reshape(3, 2, 2), x[1, :, 2:4, 2:4])  # row 1, column 1 of 2 x 3
    assert torch.equal(unpack(tokens, 4, 6), x)


# --- what a run was asked with ----


def test_guidance_is_told_to_the_network_and_recorded(saved):
    dev = saved("flux dev")
    x = noise(1, 16, 8, 8)
    up = tk.unsample(tk.load(dev), x, **QUIET)
    strong = tk.load(dev, guidance=7.0)
    assert not np.allclose(up.latent, tk.unsample(strong, x, **QUIET).latent)
    assert tk.sample(strong, start=up, progress=False).attrs["edited"] == ["guidance"]
    assert tk.sample(tk.load(dev), start=up, progress=False).attrs["edited"] == []
    assert "guidance" not in tk.unsample(tk.load(saved("flux schnell")), x, **QUIET).attrs


@pytest.mark.parametrize("given", [0, -1, 2.5, True])
def test_max_rows_is_a_number_of_rows(saved, given):
    with pytest.raises((TypeError, ValueError), match=r"max_rows=.*Try: tk\.load\(source, max_rows=4\)"):
        tk.load(saved("sd1"), max_rows=given)


def test_compile_compiles_the_network_alone(saved, monkeypatch):
    """By a compiler that only counts; the real one is in the slow test below."""
    seen = []

    def compiler(module, **options):
        def call(*args, **told):
            seen.append(options)
            return module(*args, **told)

        return call

    monkeypatch.setattr(torch, "compile", compiler)
    compiled, plain = tk.load(saved("sd1"), compile=True), tk.load(saved("sd1"))
    x = noise(1, 4, 8, 8)
    run, want = (tk.unsample(model, x, prompt="a cat", **QUIET) for model in (compiled, plain))
    assert np.array_equal(run.latent, want.latent)
    assert len(seen) == int(run.nfe[-1]) and seen[0] == {"mode": "default", "dynamic": False}
    assert run.attrs["compile"] is True and want.attrs["compile"] is False
    assert run.attrs["fingerprint"] == want.attrs["fingerprint"]
    with pytest.warns(UserWarning, match=r"recorded with compile=True and is replayed with compile=False"):
        tk.sample(plain, start=run, progress=False)
    with pytest.raises(TypeError, match=r"compile='yes'.*Try: tk\.load\(source, compile=True\)"):
        tk.load(saved("sd1"), compile="yes")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # in torch's own compiler
def test_a_compiled_network_answers_the_same(saved):
    compiled, plain = tk.load(saved("dit"), compile=True), tk.load(saved("dit"))
    x = noise(2, 4, 8, 8)
    run, want = (tk.unsample(model, x, prompt=3, cfg=2.0, **QUIET) for model in (compiled, plain))
    assert np.linalg.norm(run.latent - want.latent) < 1e-5 * np.linalg.norm(want.latent)
    back = tk.sample(compiled, start=run, progress=False)
    assert np.abs(back.latent[-1] - x.numpy()).max() < 1e-12


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3"])
def test_offloading(saved, name):
    """diffusers' own: networks wait elsewhere and come when they are called; the run is the same."""
    pipe = tiny.read(saved(name))
    pipe.enable_model_cpu_offload(device="cpu")
    model, plain = tk.load(pipe), tk.load(saved(name))
    x = plain.encode(image(64, 64))
    assert torch.equal(model.encode(image(64, 64)), x)
    run, want = (tk.unsample(m, x, prompt="a cat", cfg=2.0, **QUIET) for m in (model, plain))
    assert np.array_equal(run.latent, want.latent)
    assert run.attrs["fingerprint"] == want.attrs["fingerprint"]
    assert np.array_equal(model.decode(x), plain.decode(x))


def test_float32_is_not_rounded_on_a_gpu():
    """cuDNN's ten bits are off while a network works, and on again after it, also if it raises."""
    cudnn = torch.backends.cudnn
    assert cudnn.allow_tf32  # torch's default
    with pytest.raises(ZeroDivisionError), adapter.full_float32(torch.device("cuda")):
        assert not cudnn.allow_tf32
        raise ZeroDivisionError
    assert cudnn.allow_tf32
    with adapter.full_float32(torch.device("cpu")):
        assert cudnn.allow_tf32


# --- images ----


def test_large_images_are_decoded_by_tiles(sd, monkeypatch):
    """As diffusers blends their seams; the autoencoder is left as it was."""
    z = sd.encode(image(192, 128, samples=3))
    whole, calls = sd.decode(z), []
    decode = sd.vae.decode
    monkeypatch.setattr(sd.vae, "decode", lambda z: (calls.append(z.shape), decode(z))[1])
    monkeypatch.setattr(adapter, "TILED", 64 * 64)
    tiled = sd.decode(z)
    assert calls == [(1, 4, 24, 16)] * 3 and not sd.vae.use_tiling
    assert tiled.shape == whole.shape == (3, 192, 128, 3)
    with torch.no_grad():
        want = sd.vae.tiled_decode((z[:1] / sd.latent_scale).float()).sample
    assert np.allclose(tiled[:1], (want.permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1), atol=1e-4)
    assert not np.allclose(tiled, whole, atol=1e-2)
    assert sd.encode(image(192, 128)).shape == (1, 4, 24, 16) and not sd.vae.use_tiling


def test_a_batch_is_decoded_a_part_at_a_time(sd, monkeypatch):
    z, calls = sd.encode(image(64, 64, samples=5)), []
    want, decode = sd.decode(z), sd.vae.decode
    monkeypatch.setattr(adapter, "TILED", 2 * 64 * 64)
    monkeypatch.setattr(sd.vae, "decode", lambda z: (calls.append(len(z)), decode(z))[1])
    assert np.allclose(sd.decode(z), want, atol=1e-5) and calls == [2, 2, 1]


def test_an_autoencoder_that_overflows_works_in_float32(saved, monkeypatch):
    """And is left as it was: the pipeline goes on to be its owner's."""
    half, seen = tk.load(saved("sdxl"), dtype=torch.float16), []
    decode = half.vae.decode
    monkeypatch.setattr(half.vae, "decode", lambda z: (seen.append((z.dtype, half.vae.dtype)), decode(z))[1])
    z = half.encode(image(64, 64))
    assert np.isfinite(half.decode(z)).all() and seen == [(torch.float32, torch.float32)]
    assert half.vae.dtype == half.network.dtype == torch.float16
    assert torch.allclose(z, tk.load(saved("sdxl")).encode(image(64, 64)), atol=0.02)


def test_without_an_autoencoder(saved):
    """Latents alone: sizes are known, pictures are not."""
    xl = tk.load(saved("sdxl"), vae=None)
    assert xl.factor == 8 and xl.sized(128, 64).usual_shape == (4, 16, 8)
    want = tk.sample(tk.load(saved("sdxl")), prompt="a cat", **QUIET)
    assert np.array_equal(tk.sample(xl, prompt="a cat", **QUIET).latent, want.latent)


def test_a_network_apart_from_its_pipeline_is_refused(saved):
    pipe = tiny.read(saved("flux dev"))
    pipe.text_encoder.to("meta")
    with pytest.raises(ValueError, match=r"the pipeline runs on meta, and its transformer lies on cpu"):
        tk.load(pipe)


def test_a_distilled_autoencoder(saved):
    small = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1,) * 4, num_decoder_blocks=(1,) * 4,
    )  # fmt: skip
    model = tk.load(saved("sd1"), vae=small)
    assert model.latent_scale == 1.0
    z = model.encode(image(64, 64))
    assert z.shape == (1, 4, 8, 8) and model.decode(z).shape == (1, 64, 64, 3)


def test_pixels_are_latents_of_a_model_without_an_autoencoder(saved):
    model = tk.load(saved("ddpm"))
    pixels = image(16, 16)
    assert np.allclose(model.encode(pixels).permute(0, 2, 3, 1), 2 * pixels - 1)
    assert np.allclose(model.decode(model.encode(pixels)), pixels, atol=1e-6)
    with pytest.raises(ValueError, match=r"prompt=3: this model has no conditions to bind. Try: prompt=None"):
        tk.sample(model, prompt=3, **QUIET)


# --- fingerprints ----


@pytest.mark.parametrize("whole", [prints.WHOLE, 0])
def test_a_fingerprint_sees_every_weight(saved, monkeypatch, whole):
    """Large networks are summed up; one bit of one weight still shows, and so does the dtype."""
    monkeypatch.setattr(prints, "WHOLE", whole)
    network = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    first = prints.fingerprint(network)
    assert first == prints.fingerprint(network) and len(first) == 16
    with torch.no_grad():
        bits = network[1].weight.view(torch.int32)
        bits[63, 61] += 1
    assert prints.fingerprint(network) != first
    with torch.no_grad():
        bits[63, 61] -= 1
    assert prints.fingerprint(network) == first
    assert prints.fingerprint(network.double()) != first
    assert prints.fingerprint(network.to(torch.bfloat16)) != first
    assert prints.fingerprint(network.to("meta")) is None
