"""What a pipeline's own scheduler says: prediction, levels and clock. Nothing here is assumed of a family."""

import copy
import inspect
import warnings
from typing import Any, NamedTuple

import numpy as np

from ..errors import bad
from ..levels import TRAIN_STEPS, Levels
from ..paths import Path

# what a diffusers scheduler calls its prediction -> our name
PREDICTION = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
FLOWS = ("flow_prediction",)
PROBE = 7  # steps; no divisor of 999, so that a clock between the trained steps shows
BETAS = "pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)"


class Clock(NamedTuple):
    """How a network is asked: what it predicts, at which levels, and the steps that a flow counts to 1."""

    prediction: str
    levels: Levels
    unit: float = float(TRAIN_STEPS)

    @property
    def path(self) -> Path:
        """VE or FLOW."""
        return self.levels.path


def clock(scheduler: Any, tokens: int = 0) -> Clock:
    """The clock of a diffusers scheduler; `tokens` of the image, where its shift depends on them.

    Raises ValueError for schedulers with neither betas nor a flow, and for predictions that have no name.
    """
    config = scheduler.config
    told = config.get("prediction_type", "epsilon")
    if type(scheduler).__name__.startswith("FlowMatch") or told in FLOWS or config.get("use_flow_sigmas"):
        return _flow(scheduler, tokens)
    if not hasattr(scheduler, "betas"):
        why = "this scheduler has no betas, and no flow: its levels are not known"
        raise bad("pipe.scheduler", type(scheduler).__name__, why, BETAS)
    if told not in PREDICTION:
        why = f"a network that predicts one of {', '.join(PREDICTION)}"
        raise bad(
            "prediction_type", told, why, 'pipe.scheduler.register_to_config(prediction_type="epsilon")'
        )
    zero_snr = _rescales(scheduler)
    return Clock(PREDICTION[told], Levels.from_betas(betas(scheduler), zero_snr, _between(scheduler)))


def betas(scheduler: Any) -> np.ndarray:
    """The scheduler's betas before any rescaling to zero terminal SNR, which `Levels` does itself."""
    if _rescales(scheduler):
        scheduler = type(scheduler).from_config(scheduler.config, rescale_betas_zero_snr=False)
    return scheduler.betas.double().numpy()


def _rescales(scheduler: Any) -> bool:
    """Whether it rescales to zero terminal SNR; a config keeps options that its scheduler does not have."""
    known = inspect.signature(type(scheduler).__init__).parameters
    return "rescale_betas_zero_snr" in known and bool(scheduler.config.get("rescale_betas_zero_snr"))


def _between(scheduler: Any) -> bool:
    """Whether the scheduler asks its network between the trained steps, as Euler with "linspace" does."""
    probe = copy.deepcopy(scheduler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NumPy, in diffusers' own lines
        try:
            probe.set_timesteps(PROBE)
        except ValueError:  # a distilled model's, which has fewer steps
            return False
    return bool((probe.timesteps != probe.timesteps.round()).any())


def _flow(scheduler: Any, tokens: int) -> Clock:
    """Flow matching: the shift is in the config, or grows with the number of image tokens (2403.03206)."""
    config = scheduler.config
    unit = float(config.get("num_train_timesteps", TRAIN_STEPS))
    if not config.get("use_dynamic_shifting", False):
        # `set_shift` moves the property; a config made from another's keeps that one's `shift`, unused
        own = isinstance(getattr(type(scheduler), "shift", None), property)
        matching = type(scheduler).__name__.startswith("FlowMatch")
        names = ("shift",) if matching else ("flow_shift", "shift")
        shift = scheduler.shift if own else next((config[n] for n in names if n in config), 1.0)
        return Clock("flow", Levels.flow(float(shift)), unit)
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    mu = least + (tokens - low) * (most - least) / (high - low)
    if config.get("time_shift_type", "exponential") == "linear":
        return Clock("flow", Levels.flow(mu), unit)
    return Clock("flow", Levels.flux(mu), unit)
