"""What each sampler and unsampler of ComfyUI becomes. No torch here."""

from typing import Any

from .dictionary import Made, expression, node
from .expressions import Expression
from .graphs import Node
from .translation import Skip, Translator, Value

COMFY = "tk.comfy."
GRID = ("steps", "cfg", "sampler_name", "scheduler")
ADVANCED = ("add_noise", "noise_seed", *GRID, "start_at_step", "end_at_step", "return_with_leftover_noise")


def _bound(t: Translator, n: Node) -> dict[str, Any]:
    """Model and prompts of a sampler."""
    return {"model": t.model(n), "positive": t.prompt(n, "positive"), "negative": t.prompt(n, "negative")}


def sampled(t: Translator, n: Node, function: str, bound: dict[str, Any], settings: dict[str, Any],
            latent: Any, base: str) -> Value:  # fmt: skip
    """The call of a sampler, and the LATENT that it hands on."""
    if latent is None:
        raise Skip("nothing is linked to its latent")
    model, *prompts = bound.items()
    given = dict([model, *settings.items(), *((k, v) for k, v in prompts if v is not None)])
    run = t.call(n, COMFY + function, {**given, "latent_image": latent}, base)
    return Value("LATENT", expression("output", run=run, latent=_keys(latent)))


def _keys(latent: Any) -> Any:
    """Where the other keys of a LATENT come from: through samplers, which hand them on."""
    while isinstance(latent, Expression) and "latent" in latent.parameters:
        if latent.parameters["run"].base == "regional":  # which takes the mask off
            break
        latent = latent.parameters["latent"]
    return latent


@node("KSampler")
def ksampler(t: Translator, n: Node) -> Made:
    settings = t.settings(n, "seed", *GRID, "denoise")
    latent = t.want(n, "latent_image", "LATENT")
    return [sampled(t, n, "ksampler", _bound(t, n), settings, latent, "sampled")]


@node("KSamplerAdvanced")
def ksampler_advanced(t: Translator, n: Node) -> Made:
    latent = t.want(n, "latent_image", "LATENT")
    return [sampled(t, n, "ksampler_advanced", _bound(t, n), t.settings(n, *ADVANCED), latent, "sampled")]


@node("ImpactKSamplerBasicPipe", "ImpactKSamplerAdvancedBasicPipe")
def ksampler_pipe(t: Translator, n: Node) -> Made:
    pipe, latent = t.pipe(n, "basic_pipe"), t.want(n, "latent_image", "LATENT")
    bound = {"model": pipe.get("model") or t.model_of(None, n), "positive": pipe.get("positive"),
             "negative": pipe.get("negative")}  # fmt: skip
    advanced = "Advanced" in n.kind
    settings = t.settings(n, *ADVANCED) if advanced else t.settings(n, "seed", *GRID, "denoise")
    for name in ("add_noise", "return_with_leftover_noise"):
        if isinstance(settings.get(name), bool):
            settings[name] = "enable" if settings[name] else "disable"
    function = "ksampler_advanced" if advanced else "ksampler"
    made = sampled(t, n, function, bound, settings, latent, "sampled")
    return [Value("BASIC_PIPE", pipe), made, Value("VAE", bound["model"])]


@node("SamplerCustom")
def sampler_custom(t: Translator, n: Node) -> Made:
    settings = t.settings(n, "add_noise", "noise_seed", "cfg") | _custom(t, n)
    latent = t.want(n, "latent_image", "LATENT")
    made = sampled(t, n, "sampler_custom", _bound(t, n), settings, latent, "sampled")
    return [made, _denoised(made)]


def _denoised(made: Value) -> Value:
    """The second output of a custom sampler: x0 of its last step."""
    return Value("LATENT", expression("denoised_output", run=made.what.parameters["run"]))


