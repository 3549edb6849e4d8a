"""Loading diffusers pipelines: small random ones made from configs, in a folder and in memory."""

import copy
import math

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import toolkit as tk
from toolkit.pipelines.pictures import pixels_of


def small_pipeline(grey=True, **options):
    """A `DiTPipeline` with random weights: 5 classes, 4 x 8 x 8 latents of 32 x 32 images."""
    return tiny.dit(classes=5, grey=grey, **options)


@pytest.fixture(scope="module")
def pipe():
    return small_pipeline()


@pytest.fixture(scope="module")
def model(pipe):
    return tk.load(pipe)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_x0_is_that_of_the_network_s_prediction(prediction, learned):
    """By hand from the definition of each prediction, at the table's own levels."""
    pipe = small_pipeline(learned=learned, prediction_type=prediction)
    model = tk.load(pipe)
    x = torch.randn((2, 4, 8, 8), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for index in (3, 400, 990):
        abar = float(pipe.scheduler.alphas_cumprod[index].double())
        sigma = float(model.levels.table[index])
        assert sigma == pytest.approx(math.sqrt((1 - abar) / abar), rel=1e-5)
        z = (x / math.sqrt(1 + sigma**2)).float()
        with torch.no_grad():
            out = (
                pipe.transformer(z, timestep=torch.tensor([index] * 2), class_labels=torch.tensor([1, 5]))
                .sample[:, :4]
                .double()
            )
        want = {
            "epsilon": x - sigma * out,
            "v_prediction": math.sqrt(abar) * z.double() - math.sqrt(1 - abar) * out,
            "sample": out,
        }[prediction]  # fmt: skip
        got = tk.guide(model, prompt=["one", None]).denoise(x, sigma).x0
        assert torch.allclose(got, want, atol=1e-4 * max(1.0, sigma))
        assert got.dtype == torch.float64


def test_the_levels_come_from_the_scheduler_s_config():
    linear = tk.load(small_pipeline(beta_schedule="linear", beta_start=0.0001, beta_end=0.02))
    assert linear.levels.sigma_max == pytest.approx(157.4, rel=1e-3)
    flat = tk.load(small_pipeline(rescale_betas_zero_snr=True, prediction_type="v_prediction"))
    assert flat.levels.sigma_max > 4000
    assert "zero_snr" in str(flat.levels.describe())
    assert tk.load(small_pipeline()).levels.sigma_max == pytest.approx(
        tk.Levels.scaled_linear().sigma_max, rel=1e-6
    )


def test_a_folder_loads_as_what_was_saved(pipe, model, tmp_path):
    pipe.save_pretrained(tmp_path / "pipe", safe_serialization=True)
    loaded = tk.load(tmp_path / "pipe")
    assert loaded.fingerprint == model.fingerprint
    x = torch.randn((1, 4, 8, 8), dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.equal(loaded.denoise(x, 1.0).x0, model.denoise(x, 1.0).x0)
    half = tk.load(str(tmp_path / "pipe"), dtype=torch.bfloat16)
    assert half.network.dtype == torch.bfloat16
    assert half.fingerprint != model.fingerprint
    got = half.denoise(x, 1.0).x0
    assert got.dtype == torch.float64
    assert 0 < float((got - model.denoise(x, 1.0).x0).abs().max()) < 0.2


@pytest.mark.parametrize("name", ["obelm", "euler", "dpmpp_2m"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_is_float64_whatever_the_network_is(pipe, tmp_path, name, dtype):
    """The network sees bit-identical inputs both ways: an exact inverse is exact in any dtype of it."""
    pipe.save_pretrained(tmp_path / "pipe")
    model = tk.load(tmp_path / "pipe", dtype=dtype)
    x = torch.randn((2, 4, 8, 8), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    trip = tk.round_trip(model, x, solver=name, prompt=[1, 4], cfg=4.0, steps=10, progress=False)
    assert float(trip.error.max()) < 1e-9


def test_guidance_uses_the_null_class(model):
    x = torch.ones((1, 4, 8, 8), dtype=torch.float64)
    with_null = tk.guide(model, prompt=2, cfg=3.0).denoise(x, 1.0, uncond=True)
    null = tk.guide(model).denoise(x, 1.0).x0
    assert torch.allclose(with_null.uncond, null, atol=1e-5)
    assert not torch.allclose(with_null.x0, with_null.uncond, atol=1e-3)
    assert torch.equal(
        tk.guide(model, prompt="three").denoise(x, 1.0).x0, tk.guide(model, prompt=3).denoise(x, 1.0).x0
    )


def test_images_of_every_kind_encode_alike(model):
    grey = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    want = model.encode(grey)
    assert want.shape == (1, 4, 8, 8)
    assert want.dtype == torch.float64
    rgb = np.repeat(grey[..., None], 3, axis=-1)
    for same in (grey[None], rgb, rgb[None], torch.from_numpy(grey), [grey]):
        assert torch.allclose(model.encode(same), want, atol=1e-6)
    eight = (255 * grey).round().astype(np.uint8)
    for same in (eight, Image.fromarray(eight), Image.fromarray(eight).convert("RGB")):
        assert torch.allclose(model.encode(same), want, atol=0.1)
    assert model.encode([grey, 1 - grey, grey]).shape == (3, 4, 8, 8)
    run = tk.unsample(model, Image.fromarray(eight), steps=2, progress=False)
    np.testing.assert_array_equal(run.latent[0], model.encode(eight))


def test_encoding_is_the_mode_times_the_scaling_factor(model, pipe):
    grey = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    with torch.no_grad():
        mode = pipe.vae.encode(torch.from_numpy(2 * grey - 1)[None, None]).latent_dist.mode()
    assert torch.allclose(model.encode(grey), 0.7 * mode.double())


def test_decoding_takes_what_a_run_gives(model):
    run = tk.sample(model, prompt=1, steps=2, progress=False)
    images = model.decode(run.latent.isel(step=-1))
    assert images.shape == (1, 32, 32, 3)
    assert 0 <= images.min() < images.max() <= 1
    np.testing.assert_array_equal(images, model.decode(run.latent[-1].values))
    np.testing.assert_array_equal(images, model.decode(torch.from_numpy(run.latent[-1].values)))
    colour = tk.load(small_pipeline(grey=False))
    assert colour.decode(colour.encode(np.zeros((32, 32, 3), np.float32))).shape == (1, 32, 32, 3)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((16, 16), np.float32), "32 x 32"),
        (np.full((32, 32), 2.0), "0..1"),
        (np.full((32, 32), np.nan), "0..1"),
        (np.zeros((32, 32), np.int64), "uint8"),
        (np.zeros((2, 2, 2, 32, 32)), "shape"),
        (np.zeros((32, 32, 4), np.uint8), r"transparency.*Try: image\[\.\.\., :3\]"),
        (torch.zeros(2, 32, 32, 2), r"transparency.*Try: image\[\.\.\., :1\]"),
        (Image.new("I;16", (32, 32)), r"8 bits.*Try: np\.asarray\(image\) / 65535"),
        (Image.new("I", (32, 32)), r"8 bits.*Try: np\.asarray\(image\) / 65535"),
        (Image.new("F", (32, 32)), r"8 bits.*Try: np\.asarray\(image\)$"),
        ("digit.png", "PIL image"),
    ],
)
def test_what_is_no_image_is_refused(model, image, says):
    with pytest.raises((ValueError, TypeError), match=rf"image=.*{says}.*") as caught:
        model.encode(image)
    assert ". Try: " in str(caught.value)


@pytest.mark.parametrize("shape, order", [((3, 24, 32), (1, 2, 0)), ((2, 3, 24, 32), (0, 2, 3, 1))])
def test_colours_that_come_first_are_refused(shape, order):
    """As torch has them: three planes are no three grey pictures, unless one says so."""
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"colours come last.*Try: image\.permute\(.*\)$") as caught:
        pixels_of(image, 3)
    moved = eval(str(caught.value).split("Try: ")[1], {"image": image})
    assert torch.equal(moved, image.permute(*order))
    np.testing.assert_array_equal(pixels_of(moved, 3), image.numpy().reshape(-1, 3, 24, 32))
    if image.ndim == 3:
        grey = pixels_of(list(image), 3)
        np.testing.assert_array_equal(grey, np.repeat(image.numpy()[:, None], 3, 1))
        np.testing.assert_array_equal(pixels_of(image, 1)[:, 0], image)
        np.testing.assert_array_equal(pixels_of(image.numpy(), 3), grey)


def test_pixels_of_other_kinds():
    eight = torch.arange(12.0).reshape(3, 4, 1) / 16.0  # exact in bfloat16
    np.testing.assert_array_equal(pixels_of(eight.bfloat16(), 1)[0, 0], eight[..., 0])
    clear = Image.new("RGBA", (4, 3), (255, 0, 51, 9))
    for image in (clear, clear.convert("RGB").convert("P")):
        np.testing.assert_allclose(pixels_of(image, 3)[0, :, 0, 0], [1.0, 0.0, 0.2], atol=1e-6)
    assert pixels_of(Image.new("LA", (4, 3), (51, 9)), 1).max() == np.float32(0.2)
    deep = Image.fromarray(np.full((3, 4), 13107, np.uint16))
    with pytest.raises(ValueError, match="image='I;16'"):
        pixels_of(deep, 1)
    np.testing.assert_allclose(pixels_of(np.asarray(deep) / 65535, 1), 0.2, atol=1e-6)
    images = [Image.new("L", (4, 3)), np.zeros((5, 6, 3))]
    line = r"\[\(3, 4\), \(5, 6\)\].*one size.*Try: \[one\.resize\(\(4, 3\)\) for one in images\]"
    with pytest.raises(ValueError, match=line):
        pixels_of(images, 3)
    images[1] = Image.new("RGB", (6, 5))
    assert pixels_of([one.resize((4, 3)) for one in images], 3).shape == (2, 3, 3, 4)


# --- there and back


@pytest.fixture(scope="module")
def words(saved):
    return tk.load(saved("sd1"))


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_an_encoded_prompt_goes_there_and_back(words):
    """A record has its digest alone, so the replay is given it again: which is no edit."""
    cat, dog = words.condition("a cat"), words.condition("a dog")
    asked = {"solver": "obelm", "steps": 3, "progress": False}
    trip = tk.round_trip(words, drawn(1, 4, 8, 8), prompt=cat, cfg=4, **asked)
    assert float(trip.error.max()) < 1e-9 and float(trip.error_without_aux.min()) > 1e-6
    assert trip.attrs["bitwise"] is not False and trip.attrs["prompt"] == repr(cat)
    plain = tk.round_trip(words, drawn(1, 4, 8, 8), prompt="a cat", cfg=4, **asked)
    np.testing.assert_array_equal(trip.top, plain.top)
    left = tk.Region(tk.box(0.0, 0.0, 0.5, 1.0, size=(8, 8)), prompt=[dog, "a bird"], negative=cat)
    two = {"prompt": [cat, None], "negative": dog, "cfg": 2.0, "regions": [left], "steps": 2}
    trip = tk.round_trip(words, drawn(2, 4, 8, 8), truth=True, **{**asked, **two, "solver": "euler"})
    assert float(trip.error.max()) < 1e-9 and trip.attrs["bitwise"] and np.isfinite(trip.accuracy).all()


def test_groups_that_hold_all_rows_are_none(words):
    run = tk.unsample(words, drawn(1, 4, 8, 8), prompt="a cat", cfg=4.0, steps=2, progress=False)
    few = copy.copy(words)
    for few.max_rows in (2, 8):
        assert tk.sample(few, run, progress=False).attrs["bitwise"]
    few.max_rows = 1
    with pytest.warns(
        UserWarning, match=r"max_rows=None.*max_rows=1.*Try: tk\.load\(\.\.\., max_rows=None\)"
    ):
        tk.sample(few, run, progress=False)


@pytest.mark.parametrize("prompt", [5, -1, 2.5, "five", True, [1, 9]])
def test_labels_the_pipeline_does_not_have_are_refused(model, prompt):
    with pytest.raises(ValueError, match=r"prompt=.*Try: prompt="):
        tk.guide(model, prompt)


def test_what_is_no_pipeline_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    for source, says in (
        (tmp_path / "empty", "model_index.json"),
        (tmp_path / "other", "FluxPipeline"),
        ("no/such/folder", "neither a folder"),
        ("./digits", "neither a folder"),
        (np.zeros(3), "not a pipeline"),
    ):
        with pytest.raises((ValueError, TypeError), match=rf"source=.*{says}.*Try: tk\.load"):
            tk.load(source)
    with pytest.raises(TypeError, match=r"dtype=.*Try:"):
        tk.load(dtype="float16")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"device='cuda'.*Try: tk\.load\(device=\"cpu\"\)"):
            tk.load(device="cuda")
