"""The two `BatchUnsampler` nodes, of demofusion-comfyui and of ComfyUI-Iterative-Mixer.

Neither unsamples: they add fresh noise to the latent at every level of a schedule, and never ask the network.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import xarray as xr

from .. import inputs
from ..dataset import label, latent_coordinates, moments, rung_coordinates
from ..denoisers import Denoiser, as_model
from ..errors import bad, unknown
from ..record import provenance
from ..schedules import sigmas as schedule_sigmas
from .unsampling import SCHEDULERS

SAMPLERS = (  # ComfyUI's 42
    "euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2", "dpm_2",
    "dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu",
    "dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm", "lcm", "ipndm",
    "ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp", "gradient_estimation", "gradient_estimation_cfg_pp", "er_sde",
    "seeds_2", "seeds_3", "sa_solver", "sa_solver_pece", "ddim", "uni_pc", "uni_pc_bh2",
)  # fmt: skip
DEMOFUSION = "tk.comfy.batch_unsampler_demofusion(model, latent_image=latent"
ITERATIVE = "tk.comfy.batch_unsampler_iterative_mixer(model, latent_image=latent"
BLOCK = 2**20  # values read at once where that takes copies in float64: 8 MiB each


def batch_unsampler_demofusion(model: Any, steps: int = 20, end_at_step: int = 0, step_increment: int = 1,
                               cfg: float = 1.0, sampler_name: str = "euler", scheduler: str = "simple",
                               normalize: str = "disable", positive: Any = None, negative: Any = None,
                               latent_image: Any = None, noise: Any = None) -> xr.Dataset:  # fmt: skip
    """demofusion-comfyui's `BatchUnsampler`: L + sigma*n at every level above 0, rising, n fresh every time.

    Parameters
    ----------
    model : Model
        Of which only the levels and the latent scale are used.
    steps : int
        1 to 10,000; as many rungs, unless the schedule gives another number of levels.
    end_at_step, step_increment, cfg, normalize, positive, negative
        Checked, and ignored as the node does: 0 to 10,000; 1 to 10,000; 0 to 100; "disable" or "enable".
    sampler_name, scheduler : str
        ComfyUI's names. The sampler only counts where it is one that drops a level (dpm_2, uni_pc, ...).
    latent_image : array (sample, channel, y, x), or dict with "samples"
        L, in the space of the VAE; all other keys are ignored.
    noise : array (step, sample, channel, y, x), optional
        Unit normal, of the size of the result, in place of a draw from torch's global generator. The node
        has none.

    Returns
    -------
    Dataset
        dims (step, sample, channel, y, x), in the space of the VAE, whose rows, each with its samples in
        turn, are the node's batch: `latent` (float32), `nfe`, `rows` (0), `mean`, `std`, `shift` (0), `scale`
        (1). ``attrs["quirks"]`` names what the node does that ``tk.ladder`` does not, such as noise that is
        not divided by the latent scale (scale_forgotten); ``attrs["inputs_ignored"]`` lists what was given
        for nothing.

    Raises
    ------
    ValueError, TypeError
        For bad input, whether or not the node uses it.

    Source: the node's behaviour, demofusion-comfyui at ef9f9785 under ComfyUI 0.3.64, where it needs a shim.

    Examples
    --------
    >>> import torch, toolkit as tk
    >>> model = tk.load()
    >>> image = model.encode(tk.assets.digits()[0][0]) / model.latent_scale
    >>> _ = torch.manual_seed(0)
    >>> run = tk.comfy.batch_unsampler_demofusion(model, steps=6, cfg=7.5, latent_image={"samples": image})
    >>> run.sizes["step"], run.attrs["inputs_ignored"]
    (6, ['cfg'])
    >>> run.attrs["quirks"]
    ['inputs_ignored', 'scale_forgotten', 'global_noise']
    """
    model = _bare(model)
    steps = inputs.whole("steps", steps, 1, 10_000, f"{DEMOFUSION}, steps=20)")
    given = {
        "end_at_step": inputs.whole("end_at_step", end_at_step, 0, 10_000, f"{DEMOFUSION}, end_at_step=0)"),
        "step_increment": inputs.whole(
            "step_increment", step_increment, 1, 10_000, f"{DEMOFUSION}, step_increment=1)"
        ),
        "cfg": inputs.number("cfg", cfg, f"{DEMOFUSION}, cfg=1.0)"),
        "normalize": normalize,
    }
    if not 0 <= given["cfg"] <= 100:
        raise bad("cfg", cfg, "a number from 0 to 100", f"{DEMOFUSION}, cfg=1.0)")
    if normalize not in ("disable", "enable"):
        raise unknown("normalize", normalize, ("disable", "enable"), f'{DEMOFUSION}, normalize="{{}}")')
    plain = {"end_at_step": 0, "step_increment": 1, "cfg": 1.0, "normalize": "disable"}
    ignored = [name for name, value in given.items() if value != plain[name]]
    ignored += [n for n, value in (("positive", positive), ("negative", negative)) if value is not None]
    latent, keys = _samples(model, latent_image, DEMOFUSION)
    levels = _falling(model, scheduler, steps, sampler_name, DEMOFUSION)[-2::-1].copy()
    # as many draws as the node's batch has places, in its order: every sample of a level, then the next level
    states = _noise(noise, (len(levels), *latent.shape), f"{DEMOFUSION}, noise=None)")
    _add(states, levels, latent)
    quirks = (
        ["inputs_ignored"] * bool(ignored + keys)
        + ["scale_forgotten"] * (getattr(model, "latent_scale", 1.0) != 1.0)
        + ["ve_noising"] * (model.path.name == "FLOW")
        + ["global_noise"] * (noise is None)
    )
    attrs = {"sampler_name": sampler_name, "schedule": scheduler, "steps": steps, "normalize": "off",
             "inputs_ignored": ignored + keys, "pack": "demofusion-comfyui", "quirks": quirks}  # fmt: skip
    return _run(model, levels, states, None, noise, attrs)


def batch_unsampler_iterative_mixer(model: Any, sampler_name: str = "euler", scheduler: str = "simple",
                                    steps: int = 10_000, start_at_step: int = 0, end_at_step: int = 10_000,
                                    latent_image: Any = None, normalize: bool = False,
                                    noise: Any = None) -> xr.Dataset:  # fmt: skip
    """ComfyUI-Iterative-Mixer's `BatchUnsampler`: L + sigma*n at levels start to end, rising, n fresh each.

    Parameters
    ----------
    model : Model
        Of which only the levels and the latent scale are used.
    sampler_name, scheduler : str
        ComfyUI's names. The sampler only counts where it is one that drops a level (dpm_2, uni_pc, ...).
    steps, start_at_step, end_at_step : int
        0, 0 and 1 to 10,000: rungs are levels start to end - 1 of the falling schedule, turned round, so that
        `start_at_step` leaves out the top ones and the final 0 is never there. The end is clamped to `steps`.
    latent_image : array (sample, channel, y, x), or dict with "samples"
        L, in the space of the VAE; all other keys are ignored. The node breaks for more than one sample;
        here they are run one after the other, and ``attrs["note"]`` says so.
    normalize : bool
        Subtract the mean of row 0, noise included, from every row. Nothing is divided.
    noise : array (step, sample, channel, y, x), optional
        Unit normal, of the size of the result, in place of a draw from torch's global generator. The node
        has none.

    Returns
    -------
    Dataset
        dims (step, sample, channel, y, x), in the space of the VAE, whose rows are the node's batch: `latent`
        (float32), `nfe`, `rows` (0), `mean`, `std`, `shift` (what was subtracted), `scale` (1). `sigma` is in
        model space, as everywhere: the noise of a row is sigma over the latent scale. ``attrs["quirks"]``
        names what the node does that ``tk.ladder`` does not.

    Raises
    ------
    ValueError, TypeError
        For bad input, and for a range without levels, of which the node makes an empty batch.

    Source: the node's behaviour, ComfyUI-Iterative-Mixer at 857ee06e under ComfyUI 0.3.64, where it needs a
    shim.

    Examples
    --------
    >>> import torch, toolkit as tk
    >>> model = tk.load()
    >>> image = model.encode(tk.assets.digits()[0][0]) / model.latent_scale
    >>> _ = torch.manual_seed(0)
    >>> run = tk.comfy.batch_unsampler_iterative_mixer(model, scheduler="karras", steps=20, start_at_step=4,
    ...                                                latent_image={"samples": image})
    >>> run.sizes["step"], run.attrs["quirks"]
    (16, ['global_noise', 'range_clamped'])
    """
    model = _bare(model)
    steps = inputs.whole("steps", steps, 0, 10_000, f"{ITERATIVE}, steps=10000)")
    start = inputs.whole("start_at_step", start_at_step, 0, 10_000, f"{ITERATIVE}, start_at_step=0)")
    end = inputs.whole("end_at_step", end_at_step, 1, 10_000, f"{ITERATIVE}, end_at_step=10000)")
    if not isinstance(normalize, (bool, np.bool_)):
        raise bad("normalize", normalize, "True or False", f"{ITERATIVE}, normalize=False)", TypeError)
    latent, ignored = _samples(model, latent_image, ITERATIVE)
    if steps == 0:
        raise bad("steps", 0, "a schedule without steps has no levels", f"{ITERATIVE}, steps=10000)")
    falling, last = _falling(model, scheduler, steps, sampler_name, ITERATIVE), min(steps, end)
    levels = falling[start:last][::-1].copy()
    if len(levels) == 0:
        wanted = f"below {min(last, len(falling))}, where the levels of this range end: it is empty"
        line = f"{ITERATIVE}, steps={steps}, start_at_step=0, end_at_step={end})"
        raise bad("start_at_step", start_at_step, wanted, line)
    line = f"{ITERATIVE}, noise=None)"
    states = _noise(noise, (len(levels), *latent.shape), line, one_by_one=True)
    # float32 over the factor as float32, as upstream
    _add(states, levels / np.float32(getattr(model, "latent_scale", 1.0)), latent)
    shift = _centred(states) if normalize else None
    mode = "first_row" if normalize else "off"
    quirks = (
        ["inputs_ignored"] * bool(ignored)
        + ["ve_noising"] * (model.path.name == "FLOW")
        + ["global_noise"] * (noise is None)
        + ["first_row_mean"] * bool(normalize)
        + ["zero_row"] * bool(levels[0] == 0)
        + ["range_clamped"] * (end > steps)
    )
    attrs = {"sampler_name": sampler_name, "schedule": scheduler, "steps": steps, "start_at_step": start,
             "end_at_step": end, "normalize": mode, "normalized": mode, "inputs_ignored": ignored,
             "pack": "ComfyUI-Iterative-Mixer", "quirks": quirks}  # fmt: skip
    if len(latent) > 1:
        attrs["note"] = "the node takes one sample alone; these were run one after the other"
    return _run(model, levels, states, shift, noise, attrs)


def _bare(given: Any) -> Any:
    """The model, which knows its latent scale: without the conditions that were bound to it."""
    model = as_model(given)
    return model.model if isinstance(model, Denoiser) else model


def _samples(model: Any, given: Any, call: str) -> tuple[torch.Tensor, list[str]]:
    """L as it was given, (sample, channel, y, x), float32 on the host, and the keys beside it, ignored."""
    keys, line = [], f"{call})"
    if isinstance(given, Mapping):
        if "samples" not in given:
            raise bad("latent_image", list(given), "a dict with the key samples", line)
        keys = [str(k) for k, value in given.items() if k != "samples" and value is not None]
        given = given["samples"]
    if given is None or inputs.is_picture(given):
        # an image would be encoded to model space
        raise bad("latent_image", given, "a latent, in the space of the VAE", line, TypeError)
    latent = inputs.latent(model, given, "latent_image", line, "vae").float().cpu()
    if not bool(torch.isfinite(latent).all()):
        raise bad("latent_image", "values beyond float32", "what float32 holds", line)
    return latent, keys


def _falling(model: Any, scheduler: Any, steps: int, sampler: Any, call: str) -> np.ndarray:
    """The levels of a sampler's name, falling to 0, float32."""
    if sampler not in SAMPLERS:
        raise unknown("sampler_name", sampler, SAMPLERS, f'{call}, sampler_name="{{}}")')
    if scheduler not in SCHEDULERS:
        raise unknown("scheduler", scheduler, SCHEDULERS, f'{call}, scheduler="{{}}")')
    return schedule_sigmas(model.levels, scheduler, steps, sampler)


