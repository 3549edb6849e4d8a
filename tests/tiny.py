"""Tiny random pipelines of each family, made from configs without a network, and what they sample themselves.

Each has its VAE (8 x 8 pixels a latent), text encoders and tokenizers, survives being saved and loaded, and
its network's answer depends on the state, the level and the prompt.
"""

import contextlib
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
import transformers
from tokenizers import pre_tokenizers

SD_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS = {
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    "euler": (diffusers.EulerDiscreteScheduler, {"timestep_spacing": "leading", "steps_offset": 1}),
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}),
}
SIDE = 8  # latent pixels


def seeded(make: Callable[..., Any]) -> Callable[..., Any]:
    """A maker that leaves torch's global generator as it was, and makes the same weights each time."""

    @functools.wraps(make)
    def made(*args: Any, **options: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipe = make(*args, **options)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return made


def stirred(network: torch.nn.Module, by: float = 0.1) -> torch.nn.Module:
    """The network with every weight moved: several layers are zero when they are made, and hide the rest."""
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(by * torch.randn_like(weight))
    return network.eval()


# --- parts ----


def vae(channels: int = 4, scale: float = 0.18215, **options: Any) -> diffusers.AutoencoderKL:
    """Images of 3 channels to latents of `channels`, a pixel for 8 x 8."""
    return stirred(diffusers.AutoencoderKL(
        latent_channels=channels, block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=4, sample_size=8 * SIDE,
        scaling_factor=scale, **options,
    ), 0.02)  # fmt: skip


def clip_tokenizer(pad: str = "<|endoftext|>") -> transformers.CLIPTokenizer:
    """CLIP's, of single bytes: every character within a word and at its end, three merges, start and end."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "ca", "cat</w>", "do"]
    vocab = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    merges = [("c", "a"), ("ca", "t</w>"), ("d", "o")]
    return transformers.CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=77)


def clip_encoder(tokenizer: Any, projected: bool = False, hidden: int = 16) -> torch.nn.Module:
    """CLIP's text encoder, with the projection that SDXL and SD3 take their pooled prompt from."""
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=32, projection_dim=hidden,
        num_hidden_layers=2, num_attention_heads=2, hidden_act="gelu" if projected else "quick_gelu",
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return stirred(kind(config))


def t5_tokenizer() -> transformers.T5TokenizerFast:
    """T5's, of single characters, ended by </s>."""
    letters = [(chr(code), -2.0) for code in range(33, 127)]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *letters]
    return transformers.T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=512)


def t5_encoder(tokenizer: Any, hidden: int = 32) -> torch.nn.Module:
    return stirred(transformers.T5EncoderModel(transformers.T5Config(
        vocab_size=len(tokenizer), d_model=hidden, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu", is_encoder_decoder=False,
    )))  # fmt: skip


def scheduler(name: str, **options: Any) -> Any:
    """A scheduler of Stable Diffusion by its short name, configured as its repositories do."""
    kind, usual = SCHEDULERS[name]
    return kind(**{**SD_BETAS, **usual, **options})


# --- pipelines ----


@seeded
def stable_diffusion(prediction: str = "epsilon", kind: str = "ddim", channels: int = 4, second: bool = False,
                     **options: Any) -> diffusers.StableDiffusionPipeline:  # fmt: skip
    """Stable Diffusion 1, or the `second`: linear projections, and as many channels a head everywhere.

    `kind` is a short name of `SCHEDULERS`, `options` what its config has otherwise; `channels` are those
    that the network sees: 9 in a pipeline that inpaints.
    """
    heads = (
        {"attention_head_dim": [1, 2], "use_linear_projection": True} if second else {"attention_head_dim": 2}
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=SIDE, in_channels=channels, out_channels=4, block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), layers_per_block=1, norm_num_groups=4,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=16, **heads,
    )  # fmt: skip
    words = clip_tokenizer("!" if second else "<|endoftext|>")
    return diffusers.StableDiffusionPipeline(
        vae(), clip_encoder(words), words, stirred(unet),
        scheduler(kind, prediction_type=prediction, **options),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


@seeded
def sdxl(
    force_zeros: bool = True, prediction: str = "epsilon", **options: Any
) -> diffusers.StableDiffusionXLPipeline:
    """Two text encoders, the second one's pooled prompt beside the sizes, a VAE that float16 overflows."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=SIDE, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2), attention_head_dim=(2, 4), use_linear_projection=True,
        cross_attention_dim=16 + 24, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    )  # fmt: skip
    first, second = clip_tokenizer(), clip_tokenizer("!")
    return diffusers.StableDiffusionXLPipeline(
        vae(scale=0.13025, force_upcast=True), clip_encoder(first), clip_encoder(second, True, 24), first,
        second, stirred(unet), scheduler("euler", prediction_type=prediction, **options),
        force_zeros_for_empty_prompt=force_zeros, add_watermarker=False,
    )  # fmt: skip


@seeded
def sd3(t5: bool = True, shift: float = 3.0) -> diffusers.StableDiffusion3Pipeline:
    """Three text encoders, or the two of CLIP alone: the third is often left out, being the largest."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=SIDE, patch_size=2, in_channels=16, out_channels=16, num_layers=2,
        num_attention_heads=2, attention_head_dim=8, joint_attention_dim=48, caption_projection_dim=16,
        pooled_projection_dim=16 + 24, pos_embed_max_size=16,
    )  # fmt: skip
    first, second, third = clip_tokenizer(), clip_tokenizer("!"), t5_tokenizer() if t5 else None
    return diffusers.StableDiffusion3Pipeline(
        stirred(transformer), diffusers.FlowMatchEulerDiscreteScheduler(shift=shift),
        flow_vae(1.5305, 0.0609),
        clip_encoder(first, True), first, clip_encoder(second, True, 24), second,
        t5_encoder(third, 48) if t5 else None, third,
    )  # fmt: skip


