"""What the wires that carry several things become, pipes and regional prompts, and the regional samplers.

No torch here.
"""

from typing import Any

from .dictionary import Made, expression, node
from .expressions import Expression, Parameter
from .graphs import Node
from .samplers import COMFY, sampled
from .translation import Skip, Translator, Value, role

# samplers that make their own levels; the node's one-step calls of the first are Euler's steps
AS_EULER = ("dpm_fast", "dpm_adaptive")
OLD_GROUP = "## make-basic_pipe"  # of ComfyUI-Workflow-Component: a checkpoint and two prompts
PIPE = ("model", "clip", "vae", "positive", "negative")
KINDS = dict(zip(PIPE, ("MODEL", "CLIP", "VAE", "CONDITIONING", "CONDITIONING"), strict=True))
PIXELS = 8  # of an image to a pixel of a latent


def _part(t: Translator, n: Node, name: str) -> Any:
    return t.prompt(n, name) if KINDS[name] == "CONDITIONING" else t.want(n, name, KINDS[name])


@node("ToBasicPipe", "ToBasicPipe_v2")
def to_basic_pipe(t: Translator, n: Node) -> Made:
    return [Value("BASIC_PIPE", {name: _part(t, n, name) for name in PIPE})]


@node("EditBasicPipe")
def edit_basic_pipe(t: Translator, n: Node) -> Made:
    given = {name: _part(t, n, name) for name in PIPE if name in n.inputs}
    return [Value("BASIC_PIPE", {**t.pipe(n, "basic_pipe"), **given})]


@node("FromBasicPipe")
def from_basic_pipe(t: Translator, n: Node) -> Made:
    pipe = t.pipe(n, "basic_pipe")
    model = pipe.get("model") or t.model_of(None, n)
    pipe = {"clip": None, "positive": None, "negative": None, "vae": model, **pipe, "model": model}
    return [Value(KINDS[name], pipe[name]) for name in PIPE]


@node("FromBasicPipe_v2")
def from_basic_pipe_v2(t: Translator, n: Node) -> Made:
    return [Value("BASIC_PIPE", t.pipe(n, "basic_pipe")), *from_basic_pipe(t, n)]


@node(OLD_GROUP)
def make_basic_pipe(t: Translator, n: Node) -> Made:
    """The component of that name: [checkpoint, prompt, negative prompt]."""
    values = n.values if isinstance(n.values, list) else []
    if len(values) != 3 or not all(isinstance(value, str) for value in values):
        raise Skip(f"its values {values!r:.80} are not those of a checkpoint and two prompts")
    model = t.model_of(values[0], n)
    positive, negative = (Parameter("text", n.id, text) for text in values[1:])
    prompts = {"positive": role(positive, "positive"), "negative": role(negative, "negative")}
    return [Value("BASIC_PIPE", {"model": model, "clip": None, "vae": model, **prompts})]


@node("easy fullLoader", "easy comfyLoader", "easy a1111Loader", "easy fluxLoader")
def easy_loader(t: Translator, n: Node) -> Made:
    """Easy-Use's loaders hold a checkpoint, both prompts and an empty latent; older ones name nothing."""
    if "ckpt_name" not in n.inputs:
        raise Skip("its values have no names in this file, and their order changed often")
    model = t.model_of(str(n.inputs["ckpt_name"]), n)
    if n.inputs.get("lora_name", "None") not in ("None", None):
        t.remark(n, f"the model is used as loaded, without its LoRA {n.inputs['lora_name']!r}")
    pipe = {"model": model, "clip": None, "vae": model}
    for name in ("positive", "negative"):
        given = t.prompt(n, f"optional_{name}") or t.want(n, name, "VALUE")
        base = "prompt" if name == "positive" else "negative_prompt"
        pipe[name] = Parameter(base, n.id, given) if isinstance(given, str) else given
    sizes = {"width": t.setting(n, "empty_latent_width"), "height": t.setting(n, "empty_latent_height"),
             "batch_size": t.setting(n, "batch_size")}  # fmt: skip
    given = {"model": model, **{k: v for k, v in sizes.items() if v is not None}}
    pipe["samples"] = t.call(n, "tk.comfy.nodes.empty_latent_image", given, "latent")
    return [Value("PIPE_LINE", pipe), Value("MODEL", model), Value("VAE", model)]


