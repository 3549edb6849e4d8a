"""The values that ComfyUI's interface saves without names: which place is which, node by node. No torch here.

A layout is the list of a node's widgets in one of its versions, the newest first. A list of values is
understood if a layout has as many places and every value is of its kind; else it is refused, never guessed.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

CONTROLS = ("fixed", "increment", "decrement", "randomize", "increment-wrap")


def _whole(v: Any) -> bool:
    return not isinstance(v, bool) and (isinstance(v, int) or (isinstance(v, float) and v.is_integer()))


def _number(v: Any) -> bool:
    return not isinstance(v, bool) and isinstance(v, (int, float)) and math.isfinite(v)


def _text(v: Any) -> bool:
    return isinstance(v, str)


def _switch(v: Any) -> bool:
    return isinstance(v, bool)


def _control(v: Any) -> bool:
    return v in CONTROLS if isinstance(v, str) else isinstance(v, bool)  # the oldest files have True, False


def _one_of(*names: str) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, str) and v in names


ON_OFF = _one_of("enable", "disable")
# name of a widget -> what its values are; text where it is not named here
KINDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(
        ("seed", "noise_seed", "steps", "start_at_step", "end_at_step", "width", "height", "batch_size",
         "step_increment", "overlap_factor", "seed_2nd", "base_only_steps", "variation_seed", "batch_index",
         "length", "amount", "grow_mask_by", "step", "x", "y", "crop_w", "crop_h", "target_width",
         "target_height", "stop_at_clip_layer"), _whole),
    **dict.fromkeys(
        ("cfg", "denoise", "strength", "factor", "multiplier", "scale_by", "value", "sigma_factor",
         "sigma_max", "sigma_min", "rho", "guidance", "strength_model", "strength_clip", "variation_strength",
         "additional_sigma_ratio"), _number),
    **dict.fromkeys(("restore_latent", "add_noise:switch", "return_with_leftover_noise:switch",
                     "normalize:switch", "resize_source"), _switch),
    **dict.fromkeys(("normalize", "add_noise", "return_with_leftover_noise"), ON_OFF),
    "control": _control,
    "seed_2nd_mode": _one_of("ignore", "fixed", "seed+seed_2nd", "seed-seed_2nd", "increment", "decrement",
                             "randomize"),
    "source": _one_of("CPU", "GPU"),
    "variation_method": _one_of("linear", "slerp"),
}  # fmt: skip

KSAMPLER = "seed control? steps cfg sampler_name scheduler denoise"
ADVANCED = (
    "add_noise noise_seed control? steps cfg sampler_name scheduler start_at_step end_at_step "
    "return_with_leftover_noise"
)
UNSAMPLER = (
    "steps end_at_step cfg sampler_name scheduler normalize",
    "steps end_at_step cfg sampler_name scheduler",
)
REGIONAL = "additional_mode additional_sampler additional_sigma_ratio"

# a "?" marks what may be missing; after "..." come values that do not matter; ":switch" is a True or False
LAYOUTS: dict[str, tuple[str, ...]] = {
    "KSampler": (KSAMPLER,),
    "KSamplerAdvanced": (ADVANCED,),
    "ImpactKSamplerBasicPipe": (KSAMPLER + " ...",),
    "ImpactKSamplerAdvancedBasicPipe": (ADVANCED.replace("add_noise", "add_noise:switch").replace(
        "return_with_leftover_noise", "return_with_leftover_noise:switch") + " ...",),
    "SamplerCustom": ("add_noise:switch noise_seed control? cfg",),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler steps denoise", "scheduler steps"),
    "KarrasScheduler": ("steps sigma_max sigma_min rho",),
    "SplitSigmas": ("step",),
    "RandomNoise": ("noise_seed control?",),
    "CFGGuider": ("cfg",),
    # the project's five, and what feeds them
    "BNK_Unsampler": UNSAMPLER,
    "easy unSampler": UNSAMPLER,
    "Batch Unsampler": (
        "sampler_name scheduler steps start_at_step end_at_step normalize:switch",
        "sampler_name scheduler steps start_at_step end_at_step",
        "steps end_at_step step_increment cfg sampler_name scheduler normalize",
    ),
    "RegionalSamplerAdvanced": (
        "add_noise:switch noise_seed control? steps start_at_step end_at_step overlap_factor restore_latent "
        f"return_with_leftover_noise:switch {REGIONAL}",
        "add_noise:switch noise_seed control? steps start_at_step end_at_step overlap_factor restore_latent "
        "return_with_leftover_noise:switch",
    ),
    "RegionalSampler": (
        "seed control? seed_2nd control? seed_2nd_mode steps base_only_steps denoise overlap_factor "
        f"restore_latent {REGIONAL}",
        "seed control? seed_2nd control? seed_2nd_mode steps base_only_steps denoise overlap_factor "
        "restore_latent",
        "seed control? steps denoise overlap_factor",
    ),
    "KSamplerAdvancedProvider": ("cfg sampler_name scheduler sigma_factor", "cfg sampler_name scheduler"),
    "RegionalPrompt": ("variation_seed control? variation_strength variation_method", ""),
    # models and prompts
    "CheckpointLoaderSimple": ("ckpt_name",),
    "CheckpointLoader": ("config_name ckpt_name",),
    "UNETLoader": ("unet_name weight_dtype", "unet_name"),
    "UnetLoaderGGUF": ("unet_name",),
    "DiffusersLoader": ("model_path",),
    "LoraLoader": ("lora_name strength_model strength_clip",),
    "LoraLoaderModelOnly": ("lora_name strength_model",),
    "VAELoader": ("vae_name",),
    "CLIPLoader": ("clip_name type device", "clip_name type", "clip_name"),
    "DualCLIPLoader": ("clip_name1 clip_name2 type device", "clip_name1 clip_name2 type"),
    "TripleCLIPLoader": ("clip_name1 clip_name2 clip_name3",),
    "CLIPSetLastLayer": ("stop_at_clip_layer",),
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeSDXL": ("width height crop_w crop_h target_width target_height text_g text_l",),
    "CLIPTextEncodeSDXLRefiner": ("ascore:number width height text",),
    "CLIPTextEncodeSD3": ("clip_l clip_g t5xxl empty_padding",),
    "CLIPTextEncodeFlux": ("clip_l t5xxl guidance",),
    "FluxGuidance": ("guidance",),
    # pictures, masks, latents
    "LoadImage": ("image ...",),
    "LoadImageMask": ("image channel ...",),
    "LoadLatent": ("latent ...",),
    "EmptyLatentImage": ("width height batch_size",),
    "EmptySD3LatentImage": ("width height batch_size",),
    "VAEEncodeForInpaint": ("grow_mask_by",),
    "SolidMask": ("value width height",),
    "ImageToMask": ("channel",),
    "ImageScale": ("upscale_method width height crop",),
    "ImageScaleBy": ("upscale_method scale_by",),
    "LatentUpscale": ("upscale_method width height crop",),
    "LatentUpscaleBy": ("upscale_method scale_by",),
    "LatentFromBatch": ("batch_index length",),
    "RepeatLatentBatch": ("amount",),
    "LatentMultiply": ("multiplier",),
    "BNK_NoisyLatentImage": ("source seed control? width height batch_size",),
    "BNK_DuplicateBatchIndex": ("batch_index batch_size",),
    "BNK_SlerpLatent": ("factor",),
    "BNK_GetSigma": ("sampler_name scheduler steps start_at_step end_at_step",),
    "BNK_InjectNoise": ("strength",),
}  # fmt: skip
# names that nodes had before, or have in another pack
ALIASES = {
    "Unsampler": "BNK_Unsampler", "NoisyLatentImage": "BNK_NoisyLatentImage", "GetSigma": "BNK_GetSigma",
    "DuplicateBatchIndex": "BNK_DuplicateBatchIndex", "LatentSlerp": "BNK_SlerpLatent",
    "InjectNoise": "BNK_InjectNoise", "BatchUnsampler": "Batch Unsampler", "easy unsampler": "easy unSampler",
}  # fmt: skip


class Refused(Exception):
    """A list of values of no layout that is known; the message says what it is and what is known."""


def kind_of(name: str) -> str:
    """The type by which a node is known here."""
    return ALIASES.get(name, name)


def named(kind: str, values: Any, widgets: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of a node by name.

    Parameters
    ----------
    kind : str
        Its type.
    values : list, dict or None
        As saved.
    widgets : tuple of str
        The names that newer files have beside them; of nodes that are not in the table they are all there is.

    Raises
    ------
    Refused
        Where no layout fits.
    """
    if values is None:
        return {}
    if isinstance(values, Mapping):
        return {str(name): value for name, value in values.items()}
    values = list(values) if isinstance(values, list) else [values]
    layouts = LAYOUTS.get(kind_of(kind))
    if layouts is None:
        return _by_widgets(values, widgets)
    for layout in layouts:
        found = _fitted(layout.split(), values)
        if found is not None:
            return found
    if values == []:  # all were turned into inputs, or the file has them nowhere
        return {}
    known = "; or ".join(_said(layout) for layout in layouts)
    shown = repr(values)
    shown = shown if len(shown) <= 120 else shown[:117] + "..."
    raise Refused(f"its {len(values)} values {shown} are of no version of this node that is known: {known}")


