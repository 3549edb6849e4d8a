"""The public door: what users hand in becomes what we work with, or an error with the line to type."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .errors import bad
from .schedules import sigmas as schedule_sigmas


def latent(
    model: Any, given: Any, name: str = "latent", line: str = "tk.unsample(model, model.encode(image))"
) -> torch.Tensor:
    """A (sample, channel, y, x) float64 tensor of its own, C-contiguous, where the model is.

    A transposed or channels_last tensor changes the last bits of sums and convolutions, and with them an
    exact replay.
    """
    if type(given).__module__.startswith("PIL."):
        if not hasattr(model, "encode"):
            raise bad(
                name,
                given,
                "this model cannot encode an image, give a (sample, channel, y, x) array",
                line,
                TypeError,
            )
        given = model.encode(given)
    dims = getattr(given, "dims", None)
    if dims is not None:
        if set(dims) != {"sample", "channel", "y", "x"}:
            raise bad(name, dims, "a DataArray with dims sample, channel, y, x", "run.latent.isel(step=-1)")
        given = given.transpose("sample", "channel", "y", "x").values
    if isinstance(given, np.ndarray):
        given = torch.from_numpy(np.array(given, order="C"))
    if not isinstance(given, torch.Tensor):
        raise bad(
            name,
            type(given),
            "a torch tensor, NumPy array or DataArray (sample, channel, y, x)",
            line,
            TypeError,
        )
    if not given.is_floating_point():
        raise bad(
            name,
            str(given.dtype),
            "a floating dtype; scale integers to the model's latents first",
            line,
            TypeError,
        )
    if given.ndim != 4 or 0 in given.shape:
        raise bad(name, tuple(given.shape), "of shape (sample, channel, y, x), none of them 0", line)
    wanted = getattr(model, "shape", None)
    if model.channels is not None and given.shape[1] != model.channels:
        raise bad(name, tuple(given.shape), f"this model has {model.channels} channels", line)
    if wanted is not None and tuple(given.shape[1:]) != tuple(wanted):
        raise bad(
            name,
            tuple(given.shape),
            f"this model's latents are (sample, {', '.join(map(str, wanted))})",
            line,
        )
    if not bool(torch.isfinite(given).all()):
        raise bad(name, "NaN or Inf in it", "finite numbers", f"{name}=torch.nan_to_num({name})")
    device = getattr(model, "device", given.device)
    return given.detach().to(
        device=device, dtype=torch.float64, memory_format=torch.contiguous_format, copy=True
    )


def whole(name: str, given: Any, low: int, high: int | None, line: str) -> int:
    """A whole number in low..high."""
    wanted = f"a whole number, {low} or more" if high is None else f"a whole number from {low} to {high}"
    if isinstance(given, bool) or not isinstance(given, (int, np.integer)):
        raise bad(name, given, wanted, line, TypeError)
    if given < low or (high is not None and given > high):
        raise bad(name, given, wanted, line)
    return int(given)


def number(name: str, given: Any, line: str) -> float:
    """A finite number."""
    if isinstance(given, bool) or not isinstance(given, (int, float, np.number)) or not math.isfinite(given):
        raise bad(name, given, "a finite number", line)
    return float(given)


def grid(given: Any, rising: bool) -> list[float]:
    """A user's own levels as floats: monotone, finite, none negative, at least one of them positive."""
    line = "sigmas=[0.0, 0.03, 1.0, 14.6]" if rising else "sigmas=[14.6, 1.0, 0.03, 0.0]"
    try:
        levels = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        raise bad("sigmas", given, "a list of numbers", line, TypeError) from None
    if levels.ndim != 1 or len(levels) < 2 or not np.isfinite(levels).all() or levels.min() < 0:
        raise bad("sigmas", given, "two or more finite levels, none negative, in one dimension", line)
    hops = np.diff(levels) if rising else -np.diff(levels)
    if hops.min() < 0 or np.sum(levels == 0) > 1 or levels.max() == 0:
        raise bad("sigmas", given, f"{'rising' if rising else 'falling'}, with at most one 0", line)
    return levels.tolist()


def falling(
    levels: Any, schedule: str, steps: Any, solver: str, start: Any, end: Any, call: str
) -> list[float]:
    """The schedule's levels from `start` to `end` (None: to the end), falling."""
    table = schedule_sigmas(levels, schedule, steps, solver).tolist()
    last = len(table) - 1
    start = whole("start_at_step", start, 0, last - 1, f"{call}, steps={steps}, start_at_step=0)")
    end = (
        last
        if end is None
        else whole("end_at_step", end, 1, last, f"{call}, steps={steps}, end_at_step={last})")
    )
    if end <= start:
        raise bad(
            "end_at_step",
            end,
            f"after start_at_step={start}: this range is empty",
            f"{call}, end_at_step={start + 1})",
        )
    return table[start : end + 1]


def mask(given: Any, shape: Sequence[int], device: Any) -> torch.Tensor:
    """A mask fitted to the latents, (sample, 1, y, x), float64; any resolution, one for all or one each."""
    line = "mask=torch.ones(latent.shape[-2:])"
    if hasattr(given, "dims"):
        given = given.values
    if not isinstance(given, (np.ndarray, torch.Tensor)):
        raise bad(
            "mask", type(given), "an array (y, x) or (sample, y, x) of weights in 0..1", line, TypeError
        )
    m = torch.as_tensor(given).to(device=device, dtype=torch.float64)
    m = m[None] if m.ndim == 2 else m[:, 0] if m.ndim == 4 and m.shape[1] == 1 else m
    if m.ndim != 3 or 0 in m.shape or m.shape[0] not in (1, shape[0]):
        raise bad(
            "mask", tuple(given.shape), f"of shape (y, x), or ({shape[0]}, y, x) with one a sample", line
        )
    if not bool(torch.isfinite(m).all()) or float(m.min()) < 0 or float(m.max()) > 1:
        raise bad(
            "mask", f"values from {float(m.min()):.4g} to {float(m.max()):.4g}", "weights in 0..1", line
        )
    if float(m.max()) == 0:
        raise bad(
            "mask", "0 everywhere", "it is empty, nothing would be sampled; 1 is where the model works", line
        )
    m = m[:, None]
    if tuple(m.shape[-2:]) != tuple(shape[-2:]):
        m = torch.nn.functional.interpolate(m, size=tuple(shape[-2:]), mode="bilinear", antialias=True).clamp(
            0, 1
        )
    return m.expand(shape[0], -1, -1, -1).contiguous()


def plain(value: Any) -> Any:
    """`value` as plain JSON, for an attribute."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return repr(value)