@seeded
def flux(guidance: bool = True) -> diffusers.FluxPipeline:
    """Flux dev, its guidance a number the network sees, its shift that of the size; or schnell."""
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4 * 16, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=16, guidance_embeds=guidance,
        axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    moved = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
    words, pieces = clip_tokenizer(), t5_tokenizer()
    return diffusers.FluxPipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(**(moved if guidance else {"shift": 1.0})),
        flow_vae(0.3611, 0.1159), clip_encoder(words), words, t5_encoder(pieces), pieces,
        stirred(transformer, 0.2),
    )  # fmt: skip


def flow_vae(scale: float, shift: float) -> diffusers.AutoencoderKL:
    """The VAE of a flow model: 16 channels, its mean taken off, no convolution between it and the latents."""
    return vae(16, scale, shift_factor=shift, use_quant_conv=False, use_post_quant_conv=False)


@seeded
def dit(channels: int = 4, learned: bool = False, classes: int = 1000, grey: bool = False,
        **options: Any) -> diffusers.DiTPipeline:  # fmt: skip
    """Class labels as prompts: 4 x 8 x 8 latents of 32 x 32 images."""
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, sample_size=SIDE, patch_size=2,
        in_channels=channels, out_channels=channels * (1 + learned), num_embeds_ada_norm=classes,
    )  # fmt: skip
    colours = 1 if grey else 3
    pixels = diffusers.AutoencoderKL(
        in_channels=colours, out_channels=colours, latent_channels=channels, block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4, scaling_factor=0.7,
    )  # fmt: skip
    labels = dict(enumerate(("zero", "one", "two", "three", "four")))
    asked = {**SD_BETAS, "clip_sample": False, **options}
    return diffusers.DiTPipeline(
        stirred(transformer), pixels, diffusers.DDIMScheduler(**asked), id2label=labels
    )


@seeded
def ddpm(kind: Any = diffusers.DDIMPipeline, classes: int | None = None, **options: Any) -> Any:
    """A network over pixels, 3 x 16 x 16, of some classes; `kind` may be `diffusers.DDPMPipeline`."""
    unet = diffusers.UNet2DModel(
        sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        attention_head_dim=4, num_class_embeds=classes,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    made = diffusers.DDIMScheduler if kind is diffusers.DDIMPipeline else diffusers.DDPMScheduler
    return kind(stirred(unet), made(**{"clip_sample": False, **options}))


ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
# name of a folder -> what is saved in it
PIPELINES = {
    "sd1": stable_diffusion,
    "sd1 euler": functools.partial(stable_diffusion, kind="euler"),
    "sd1 linspace": functools.partial(stable_diffusion, kind="euler", timestep_spacing="linspace"),
    "sd1 pndm": functools.partial(stable_diffusion, kind="pndm"),
    "sd1 inpaint": functools.partial(stable_diffusion, channels=9),
    "sd2": functools.partial(stable_diffusion, "v_prediction", second=True),
    "sd2 zero snr": functools.partial(stable_diffusion, "v_prediction", "euler", second=True, **ZERO_SNR),
    "sdxl": sdxl,
    "sd3": sd3,
    "flux dev": flux,
    "flux schnell": functools.partial(flux, guidance=False),
    "dit": dit,
    "ddpm": ddpm,
}


def save(name: str, folder: Path) -> Path:
    """`PIPELINES[name]` in a folder, as its repository would lie on a disk."""
    with quiet():
        PIPELINES[name]().save_pretrained(folder, safe_serialization=True)
    return folder


def read(folder: Path, **options: Any) -> Any:
    """The pipeline of a folder by diffusers itself."""
    with quiet():
        asked = {"local_files_only": True, "use_safetensors": True, "low_cpu_mem_usage": False, **options}
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **asked)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """diffusers and transformers without their bars and remarks."""
    homes = (diffusers.utils.logging, transformers.utils.logging)
    before = [(home, home.get_verbosity(), home.is_progress_bar_enabled()) for home in homes]
    for home in homes:
        home.set_verbosity_error()
        home.disable_progress_bar()
    try:
        yield
    finally:
        for home, verbosity, bars in before:
            home.set_verbosity(verbosity)
            if bars:
                home.enable_progress_bar()


