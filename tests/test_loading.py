"""Where pipelines are read from: folders, a file, the hub's cache; what is refused, and what to type."""

import json
import re
import shutil

import diffusers
import pytest
import tiny
import torch
from safetensors.torch import save_file

import toolkit as tk

X = torch.randn((1, 4, 8, 12), dtype=torch.float64, generator=torch.Generator().manual_seed(1))

# --- a checkpoint in one file, by the names of the code that Stable Diffusion 1 was trained with ----

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
          "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}  # fmt: skip
ENDS = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_name(name: str) -> str:
    """Of a weight of `tiny.stable_diffusion`'s UNet: two blocks, a layer each, two on the way up."""
    match name.split("."):
        case ["down_blocks", b, "resnets", _, layer, kind]:
            return f"input_blocks.{2 * int(b) + 1}.0.{RESNET[layer]}.{kind}"
        case ["down_blocks", b, "attentions", _, *rest]:
            return f"input_blocks.{2 * int(b) + 1}.1." + ".".join(rest)
        case ["down_blocks", b, "downsamplers", _, _, kind]:
            return f"input_blocks.{2 * int(b) + 2}.0.op.{kind}"
        case ["mid_block", "resnets", i, layer, kind]:
            return f"middle_block.{2 * int(i)}.{RESNET[layer]}.{kind}"
        case ["mid_block", "attentions", _, *rest]:
            return "middle_block.1." + ".".join(rest)
        case ["up_blocks", b, "resnets", i, layer, kind]:
            return f"output_blocks.{2 * int(b) + int(i)}.0.{RESNET[layer]}.{kind}"
        case ["up_blocks", b, "attentions", i, *rest]:
            return f"output_blocks.{2 * int(b) + int(i)}.1." + ".".join(rest)
        case ["up_blocks", b, "upsamplers", _, _, kind]:
            return f"output_blocks.{2 * int(b) + 1}.1.conv.{kind}"
        case [*layer, kind]:
            return f"{ENDS['.'.join(layer)]}.{kind}"


