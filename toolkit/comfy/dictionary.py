"""What each node of ComfyUI becomes: loaders, prompts, pictures, masks, latents, samplers. No torch here.

A function (translator, node) -> its outputs. Samplers are in `samplers`, regions and pipes in `bundles`.
"""

import re
from collections.abc import Callable
from typing import Any

from .expressions import Expression, Parameter, Token
from .graphs import Node
from .translation import Skip, Translator, Value
from .widgets import kind_of

Made = list[Value]
NODES = "tk.comfy.nodes."
TABLE: dict[str, Callable[[Translator, Node], Made]] = {}
# nodes that change nothing in what is sampled
SHOWS = (
    "SaveImage", "PreviewImage", "SaveLatent", "PreviewLatent", "PreviewAny", "MaskPreview",
    "MaskPreview+", "SaveImageWebsocket", "PreviewBridge", "Image Comparer (rgthree)", "SaveAnimatedWEBP",
    "SaveImagePlus", "easy showAnything", "ShowText|pysssss", "Display Any (rgthree)",
    "LatentBatchStatisticsPlot", "LatentBatchComparator", "SaveImageAdvanced", "Image Save",
)  # fmt: skip
# nodes that hold one value, by the name of its input
LITERALS = ("value", "text", "string", "seed", "int", "float", "Number", "number", "Text", "String", "val")
LITERAL_NODES = (
    "PrimitiveInt", "PrimitiveFloat", "PrimitiveString", "PrimitiveStringMultiline", "PrimitiveBoolean",
    "INTConstant", "FloatConstant", "StringConstant", "StringConstantMultiline", "Seed (rgthree)",
    "easy seed", "easy int", "easy float", "easy string", "easy positive", "easy negative",
    "String Literal", "Int Literal", "Float Literal", "CR Seed", "CR Text", "CR Prompt Text",
    "Text Multiline", "Text Prompt (JPS)", "ImpactInt", "ImpactFloat", "Textbox", "Seed", "Int", "Float",
    "ttN text", "ttN seed", "ttN int", "ttN float", "Seed Generator", "JWInteger", "JWFloat", "JWString",
)  # fmt: skip
LOADERS = {"CheckpointLoaderSimple": "ckpt_name", "CheckpointLoader": "ckpt_name", "UNETLoader": "unet_name",
           "UnetLoaderGGUF": "unet_name", "DiffusersLoader": "model_path",
           "unCLIPCheckpointLoader": "ckpt_name", "CheckpointLoader|pysssss": "ckpt_name",
           "CheckpointLoaderSimpleWithNoiseSelect": "ckpt_name",
           "Checkpoint Loader": "ckpt_name"}  # fmt: skip
WEIGHTS = re.compile(r"(?<!\\)\([^()]+\)|\bembedding:\S+|<lora:[^>]*>")
STEP_DOWN = re.compile(r"\s*\[(input|output|temp)\]\s*$")


def node(*names: str) -> Callable:
    """Puts a function in the table."""

    def put(made: Callable[[Translator, Node], Made]) -> Callable[[Translator, Node], Made]:
        TABLE.update(dict.fromkeys(names, made))
        return made

    return put


def expression(function: str, **parameters: Any) -> Expression:
    return Expression(NODES + function, {k: v for k, v in parameters.items() if v is not None})


# --- loaders and prompts --------------------------------------------------------------------------


@node(*LOADERS)
def loader(t: Translator, n: Node) -> Made:
    name = t.setting(n, LOADERS[n.kind])
    if not isinstance(name, str):
        name = getattr(name, "value", None)
    model = t.model_of(name if isinstance(name, str) else None, n)
    return [Value("MODEL", model), Value("CLIP", None), Value("VAE", model)]


@node("VAELoader")
def vae_loader(t: Translator, n: Node) -> Made:
    raise Skip("the autoencoder of the pipeline is used")


@node("CLIPLoader", "DualCLIPLoader", "TripleCLIPLoader", "CLIPLoaderGGUF", "DualCLIPLoaderGGUF")
def clip_loader(t: Translator, n: Node) -> Made:
    raise Skip("the text encoders of the pipeline are used")


@node("LoraLoader", "LoraLoaderModelOnly")
def lora(t: Translator, n: Node) -> Made:
    raise Skip("the model is used as loaded, without this LoRA; diffusers' pipe.load_lora_weights adds it")


@node("CLIPSetLastLayer")
def clip_skip(t: Translator, n: Node) -> Made:
    raise Skip("the text encoder is used to its last layer")