def _noise(given: Any, shape: tuple[int, ...], line: str, one_by_one: bool = False) -> torch.Tensor:
    """Unit noise of `shape`, float32, for us to write in: what was given, or from torch's global generator.

    Drawn at once, or for each sample in turn as if it were alone: then a sample's rungs lie together in
    memory, since a draw into places that are apart gives other numbers.
    """
    host = {"dtype": torch.float32, "device": "cpu"}
    if given is None and one_by_one:
        states = torch.empty((shape[1], shape[0], *shape[2:]), **host)
        for own in states:
            own.normal_()
        return states.transpose(0, 1)
    if given is None:
        return torch.randn(shape, **host)
    given = inputs.tensor("noise", given, line)
    if tuple(given.shape) != shape:
        raise bad("noise", tuple(given.shape), f"of the size of the result, {shape}", line)
    states = torch.empty(shape, **host).copy_(given.detach())
    if not all(bool(torch.isfinite(part).all()) for part in states.split(_rows(shape))):
        raise bad("noise", "NaN or Inf in it", "finite numbers, unit normal", line)
    return states


def _add(noise: torch.Tensor, levels: np.ndarray, latent: torch.Tensor) -> None:
    """The noise becomes L + e N, in place: 10,000 rungs are a large array."""
    noise.mul_(torch.from_numpy(levels)[:, None, None, None, None]).add_(latent)


