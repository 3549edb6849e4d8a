"""The public door: what users hand in becomes what we work with, or an error with the line to type."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .errors import bad
from .grids import grid as grid  # the same door: what it checks needs no torch
from .schedules import sigmas as schedule_sigmas
from .solvers.contract import Solver


def tensor(name: str, given: Any, line: str) -> torch.Tensor:
    """A floating tensor of anything array-like, in a layout and byte order that torch reads."""
    given = given.values if hasattr(given, "dims") else given
    if isinstance(given, np.ndarray) and given.dtype.kind == "f" and given.dtype.itemsize <= 8:
        given = torch.from_numpy(np.array(given, dtype=given.dtype.newbyteorder("="), order="C"))
    if not isinstance(given, (np.ndarray, torch.Tensor)):
        raise bad(name, type(given), "a torch tensor, NumPy array or DataArray", line, TypeError)
    if not (isinstance(given, torch.Tensor) and given.is_floating_point()):
        wanted = "a floating dtype, of at most 64 bits; scale integers first"
        raise bad(name, str(given.dtype), wanted, line, TypeError)
    return given


def is_picture(given: Any) -> bool:
    """Whether it is a PIL image, which is not imported for it; a model encodes it, into model space."""
    return type(given).__module__.startswith("PIL.")


def latent(
    model: Any, given: Any, name: str = "latent", line: str = "tk.unsample(model, model.encode(image))",
    space: str = "model",
) -> torch.Tensor:  # fmt: skip
    """A (sample, channel, y, x) float64 tensor of its own, C-contiguous, where the model is.

    A DataArray that says so must be in this `space`; nothing else knows in which it is.

    A transposed or channels_last tensor changes the last bits of sums and convolutions, and with them an
    exact replay.
    """
    if is_picture(given):
        if not hasattr(model, "encode"):
            raise bad(name, given, "this model cannot encode an image, give an array", line, TypeError)
        given = model.encode(given)
    if hasattr(given, "data_vars"):
        raise bad(name, "a Dataset", "one of its rows", "run.latent.isel(step=-1)", TypeError)
    if hasattr(given, "dims"):
        if set(given.dims) != {"sample", "channel", "y", "x"}:
            wanted = "a DataArray with dims sample, channel, y, x"
            raise bad(name, given.dims, wanted, "run.latent.isel(step=-1)")
        now = given.attrs.get("latent_space", space)
        if now != space:
            load = 'tk.comfy.load_latent("image.latent"' + (", model)" if space == "model" else ")")
            wanted = "a latent in " + ("model space" if space == "model" else "the space of the VAE")
            raise bad(name, f'latent_space="{now}"', wanted, load)
        given = given.transpose("sample", "channel", "y", "x")
    given = tensor(name, given, line)
    if given.ndim != 4 or 0 in given.shape:
        raise bad(name, tuple(given.shape), "of shape (sample, channel, y, x), none of them 0", line)
    wanted = getattr(model, "shape", None)
    if model.channels is not None and given.shape[1] != model.channels:
        raise bad(name, tuple(given.shape), f"this model has {model.channels} channels", line)
    if wanted is not None and tuple(given.shape[1:]) != tuple(wanted):
        wanted = f"this model's latents are (sample, {', '.join(map(str, wanted))})"
        raise bad(name, tuple(given.shape), wanted, line)
    sides(name, given.shape, model)
    if not bool(torch.isfinite(given).all()):
        raise bad(name, "NaN or Inf in it", "finite numbers", f"{name}=torch.nan_to_num({name})")
    device = getattr(model, "device", given.device)
    return given.detach().to(
        device=device, dtype=torch.float64, memory_format=torch.contiguous_format, copy=True
    )


def sides(name: str, shape: Sequence[int], model: Any) -> None:
    """Refuses a latent (sample, channel, y, x) that a model cannot cut into patches, or has no places for."""
    multiple, largest = getattr(model, "multiple", 1), getattr(model, "largest", None) or max(shape[-2:])
    if any(side % multiple or side > largest for side in shape[-2:]):
        near = [max(multiple, min(side, largest) // multiple * multiple) for side in shape[-2:]]
        why = f"sides of this model's latents are multiples of {multiple}"
        why += f", and {largest} at most" if max(shape[-2:]) > largest else ""
        raise bad(name, tuple(shape), why, f"{name}[..., :{near[0]}, :{near[1]}]")


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


def distinct(solver: Solver, levels: Sequence[float], name: str) -> None:
    """A reversible solver divides by the length of its last hop: refuse repeated levels at the door."""
    positive = [s for s in levels if s > 0]
    if solver.reversible and len(set(positive)) < len(positive):
        why = f"{solver.name} cannot be reversed over a level that repeats"
        raise bad(name, sorted(positive)[:8], why, 'schedule="karras", or solver="euler"')


def falling(
    levels: Any, schedule: str, steps: Any, solver: str, start: Any, end: Any, call: str
) -> tuple[list[float], int]:
    """The schedule's levels from `start` to `end` (None: to the end), falling, and how many are below."""
    table = schedule_sigmas(levels, schedule, steps, solver).tolist()
    last = len(table) - 1
    start = whole("start_at_step", start, 0, last - 1, f"{call}, steps={steps}, start_at_step=0)")
    end = last if end is None else end
    end = whole("end_at_step", end, 1, last, f"{call}, steps={steps}, end_at_step={last})")
    if end <= start:
        why = f"after start_at_step={start}: this range is empty"
        raise bad("end_at_step", end, why, f"{call}, end_at_step={start + 1})")
    return table[start : end + 1], last - end