def _said(layout: str) -> str:
    """A layout for people."""
    return (
        ", ".join(part.removesuffix(":switch").removesuffix(":number") for part in layout.split()) or "none"
    )


def _fitted(layout: list[str], values: list[Any]) -> dict[str, Any] | None:
    """The values by the names of a layout; None where they do not fit."""
    if not layout:
        return {} if not values else None
    part, rest = layout[0], layout[1:]
    if part == "...":
        return {}
    name, kind = part.removesuffix("?").split(":")[0], part.removesuffix("?")
    check = _number if kind.endswith(":number") else KINDS.get(kind, KINDS.get(name, _text))
    if values and check(values[0]):
        found = _fitted(rest, values[1:])
        if found is not None:
            value = int(values[0]) if check is _whole else values[0]
            return found if name == "control" else {name: value, **found}
    return _fitted(rest, values) if part.endswith("?") else None


def _by_widgets(values: list[Any], widgets: tuple[str, ...]) -> dict[str, Any]:
    """Values of a node that is not known, by the names in its file if they are as many."""
    if len(widgets) != len(values):
        kept, left = [], list(widgets)
        for value in values:  # after a seed the interface saves what happens to it
            if left and not (isinstance(value, str) and value in CONTROLS and kept and "seed" in kept[-1]):
                kept.append(left.pop(0))
            else:
                kept.append("")
        if left or not widgets:
            return {f"value {k + 1}": value for k, value in enumerate(values)}
        widgets = tuple(kept)
    return {name: value for name, value in zip(widgets, values, strict=True) if name}