@node("easy pipeOut")
def easy_pipe_out(t: Translator, n: Node) -> Made:
    pipe = t.pipe(n, "pipe")
    model = pipe.get("model") or t.model_of(None, n)
    return [Value("PIPE_LINE", pipe), Value("MODEL", model), Value("CONDITIONING", pipe.get("positive")),
            Value("CONDITIONING", pipe.get("negative")), Value("LATENT", pipe.get("samples")),
            Value("VAE", model), Value("CLIP", None)]  # fmt: skip


# --- regions --------------------------------------------------------------------------------------


@node("KSamplerAdvancedProvider", "KSamplerProvider")
def provider(t: Translator, n: Node) -> Made:
    pipe = t.pipe(n, "basic_pipe")
    for name in ("sampler_opt", "scheduler_func_opt"):
        if name in n.inputs:
            t.remark(n, f"its {name} is not taken: sampler and scheduler are those of its widgets")
    settings = t.settings(n, "cfg", "sampler_name", "scheduler", "sigma_factor")
    return [Value("KSAMPLER_ADVANCED", {**pipe, "settings": settings})]


@node("RegionalPrompt")
def regional_prompt(t: Translator, n: Node) -> Made:
    sampler = t.want(n, "advanced_sampler", "KSAMPLER_ADVANCED")
    if not isinstance(sampler, dict):
        raise Skip(f"its sampler is not known: {getattr(sampler, 'why', 'nothing is linked there')}")
    mask = t.want(n, "mask", "MASK")
    if mask is None:
        raise Skip("nothing is linked to its input mask")
    varied = t.settings(n, "variation_seed", "variation_strength", "variation_method")
    return [Value("REGIONAL_PROMPTS", [{"mask": mask, "sampler": sampler, "varied": varied}])]


@node("CombineRegionalPrompts")
def combine_regional_prompts(t: Translator, n: Node) -> Made:
    found = [t.want(n, name, "REGIONAL_PROMPTS") for name in n.inputs]
    lost = [one.why for one in found if not isinstance(one, list)]
    if lost:
        t.remark(n, f"a region is missing: {'; '.join(lost)}")
    return [Value("REGIONAL_PROMPTS", [region for one in found if isinstance(one, list) for region in one])]