@node("SamplerCustomAdvanced")
def sampler_custom_advanced(t: Translator, n: Node) -> Made:
    noise, guider = t.want(n, "noise", "NOISE"), t.want(n, "guider", "GUIDER")
    if not isinstance(guider, dict) or not isinstance(noise, dict):
        missing = "guider" if not isinstance(guider, dict) else "noise"
        why = getattr(t.want(n, missing, missing.upper()), "why", "nothing is linked there")
        raise Skip(f"its {missing} is not known: {why}")
    bound = {name: guider[name] for name in ("model", "positive", "negative")}
    settings = {**noise, "cfg": guider["cfg"], **_custom(t, n)}
    latent = t.want(n, "latent_image", "LATENT")
    made = sampled(t, n, "sampler_custom", bound, settings, latent, "sampled")
    return [made, _denoised(made)]


def _custom(t: Translator, n: Node) -> dict[str, Any]:
    """Sampler and levels of a custom sampler."""
    sampler, sigmas = t.want(n, "sampler", "SAMPLER"), t.want(n, "sigmas", "SIGMAS")
    if sigmas is None:
        raise Skip("nothing is linked to its sigmas")
    return ({} if sampler is None else {"sampler": sampler}) | {"sigmas": sigmas}


@node("BNK_Unsampler")
def unsampler(t: Translator, n: Node) -> Made:
    settings = t.settings(n, "steps", "end_at_step", "cfg", "sampler_name", "scheduler", "normalize")
    latent = t.want(n, "latent_image", "LATENT")
    return [sampled(t, n, "unsampler", _bound(t, n), settings, latent, "unsampled")]


@node("easy unSampler")
def easy_unsampler(t: Translator, n: Node) -> Made:
    # what is linked to the node itself wins over what is in the pipe, as it does there
    pipe = t.pipe(n, "pipe") or t.pipe(n, "optional_pipe")
    given: dict[str, Any] = {}
    for name, kind in (("model", "MODEL"), ("positive", "CONDITIONING"), ("negative", "CONDITIONING")):
        key = f"optional_{name}" if f"optional_{name}" in n.inputs else name
        found = t.prompt(n, key) if kind == "CONDITIONING" else t.want(n, key, kind)
        given[name] = pipe.get(name) if found is None else found
    given["model"] = given["model"] or t.model_of(None, n)
    key = "optional_latent" if "optional_latent" in n.inputs else "latent_image"
    latent = t.want(n, key, "LATENT") or pipe.get("samples")
    if latent is None:
        raise Skip("neither its pipe nor optional_latent has a latent")
    settings = t.settings(n, "steps", "end_at_step", "cfg", "sampler_name", "scheduler", "normalize")
    negative = "" if given["negative"] is None else given["negative"]
    parameters = {**settings, "optional_model": given["model"], "optional_positive": given["positive"] or "",
                  "optional_negative": negative, "optional_latent": latent}  # fmt: skip
    _, run = t.call(n, COMFY + "easy_unsampler", parameters, "pipe", "unsampled")
    made = expression("output", run=run, latent=latent)
    return [Value("PIPE_LINE", {**pipe, **_kept(pipe, given), "samples": made}), Value("LATENT", made)]


def _kept(pipe: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """What was given beside the pipe does not enter it; without a pipe its model is all there is."""
    return {} if pipe else {"model": given["model"]}


@node("Batch Unsampler")
def batch_unsampler(t: Translator, n: Node) -> Made:
    """Two packs register this name: their inputs tell which it is."""
    latent, model = t.want(n, "latent_image", "LATENT"), {"model": t.model(n)}
    settings = t.settings(n, "sampler_name", "scheduler", "steps")
    prompts = {name: t.prompt(n, name) for name in ("positive", "negative")}
    own = any(name in n.inputs for name in ("step_increment", "cfg", "positive", "negative"))
    if own and "start_at_step" not in n.inputs:
        settings |= t.settings(n, "end_at_step", "step_increment", "cfg", "normalize")
        function, bound = "batch_unsampler_demofusion", model | prompts
    else:
        settings |= t.settings(n, "start_at_step", "end_at_step", "normalize")
        function, bound = "batch_unsampler_iterative_mixer", model
    made = sampled(t, n, function, bound, settings, latent, "ladder")
    run = made.what.parameters["run"]
    return [Value("LATENT", expression("output", run=run))]