# --- what a pipeline samples itself ----


class Reference(NamedTuple):
    """A pipeline's own run in the convention of our states: rows (sample, channel, y, x) in float64.

    On VE x = x0 + sigma eps, on FLOW x = (1 - sigma) x0 + sigma eps; `latent` is what the pipeline decodes,
    the last of `states` but for a factor; `outputs` are what its network predicted, guided. `sigmas` fall,
    one more than there are `timesteps`.
    """

    states: list[torch.Tensor]
    outputs: list[torch.Tensor]
    sigmas: list[float]
    timesteps: list[float]
    latent: torch.Tensor

    @property
    def start(self) -> torch.Tensor:
        return self.states[0]


def reference(pipe: Any, steps: int = 4, seed: int = 0, **call: Any) -> Reference:
    """Runs a pipeline as its users do, and sees what its scheduler is given and gives.

    `call` is the pipeline's own: prompt, guidance_scale, height, ...; `seed` draws the start.
    """
    seen, own = [], pipe.scheduler.step

    @functools.wraps(own)  # pipelines look at the names of its parameters
    def step(output: torch.Tensor, time: Any, sample: torch.Tensor, **options: Any) -> Any:
        made = own(output, time, sample, **options)
        seen.append((float(time), sample, output, made[0]))
        return made

    if "output_type" not in call:
        latents = "latents" in inspect.signature(pipe.__call__).parameters
        call = {**call, "output_type": "latent" if latents else "pt"}
    pipe.scheduler.step = step
    try:
        with quiet(), torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="__array__ implementation")  # in EulerDiscreteScheduler
            generator = torch.Generator().manual_seed(seed)
            pipe(num_inference_steps=steps, generator=generator, **call)
    finally:
        del pipe.scheduler.step
    sigmas, ours = levels(pipe.scheduler, steps)
    times, before, outputs, after = zip(*seen, strict=True)
    unpacked = [unpack(pipe, x, call) for x in (before[0], *after)]
    states = [factor * x for factor, x in zip(ours, unpacked, strict=True)]
    return Reference(states, [unpack(pipe, out, call) for out in outputs], sigmas, list(times), unpacked[-1])


def levels(scheduler: Any, steps: int) -> tuple[list[float], list[float]]:
    """Sigmas of a scheduler whose timesteps are set, and the factor at each that makes its state ours."""
    if not isinstance(scheduler, diffusers.DDIMScheduler):  # of Euler on either path the state is ours
        return scheduler.sigmas.double().tolist(), [1.0] * (steps + 1)
    times = scheduler.timesteps.tolist()
    last = times[-1] - scheduler.config.num_train_timesteps // steps  # as its `step` finds the one before
    kept = scheduler.alphas_cumprod.double()
    assert last < 0, "the final step goes to a level of the table"
    alphas = [*kept[times].tolist(), float(scheduler.final_alpha_cumprod)]
    return [math.sqrt((1 - a) / a) for a in alphas], [math.sqrt(1 / a) for a in alphas]


def unpack(pipe: Any, x: torch.Tensor, call: dict[str, Any]) -> torch.Tensor:
    """Latents as (sample, channel, y, x): Flux has rows of 2 x 2, DiT the two halves of its guidance."""
    if isinstance(pipe, diffusers.FluxPipeline):
        side = pipe.default_sample_size * pipe.vae_scale_factor
        height, width = call.get("height", side), call.get("width", side)
        x = pipe._unpack_latents(x, height, width, pipe.vae_scale_factor)
    if isinstance(pipe, diffusers.DiTPipeline):
        x = x[: len(call["class_labels"])]
    return x.double()