def host(given: Any) -> Any:
    """A tensor as an array on the host; bfloat16, which NumPy has not, as float32. Anything else as it is."""
    if not isinstance(given, torch.Tensor):
        return given
    given = given.detach().cpu()
    return (given.float() if given.dtype == torch.bfloat16 else given).numpy()


def mask(given: Any, shape: Sequence[int], device: Any, line: str = "mask=torch.ones(latent.shape[-2:])",
         whose: str = "") -> torch.Tensor:  # fmt: skip
    """A mask fitted to the latents, (sample, 1, y, x), float64; any resolution, one for all or one each.

    `line` is what to type instead, `whose` mask it is, where that is to be said.
    """
    given = given.values if hasattr(given, "dims") else given
    if not isinstance(given, (np.ndarray, torch.Tensor)):
        wanted = "an array (y, x) or (sample, y, x) of weights in 0..1"
        raise bad("mask", type(given), wanted, line, TypeError)
    values = host(given)
    if values.dtype.kind not in "biuf":
        raise bad("mask", str(values.dtype), "real weights in 0..1", line, TypeError)
    m = torch.from_numpy(values.astype(np.float64)).to(device)
    m = m[None] if m.ndim == 2 else m[:, 0] if m.ndim == 4 and m.shape[1] == 1 else m
    if m.ndim != 3 or 0 in m.shape or m.shape[0] not in (1, shape[0]):
        wanted = f"{whose}of shape (y, x), or ({shape[0]}, y, x) with one a sample"
        raise bad("mask", tuple(given.shape), wanted, line)
    if not bool(torch.isfinite(m).all()) or float(m.min()) < 0 or float(m.max()) > 1:
        given = f"values from {float(m.min()):.4g} to {float(m.max()):.4g}"
        raise bad("mask", given, "weights in 0..1", line)
    if float(m.max()) == 0:
        wanted = "it is empty, nothing would be sampled; 1 is where the model works"
        raise bad("mask", "0 everywhere", wanted, line)
    m, size = m[:, None], tuple(shape[-2:])
    if tuple(m.shape[-2:]) != size:
        m = torch.nn.functional.interpolate(m, size=size, mode="bilinear", antialias=True).clamp(0, 1)
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