@node("ModelSamplingSD3", "ModelSamplingAuraFlow", "ModelSamplingFlux", "ModelSamplingDiscrete")
def model_sampling(t: Translator, n: Node) -> Made:
    raise Skip("the model keeps the levels and the shift of its own scheduler's config")


def _text(t: Translator, n: Node, *names: str) -> Made:
    """A prompt, of the first of some inputs that says something."""
    texts = [t.want(n, name, "VALUE") for name in names]
    said = [text for text in texts if text is not None and text != ""]
    text = said[0] if said else ""
    if len({v if isinstance(v, str) else id(v) for v in said}) > 1:
        t.remark(n, f"one prompt goes to all text encoders, that of {names[texts.index(text)]}")
    plain = text if isinstance(text, str) else getattr(text, "value", None)
    found = WEIGHTS.search(plain) if isinstance(plain, str) else None
    if found:
        t.remark(n, f"it is read as plain text, weights and embeddings too, such as {found.group(0)!r}")
    if not isinstance(text, (str, Token)):
        text = str(text)
    return [Value("CONDITIONING", Parameter("text", n.id, text) if isinstance(text, str) else text)]


@node("CLIPTextEncode", "CLIPTextEncodeSDXLRefiner", "BNK_CLIPTextEncodeAdvanced", "smZ CLIPTextEncode",
      "CLIPTextEncodeLumina2", "ImpactWildcardEncode")  # fmt: skip
def text_encode(t: Translator, n: Node) -> Made:
    return _text(t, n, "text", "user_prompt", "populated_text")


@node("CLIPTextEncodeSDXL", "CLIPTextEncodeSDXL+")
def text_encode_sdxl(t: Translator, n: Node) -> Made:
    sizes = [n.inputs.get(name) for name in ("width", "height", "target_width", "target_height")]
    crop = [n.inputs.get(name, 0) for name in ("crop_w", "crop_h")]
    if crop != [0, 0] or sizes[:2] != sizes[2:]:
        t.remark(
            n, f"the sizes that SDXL is told are those of the picture, not {sizes[:2]}, {crop}, {sizes[2:]}"
        )
    return _text(t, n, "text_g", "text_l")


@node("CLIPTextEncodeSD3", "CLIPTextEncodeFlux")
def text_encode_several(t: Translator, n: Node) -> Made:
    if "guidance" in n.inputs:
        _guidance(t, n)
    return _text(t, n, "t5xxl", "clip_l", "clip_g")


def _guidance(t: Translator, n: Node) -> None:
    """What a distilled network is told is said where the model is loaded, once for all."""
    value = t.want(n, "guidance", "VALUE")
    told = t.guidance.setdefault("guidance", Parameter("guidance", n.id, value))
    if told.value != value:
        t.remark(n, f"one guidance is for the whole model, {told.value!r}, and not {value!r} here")


@node("FluxGuidance")
def flux_guidance(t: Translator, n: Node) -> Made:
    _guidance(t, n)
    return [Value("CONDITIONING", t.want(n, "conditioning", "CONDITIONING"))]


@node("ConditioningZeroOut")
def zero_out(t: Translator, n: Node) -> Made:
    t.remark(n, "its embeddings of zeros become None, the model's own answer without a prompt")
    return [Value("CONDITIONING", None)]


@node(*LITERAL_NODES)
def literal(t: Translator, n: Node) -> Made:
    names = [name for name in LITERALS if name in n.inputs] or list(n.inputs)
    if not names and isinstance(n.values, list) and n.values:
        found = n.values[0]
    else:
        found = t.want(n, names[0], "VALUE") if names else None
    if found is None:
        raise Skip("it holds no value")
    what = found if isinstance(found, (Token, Expression)) else Parameter("value", n.id, found)
    return [Value("VALUE", what)] * 2


@node(*SHOWS)
def shows(t: Translator, n: Node) -> Made:
    raise Skip("")


# --- pictures and masks ---------------------------------------------------------------------------


def _path(t: Translator, n: Node, name: str, base: str) -> Any:
    """The path of a file, without the name of the folder behind it."""
    found = t.setting(n, name)
    if isinstance(found, str):
        return Parameter(base, n.id, STEP_DOWN.sub("", found))
    if found is None:
        raise Skip("it names no file")
    return found


@node("LoadImage", "LoadImageOutput")
def load_image(t: Translator, n: Node) -> Made:
    image, mask = t.call(
        n, NODES + "load_image", {"image": _path(t, n, "image", "image_path")}, "image", "mask"
    )
    return [Value("IMAGE", image), Value("MASK", mask)]


@node("LoadImageMask")
def load_image_mask(t: Translator, n: Node) -> Made:
    given = {"image": _path(t, n, "image", "mask_path"), **t.settings(n, "channel")}
    return [Value("MASK", t.call(n, NODES + "load_image_mask", given, "mask"))]