def vae_name(name: str) -> str:
    """Of a weight of `tiny.vae`: the blocks of the decoder are counted from the image."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = name.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for ours, theirs in ATTENTION.items():
        name = name.replace(f"mid_block.attentions.0.{ours}", f"mid.attn_1.{theirs}")
    name = re.sub(r"down_blocks\.(\d)", r"down.\1", name)
    name = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{3 - int(m[1])}", name)
    return name.replace("resnets", "block")


def checkpoint(pipe) -> dict[str, torch.Tensor]:
    """A pipeline's weights as one file holds them."""
    held = {f"model.diffusion_model.{unet_name(k)}": v for k, v in pipe.unet.state_dict().items()}
    for name, weight in pipe.vae.state_dict().items():
        square = ".attentions." in name and weight.ndim == 2  # a convolution of one pixel, there
        held[f"first_stage_model.{vae_name(name)}"] = weight[..., None, None] if square else weight
    for name, weight in pipe.text_encoder.state_dict().items():
        held[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = weight
    return {name: weight.contiguous().clone() for name, weight in held.items()}


def test_a_checkpoint_in_one_file_is_its_folder(saved, tmp_path):
    folder, file = saved("sd1"), tmp_path / "model.safetensors"
    pipe = tiny.read(folder)
    held = checkpoint(pipe)
    assert len(held) == sum(len(part.state_dict()) for part in (pipe.unet, pipe.vae, pipe.text_encoder))
    save_file(held, file)
    one, whole = tk.load(file, config=folder), tk.load(folder)
    assert one.name == str(file)
    assert one.fingerprint == whole.fingerprint
    assert one.levels.describe() == whole.levels.describe()
    got, want = (tk.guide(model, "a cat", cfg=3.0).denoise(X, 1.0).x0 for model in (one, whole))
    assert torch.equal(got, want)
    half = tk.load(str(file), config=str(folder), dtype=torch.bfloat16)
    assert half.network.dtype == half.vae.dtype == half.pipe.text_encoder.dtype == torch.bfloat16


def test_a_file_whose_config_is_not_at_hand_says_so(saved, tmp_path, offline):
    file = tmp_path / "model.safetensors"
    save_file(checkpoint(tiny.read(saved("sd1"))), file)
    with pytest.raises(OSError, match=r"source=.*model\.safetensors.*Try: tk\.load\(.*config="):
        tk.load(file)


@pytest.fixture
def offline(monkeypatch):
    """As under HF_HUB_OFFLINE=1, which the hub's client reads when it is imported."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


# --- what is refused ----


def copied(folder, to):
    """A folder of its own, to be spoiled."""
    return shutil.copytree(folder, to / "pipe")


def test_pickles_are_refused(saved, tmp_path):
    """A checkpoint by its name, before it is opened; a folder that holds nothing else."""
    for name in ("model.ckpt", "model.pt", "weights.bin"):
        (tmp_path / name).write_bytes(b"what a pickle may run")
        with pytest.raises(ValueError, match=r"source=.*pickle.*Try: pipe\.save_pretrained\("):
            tk.load(tmp_path / name)
    with tiny.quiet():
        tiny.stable_diffusion().save_pretrained(tmp_path / "old", safe_serialization=False)
    assert list((tmp_path / "old" / "unet").glob("*.bin"))
    with pytest.raises(OSError, match=r"source=.*old.*safetensors.*Try: pipe\.save_pretrained\("):
        tk.load(tmp_path / "old")
    with pytest.raises(ValueError, match=r"use_safetensors=False.*pickle.*Try: pipe\.save_pretrained\("):
        tk.load(tmp_path / "old", use_safetensors=False)


def test_folders_that_are_spoiled_are_refused(saved, tmp_path):
    """A part is missing, weights are cut short, the index is no JSON or names a family of its own."""
    folder = copied(saved("dit"), tmp_path)
    index = folder / "model_index.json"
    text = index.read_text()
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    held = weights.read_bytes()
    weights.write_bytes(held[: len(held) // 2])
    with pytest.raises((OSError, ValueError), match=r"source=.*Try: tk\.load"):
        tk.load(folder)
    weights.unlink()
    with pytest.raises(OSError, match=r"source=.*Try: "):
        tk.load(folder)
    for other in ("[]", "{}", "3"):
        index.write_text(other)
        with pytest.raises(ValueError, match=r"source=.*names no pipeline.*Try: tk\.load"):
            tk.load(folder)
    index.write_text(text[:40])
    with pytest.raises(ValueError, match=r"source=.*model_index\.json.*Try: tk\.load"):
        tk.load(folder)
    index.write_text(
        json.dumps({**json.loads(text), "transformer": ["diffusers", "PixArtTransformer2DModel"]})
    )
    with pytest.raises(
        TypeError, match=r"source=.*denoiser is none of .*DiTTransformer2DModel.*Try: tk\.load"
    ):
        tk.load(folder)
    index.unlink()
    with pytest.raises(ValueError, match=r"source=.*no model_index\.json.*Try: tk\.load"):
        tk.load(folder)


def test_a_network_for_inpainting_is_refused(saved):
    with pytest.raises(ValueError, match=r"source=.*9 channels.*gives 4.*inpainting.*Try: tk\.load"):
        tk.load(saved("sd1 inpaint"))


def test_other_families_are_refused():
    pipe = diffusers.DDIMPipeline(None, diffusers.DDIMScheduler())
    with pytest.raises(TypeError, match=r"source='DDIMPipeline'.*none of UNet2DCondi.*Try: tk\.load"):
        tk.load(pipe)
    with pytest.raises(TypeError, match=r"source='UNet2DModel'.*a network alone.*Try: tk\.load\(pipe\)"):
        tk.load(tiny.ddpm().unet)


@pytest.mark.parametrize(
    "source", ["no/such/folder/at/all", "./sd1", "/sd1", "~/sd1", "sd1", "a b/c", "a/b/c"]
)
def test_what_is_neither_folder_nor_hub_id_is_refused(source):
    with pytest.raises(ValueError, match=r"source=.*(neither a folder|hub id).*Try: tk\.load"):
        tk.load(source)


@pytest.mark.parametrize(
    ("asked", "why"),
    [({}, "cannot find the requested files"), ({"local_files_only": True}, "not among the models on this")],
)
def test_what_the_hub_s_cache_lacks_says_why(asked, why, offline, tmp_path):
    with pytest.raises(OSError, match=rf'source=.nobody/nothing.: .*{why}.*Try: tk\.load\("nobody/nothing"'):
        tk.load("nobody/nothing", cache_dir=tmp_path, **asked)


def test_a_repository_in_the_hub_s_cache_is_read_without_a_network(saved, offline, tmp_path):
    place = tmp_path / "models--somebody--tiny"
    shutil.copytree(saved("sd1"), place / "snapshots" / ("0" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    model = tk.load("somebody/tiny", cache_dir=tmp_path)
    assert model.fingerprint == tk.load(saved("sd1")).fingerprint
    assert model.name == "somebody/tiny"


@pytest.mark.parametrize("asked", [{}, {"local_files_only": True}])
def test_a_download_that_was_cut_off_is_gone_on_with(asked, saved, monkeypatch, tmp_path):
    """Its index is there and its weights are not: the rest comes from the hub, where that may be asked."""
    seen, whole = [], tiny.read(saved("sd1"))
    (tmp_path / "models--somebody--tiny" / "refs").mkdir(parents=True)
    (tmp_path / "models--somebody--tiny" / "refs" / "main").write_text("0" * 40)
    begun = tmp_path / "models--somebody--tiny" / "snapshots" / ("0" * 40)
    begun.mkdir(parents=True)
    shutil.copy(saved("sd1") / "model_index.json", begun)

    def reader(source: str, cache_dir: object, local_files_only: bool = False, **options):
        seen.append(local_files_only)
        if local_files_only:
            raise OSError("no weights here")
        return whole

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", reader)
    if asked:
        with pytest.raises(OSError, match="no weights here"):
            tk.load("somebody/tiny", cache_dir=tmp_path, **asked)
        assert seen == [True]
    else:
        assert tk.load("somebody/tiny", cache_dir=tmp_path).channels == 4
        assert seen == [True, False]


@pytest.mark.parametrize(
    ("error", "says", "line"),
    [
        ("GatedRepoError", "403: you are not in the authorized list", r"hf auth login, once its licence"),
        ("RepositoryNotFoundError", "404: no such repository", r'tk\.load\("owner/name"\)'),
        ("RevisionNotFoundError", "404: no such revision", r'tk\.load\("some/model", revision="main"\)'),
        ("LocalEntryNotFoundError", "check your connection", r'tk\.load\("some/model"\), with a network'),
    ],
)
def test_the_hub_s_own_reason_is_given(error, says, line, monkeypatch, tmp_path):
    """diffusers covers it with a guess of its own."""
    from huggingface_hub import errors

    kind = getattr(errors, error)
    told = type(error, (kind,), {"__module__": kind.__module__, "__str__": lambda self: says})

    def refuse(*_: object, **__: object):
        raise told.__new__(told)  # its __init__ wants the answer of a server

    monkeypatch.setattr(diffusers.configuration_utils, "hf_hub_download", refuse)
    with pytest.raises(OSError, match=rf"source='some/model': {says}.*Try: {line}"):
        tk.load("some/model", cache_dir=tmp_path)


def test_a_folder_of_a_variant_says_so(tmp_path):
    with tiny.quiet():
        tiny.PIPELINES["sd1"]().save_pretrained(tmp_path / "pipe", variant="fp16")
    with pytest.raises(OSError, match=r'source=.*Try: tk\.load\(".*pipe", variant="fp16"\)'):
        tk.load(tmp_path / "pipe")
    assert tk.load(tmp_path / "pipe", variant="fp16").network.dtype == torch.float32


def test_what_checks_pictures_is_not_read(saved, tmp_path):
    """The index of Stable Diffusion 1 names a safety checker, which runs nothing here."""
    folder = copied(saved("sd1"), tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (folder / "model_index.json").write_text(json.dumps({**index, "requires_safety_checker": True}))
    assert tk.load(folder).fingerprint == tk.load(saved("sd1")).fingerprint


def test_any_pipeline_around_a_network_that_is_known(saved):
    """Its denoiser counts, and not what the pipeline is for; and any scheduler with betas."""
    parts = tiny.read(saved("sd1 pndm")).components
    other = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    model, want = tk.load(other), tk.load(saved("sd1"))
    assert model.name == "StableDiffusionImg2ImgPipeline"
    assert model.levels.describe() == want.levels.describe()
    got, wanted = (tk.guide(each, "a cat", cfg=3.0).denoise(X, 1.0).x0 for each in (model, want))
    assert torch.equal(got, wanted)
    plain = tk.load(tiny.ddpm(diffusers.DDPMPipeline))
    assert plain.levels.sigma_max == pytest.approx(157.4, rel=1e-3)


@pytest.mark.parametrize("option", ["trust_remote_code", "custom_pipeline", "custom_revision"])
def test_no_code_of_a_repository_runs(option, saved):
    with pytest.raises(ValueError, match=rf"{option}=.*no code of a repository.*Try: tk\.load"):
        tk.load(saved("sd1"), **{option: "somebody/code"})


@pytest.mark.parametrize("asked", [{"max_rows": 0}, {"max_rows": 2.5}, {"max_rows": True}, {"compile": 1},
                                   {"guidance": "much"}, {"guidance": float("nan")}, {"dtype": "float16"},
                                   {"dtype": torch.int64}, {"device": "gpu"}])  # fmt: skip
def test_bad_options_are_refused(asked, saved):
    with pytest.raises((ValueError, TypeError), match=rf"{next(iter(asked))}=.*Try: tk\.load"):
        tk.load(saved("sd1"), **asked)


@pytest.mark.parametrize("which", ["a part", "the pipeline"])
def test_no_code_of_a_folder_runs(which, saved, tmp_path):
    folder = copied(saved("sd1"), tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    if which == "a part":
        index["unet"], place = ["odd", "UNet2DConditionModel"], folder / "unet"
    else:
        index["_class_name"], place = ["odd", "StableDiffusionPipeline"], folder
    (place / "odd.py").write_text("raise SystemExit('this ran')")
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"source=.*no code of a repository.*Try: tk\.load"):
        tk.load(folder)


def test_options_that_are_passed_over_are_refused(saved):
    folder = saved("sd1")
    with pytest.raises(
        ValueError, match=r"option='variants'.*no such option.*Try: tk\.load\(source, variant="
    ):
        tk.load(folder, variants="fp16")
    with pytest.raises(TypeError, match=r"torch_dtype=.*Try: tk\.load\(.*, dtype=torch\.bfloat16\)"):
        tk.load(folder, torch_dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"variant='fp16'.*in memory.*Try: tk\.load\(pipe\)"):
        tk.load(tiny.read(folder), variant="fp16")
    assert tk.load(folder, safety_checker=None, requires_safety_checker=False).name == str(folder)


def test_a_file_that_is_no_whole_model_says_what_it_lacks(saved, tmp_path):
    """A network alone, a file cut short, one of another family, a config that is not there."""
    held, file = checkpoint(tiny.read(saved("sd1"))), tmp_path / "model.safetensors"
    save_file({name: weight for name, weight in held.items() if name.startswith("model.")}, file)
    with pytest.raises(
        ValueError, match=r"source=.*CLIPTextModel.*missing.*Try: tk\.load\(.*text_encoder=pipe"
    ):
        tk.load(file, config=saved("sd1"))
    parts = tiny.read(saved("sd1"))
    model = tk.load(file, config=saved("sd1"), text_encoder=parts.text_encoder, vae=parts.vae)
    assert model.fingerprint == tk.load(parts).fingerprint
    save_file(held, file)
    with pytest.raises(ValueError, match=r"source=.*expected shape.*Try: tk\.load\(.*config="):
        tk.load(file, config=saved("sdxl"))
    with pytest.raises(ValueError, match=r"config='.*nowhere'.*neither a folder.*Try: tk\.load\(.*config="):
        tk.load(file, config=tmp_path / "nowhere")
    file.write_bytes(file.read_bytes()[:5000])
    for asked in ({}, {"config": saved("sd1")}):
        with pytest.raises((OSError, ValueError), match=r"source='.*model\.safetensors'.*cut short"):
            tk.load(file, **asked)
    with pytest.raises(ValueError, match=r"option='variants'.*no such option"):
        tk.load(file, config=saved("sd1"), variants="fp16")


def test_what_a_pipeline_lacks_is_asked_for(saved):
    """Text encoders and autoencoder may be left out; prompts that are encoded already do without."""
    bare = tk.load(saved("sd1"), text_encoder=None, tokenizer=None, vae=None)
    whole = tk.load(saved("sd1"))
    with pytest.raises(ValueError, match=r"prompt='a cat'.*without a text encoder.*Try: prompt=other\.cond"):
        tk.guide(bare, "a cat", negative=whole.condition(None))
    encoded = [whole.condition("a cat"), whole.condition(None, negative=True)]
    got = tk.guide(bare, *encoded, cfg=3.0).denoise(X, 1.0).x0
    assert torch.equal(got, tk.guide(whole, "a cat", cfg=3.0).denoise(X, 1.0).x0)
    for call in (lambda: bare.encode(torch.zeros(64, 64, 3)), lambda: bare.decode(X)):
        with pytest.raises(ValueError, match=r"pipe\.vae=None.*autoencoder.*Try: pipe\.vae = "):
            call()
    parts = whole.pipe.components
    odd = diffusers.LDMTextToImagePipeline(
        parts["vae"], parts["text_encoder"], parts["tokenizer"], parts["unet"], parts["scheduler"]
    )
    with pytest.raises(ValueError, match=r"source='LDMTextToImagePipeline'.*prompts.*Try: tk\.load"):
        tk.load(odd)


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3", "flux schnell", "dit", "ddpm"])
def test_guidance_that_no_network_is_told_is_refused(name, saved):
    with pytest.raises(ValueError, match=r"guidance=3\.5.*not distilled.*Try: tk\.sample\(model, cfg="):
        tk.load(saved(name), guidance=3.5)


def test_classes_without_one_for_none():
    """A network of pixels by class: its labels at cfg 1; guidance asks for a negative."""
    pipe = tiny.ddpm(classes=5)
    model, x = tk.load(pipe), torch.ones((2, 3, 16, 16), dtype=torch.float64)
    time = torch.tensor([int(model.levels.time(1.0))] * 2)
    with torch.no_grad():
        out = pipe.unet((x / 2**0.5).float(), time, class_labels=torch.tensor([1, 3])).sample.double()
    assert torch.allclose(tk.guide(model, [1, 3]).denoise(x, 1.0).x0, x - out, atol=1e-5)
    guided = tk.guide(model, [1, 3], negative=0, cfg=2.0).denoise(x, 1.0)
    assert torch.allclose(guided.uncond, tk.guide(model, 0).denoise(x, 1.0).x0, atol=1e-5)
    with pytest.raises(ValueError, match=r"negative=None: guidance needs one.*Try: negative=0"):
        tk.sample(model, prompt=[1, 3], cfg=2.0, steps=2, progress=False)
    with pytest.raises(ValueError, match=r"prompt=None: a class label from 0 to 4.*Try: prompt=3"):
        tk.sample(model, steps=2, progress=False)


def test_a_list_of_prompts_is_as_long_as_the_batch(saved):
    with pytest.raises(ValueError, match=r"prompt=.*one a sample.*Try: prompt="):
        tk.sample(tk.load(saved("sd1")), shape=X.shape, prompt=["a cat", "a dog"], progress=False)


def test_schedulers_without_levels_are_refused():
    pipe = tiny.ddpm()
    pipe.scheduler = diffusers.KarrasVeScheduler()
    with pytest.raises(ValueError, match=r"pipe\.scheduler=.*KarrasVeScheduler.*Try: pipe\.scheduler = "):
        tk.load(pipe)