def _regions(t: Translator, n: Node) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The base sampler and the regions of a regional sampler."""
    base, regions = (
        t.want(n, "base_sampler", "KSAMPLER_ADVANCED"),
        t.want(n, "regional_prompts", "REGIONAL_PROMPTS"),
    )
    if not isinstance(base, dict):
        raise Skip(f"its base sampler is not known: {getattr(base, 'why', 'nothing is linked there')}")
    if not isinstance(regions, list) or not regions:
        raise Skip(f"its regions are not known: {getattr(regions, 'why', 'nothing is linked there')}")
    model = base.get("model") or t.model_of(None, n)
    if any(region["sampler"].get("model") not in (None, model) for region in regions):
        t.remark(n, "a region has a model of its own, and the base's is used everywhere")
    return {**base, "model": model}, regions


def _sampler(sampler: dict[str, Any]) -> Expression:
    prompts = {name: sampler.get(name) for name in ("positive", "negative")}
    given = {"positive": prompts["positive"], "negative": prompts["negative"], **sampler["settings"]}
    return Expression(COMFY + "KSamplerAdvanced", given)


@node("RegionalSamplerAdvanced")
def regional_sampler_advanced(t: Translator, n: Node) -> Made:
    base, regions = _regions(t, n)
    names = ("add_noise", "noise_seed", "steps", "start_at_step", "end_at_step", "overlap_factor")
    settings = t.settings(n, *names, "restore_latent", "return_with_leftover_noise")
    settings["base_sampler"] = _sampler(base)
    settings["regional_prompts"] = [
        Expression(
            COMFY + "RegionalPrompt",
            {"mask": one["mask"], "sampler": _sampler(one["sampler"]), **one["varied"]},
        )
        for one in regions
    ]
    settings |= t.settings(n, "additional_mode", "additional_sampler", "additional_sigma_ratio")
    latent = t.want(n, "latent_image", "LATENT")
    return [
        sampled(t, n, "regional_sampler_advanced", {"model": base["model"]}, settings, latent, "regional")
    ]


@node("RegionalSampler")
def regional_sampler(t: Translator, n: Node) -> Made:
    """`tk.regional` in steps, which does what the node is for; not the node's numbers."""
    base, regions = _regions(t, n)
    latent = t.want(n, "samples", "LATENT")
    if latent is None:
        raise Skip("nothing is linked to its latent")
    model, own = base["model"], base["settings"]
    steps, seed = t.setting(n, "steps", 20), t.setting(n, "seed", 0)
    denoise = t.setting(n, "denoise", 1.0)
    alone = n.inputs.get("base_only_steps", 0)
    count = getattr(steps, "value", steps)
    strength = 1.0
    if isinstance(alone, int) and isinstance(count, int) and 0 < alone < count:
        strength = round(1.0 - alone / count, 6)
    growth = n.inputs.get("overlap_factor", 10)
    growth = round(growth / 2 / PIXELS, 3) if isinstance(growth, (int, float)) else 0.0
    called = _solver(t, n, own.get("sampler_name", "euler"))
    given = {
        "model": model,
        "regions": [_region(t, n, one, strength, growth) for one in regions],
        "start": expression("model_space", model=model, samples=latent),
        "mode": "step",
        "prompt": base.get("positive"),
        "negative": base.get("negative"),
        "cfg": own.get("cfg", 8.0),
        "solver": called,
        "sigmas": expression("basic_scheduler", model=model, scheduler=own.get("scheduler", "simple"),
                             steps=steps, denoise=denoise),
        "noise": expression("seed_noise", samples=latent, seed=seed),
        "seed": seed,
        "progress": False,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    why = "tk.regional does what this node is for, in one pass; the numbers are its own, not the node's"
    schedulers = {
        _plain(s["settings"].get("scheduler")) for s in (base, *(one["sampler"] for one in regions))
    }
    why += "; all regions step on the schedule of the base" if len(schedulers) > 1 else ""
    second = n.inputs.get("seed_2nd_mode", "ignore")
    why += f"; its second seed ({second}) is not taken" if second != "ignore" else ""
    t.remark(n, why)
    run = t.call(n, "tk.regional", given, "regional")
    return [Value("LATENT", expression("output", run=run, latent=latent))]


def _plain(given: Any) -> Any:
    return getattr(given, "value", given)


def _solver(t: Translator, n: Node, given: Any) -> Any:
    """The solver of a part; of some the node's own steps are Euler's."""
    if _plain(given) in AS_EULER:
        t.remark(n, f"{_plain(given)} makes levels of its own, so euler stands for it")
        return "euler"
    return given


def _region(t: Translator, n: Node, one: dict[str, Any], strength: float, growth: float) -> Expression:
    sampler, settings, varied = one["sampler"], one["sampler"]["settings"], one["varied"]
    given = {"mask": one["mask"], "prompt": sampler.get("positive"), "negative": sampler.get("negative"),
             "cfg": settings.get("cfg", 8.0), "solver": _solver(t, n, settings.get("sampler_name", "euler")),
             "strength": strength if strength < 1 else None, "grow": growth or None}  # fmt: skip
    if varied.get("variation_strength"):
        given |= {"seed": varied.get("variation_seed", 0), "noise_strength": varied["variation_strength"],
                  "noise_method": varied.get("variation_method", "linear")}  # fmt: skip
    return Expression("tk.Region", {name: value for name, value in given.items() if value is not None})