@node("LoadLatent")
def load_latent(t: Translator, n: Node) -> Made:
    given = {"path": _path(t, n, "latent", "latent_path")}
    return [Value("LATENT", t.call(n, "tk.comfy.load_latent", given, "latent"))]


# type -> function, kind of the result, inputs (name: kind), settings
PLAIN: dict[str, tuple[str, str, dict[str, str], tuple[str, ...]]] = {
    "ImageToMask": ("image_to_mask", "MASK", {"image": "IMAGE"}, ("channel",)),
    "MaskToImage": ("mask_to_image", "IMAGE", {"mask": "MASK"}, ()),
    "SolidMask": ("solid_mask", "MASK", {}, ("value", "width", "height")),
    "InvertMask": ("invert_mask", "MASK", {"mask": "MASK"}, ()),
    "ImageScale": ("image_scale", "IMAGE", {"image": "IMAGE"},
                   ("upscale_method", "width", "height", "crop")),
    "ImageScaleBy": ("image_scale_by", "IMAGE", {"image": "IMAGE"}, ("upscale_method", "scale_by")),
    "SetLatentNoiseMask": ("set_latent_noise_mask", "LATENT", {"samples": "LATENT", "mask": "MASK"}, ()),
    "LatentFromBatch": ("latent_from_batch", "LATENT", {"samples": "LATENT"}, ("batch_index", "length")),
    "RepeatLatentBatch": ("repeat_latent_batch", "LATENT", {"samples": "LATENT"}, ("amount",)),
    "LatentUpscale": ("latent_upscale", "LATENT", {"samples": "LATENT"},
                      ("upscale_method", "width", "height", "crop")),
    "LatentUpscaleBy": ("latent_upscale_by", "LATENT", {"samples": "LATENT"},
                        ("upscale_method", "scale_by")),
    "LatentAdd": ("latent_add", "LATENT", {"samples1": "LATENT", "samples2": "LATENT"}, ()),
    "LatentSubtract": ("latent_subtract", "LATENT", {"samples1": "LATENT", "samples2": "LATENT"}, ()),
    "LatentMultiply": ("latent_multiply", "LATENT", {"samples": "LATENT"}, ("multiplier",)),
    "BNK_DuplicateBatchIndex": ("duplicate_batch_index", "LATENT", {"latents": "LATENT"},
                                ("batch_index", "batch_size")),
    "BNK_SlerpLatent": ("slerp_latent", "LATENT",
                        {"latents1": "LATENT", "latents2": "LATENT", "mask": "MASK"}, ("factor",)),
    "BNK_InjectNoise": ("inject_noise", "LATENT",
                        {"latents": "LATENT", "noise": "LATENT", "mask": "MASK"}, ("strength",)),
    "FlipSigmas": ("flip_sigmas", "SIGMAS", {"sigmas": "SIGMAS"}, ()),
    "KarrasScheduler": ("karras_scheduler", "SIGMAS", {}, ("steps", "sigma_max", "sigma_min", "rho")),
}  # fmt: skip
METHODS = ("nearest-exact", "area", "bilinear", "bicubic")
OPTIONAL = ("latents2", "noise")  # of the small nodes; a mask is optional where it is not all


def plain(t: Translator, n: Node) -> Made:
    """A small node that is a function of its own."""
    function, kind, inputs, settings = PLAIN[kind_of(n.kind)]
    method = n.inputs.get("upscale_method")
    if method is not None and method not in METHODS:
        raise Skip(f"resizing by {method!r} is not here, but {', '.join(METHODS)} are")
    given = {name: t.want(n, name, of) for name, of in inputs.items()}
    missing = [name for name, what in given.items() if what is None and name not in (*OPTIONAL, "mask")]
    if missing or (function == "set_latent_noise_mask" and given["mask"] is None):
        raise Skip(f"nothing is linked to its input {(missing or ['mask'])[0]}")
    given = {name: what for name, what in given.items() if what is not None} | t.settings(n, *settings)
    for name in ("width", "height", "batch_size"):  # of a picture that is resized: no parameters of the run
        if isinstance(given.get(name), Parameter):
            given[name] = given[name].value
    base = {"IMAGE": "image", "MASK": "mask", "LATENT": "latent", "SIGMAS": "sigmas"}[kind]
    return [Value(kind, t.call(n, NODES + function, given, base))]


TABLE.update(dict.fromkeys(PLAIN, plain))