def _centred(states: torch.Tensor) -> np.ndarray:
    """Subtracts each sample's mean of row 0 from its rows, in place; what was subtracted, (sample,)."""
    means = torch.stack([first.mean() for first in states[0]])
    states.sub_(means[:, None, None, None])
    return means.numpy().astype(np.float64)


def _rows(shape: tuple[int, ...]) -> int:
    """How many rows to read at once."""
    return max(1, BLOCK // int(np.prod(shape[1:])))


def _run(model: Any, levels: np.ndarray, states: torch.Tensor, shift: np.ndarray | None, noise: Any,
         facts: dict[str, Any]) -> xr.Dataset:  # fmt: skip
    """The Dataset of rungs that are all there."""
    latent = states.numpy()  # (step, sample, channel, y, x), shared
    lead, size = latent.shape[:3], _rows(latent.shape)
    found = [moments(latent[k : k + size]) for k in range(0, len(latent), size)]
    mean, std = (np.concatenate(parts) for parts in zip(*found, strict=True))
    subtracted = np.zeros(lead) if shift is None else np.broadcast_to(shift[:, None], lead).copy()
    data = {"latent": latent, "shift": subtracted, "scale": np.ones(lead),
            "nfe": np.zeros(lead[0], np.int64), "rows": np.zeros(lead[0], np.int64),
            "mean": mean, "std": std}  # fmt: skip
    rungs = rung_coordinates(levels, model.levels, model.path) | latent_coordinates(latent.shape[1:])
    attrs = provenance(
        SimpleNamespace(model=model, path=model.path, levels=model.levels),
        kind="ladder", coupling="independent" if noise is None else "given", direction="up",
        node="BatchUnsampler", **facts,
    )  # fmt: skip
    return label(data, rungs, attrs | {"latent_space": "vae"})