@node("EmptyLatentImage", "EmptySD3LatentImage", "EmptyFlux2LatentImage")
def empty_latent(t: Translator, n: Node) -> Made:
    given = {"model": t.model_of(None, n), **t.settings(n, "width", "height", "batch_size")}
    return [Value("LATENT", t.call(n, NODES + "empty_latent_image", given, "latent"))]


@node("BNK_NoisyLatentImage")
def noisy_latent(t: Translator, n: Node) -> Made:
    if n.inputs.get("source") == "GPU":
        t.remark(n, "its noise is drawn on the CPU: a GPU's numbers depend on the GPU")
    names = ("source", "seed", "width", "height", "batch_size")
    given = {"model": t.model_of(None, n), **t.settings(n, *names)}
    return [Value("LATENT", t.call(n, NODES + "noisy_latent_image", given, "noise"))]


@node("BNK_GetSigma")
def get_sigma(t: Translator, n: Node) -> Made:
    names = ("sampler_name", "scheduler", "steps", "start_at_step", "end_at_step")
    given = {"model": t.model(n), **t.settings(n, *names)}
    return [Value("VALUE", t.call(n, NODES + "get_sigma", given, "strength"))]


@node("VAEEncode", "VAEEncodeTiled")
def vae_encode(t: Translator, n: Node) -> Made:
    given = {"model": t.want(n, "vae", "VAE") or t.model_of(None, n), "pixels": t.want(n, "pixels", "IMAGE")}
    return [Value("LATENT", t.call(n, NODES + "vae_encode", _linked(given, "pixels"), "latent"))]


@node("VAEEncodeForInpaint")
def vae_encode_for_inpaint(t: Translator, n: Node) -> Made:
    given = {"model": t.want(n, "vae", "VAE") or t.model_of(None, n), "pixels": t.want(n, "pixels", "IMAGE"),
             "mask": t.want(n, "mask", "MASK"), **t.settings(n, "grow_mask_by")}  # fmt: skip
    made = t.call(n, NODES + "vae_encode_for_inpaint", _linked(given, "pixels", "mask"), "latent")
    return [Value("LATENT", made)]


@node("VAEDecode", "VAEDecodeTiled")
def vae_decode(t: Translator, n: Node) -> Made:
    samples = t.want(n, "samples", "LATENT")
    if isinstance(samples, Expression) and samples.function == NODES + "output":
        samples = samples.parameters["run"]  # a run is decoded at its end
    given = {"model": t.want(n, "vae", "VAE") or t.model_of(None, n), "samples": samples}
    return [Value("IMAGE", t.call(n, NODES + "vae_decode", _linked(given, "samples"), "picture"))]


def _linked(given: dict[str, Any], *names: str) -> dict[str, Any]:
    """The parameters, if nothing is missing that the node cannot do without."""
    for name in names:
        if given[name] is None:
            raise Skip(f"nothing is linked to its input {name}")
    return given


# --- levels, noise, guiders -----------------------------------------------------------------------


@node("KSamplerSelect")
def sampler_select(t: Translator, n: Node) -> Made:
    return [Value("SAMPLER", t.setting(n, "sampler_name", "euler"))]


@node("BasicScheduler")
def basic_scheduler(t: Translator, n: Node) -> Made:
    given = {"model": t.model(n), **t.settings(n, "scheduler", "steps", "denoise")}
    return [Value("SIGMAS", t.call(n, NODES + "basic_scheduler", given, "sigmas"))]


@node("SplitSigmas")
def split_sigmas(t: Translator, n: Node) -> Made:
    given = _linked({"sigmas": t.want(n, "sigmas", "SIGMAS"), **t.settings(n, "step")}, "sigmas")
    high, low = t.call(n, NODES + "split_sigmas", given, "high_sigmas", "low_sigmas")
    return [Value("SIGMAS", high), Value("SIGMAS", low)]


@node("RandomNoise")
def random_noise(t: Translator, n: Node) -> Made:
    return [Value("NOISE", {"add_noise": True, "noise_seed": t.setting(n, "noise_seed", 0)})]


@node("DisableNoise")
def disable_noise(t: Translator, n: Node) -> Made:
    return [Value("NOISE", {"add_noise": False})]


@node("CFGGuider")
def cfg_guider(t: Translator, n: Node) -> Made:
    bound = {"model": t.model(n), "positive": t.prompt(n, "positive"), "negative": t.prompt(n, "negative")}
    return [Value("GUIDER", {**bound, "cfg": t.setting(n, "cfg", 8.0)})]


@node("BasicGuider")
def basic_guider(t: Translator, n: Node) -> Made:
    bound = {"model": t.model(n), "positive": t.prompt(n, "conditioning"), "negative": None}
    return [Value("GUIDER", {**bound, "cfg": 1.0})]
