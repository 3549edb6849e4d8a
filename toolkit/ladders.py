"""Noise ladders: the image at every level of a schedule, in closed form."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from . import inputs
from .dataset import Save, from_moments
from .denoisers import as_model
from .errors import bad, unknown
from .noise import COUPLINGS, Keyed, Rungs
from .record import Recorder, provenance
from .runs import checked_mode, checked_save
from .spaces import SPACES
from .walks import bar

CACHED = 2**21  # bytes of rungs that are drawn, mixed and measured while the processor's cache holds them
RUN = 256  # values that are summed up in float32
CANCELS = 1e-3  # a variance below this share of the mean square is summed anew, around the mean


class _Uncalled:
    """A model that is not asked anything: its path and levels, and counters that stay at 0."""

    calls = rows = 0

    def __init__(self, model: Any):
        self.model, self.path, self.levels = model, model.path, model.levels


def ladder(model: Any, latent: Any, *, schedule: str = "normal", steps: int = 20, start_at_step: int = 0,
           end_at_step: int | None = None, every: int = 1, coupling: str = "independent", noise: Any = None,
           normalize: str = "off", sigmas: Sequence[float] | None = None, latent_space: str = "model",
           seed: int = 0, save: Save = Save(), progress: bool = True) -> xr.Dataset:  # fmt: skip
    """The image at every level of a schedule, without a model call: alpha*x0 + sigma*n, rising.

    Parameters
    ----------
    model, latent
        As in ``tk.unsample``; of the model only its path and levels are used.
    schedule, steps, start_at_step, end_at_step
        Rungs are levels start..end of the falling schedule, turned round: `start_at_step` leaves out the top
        ones.
    every : int
        Take each k-th rung, counted from the clean end; the top one is always there.
    coupling : {"independent", "shared", "markov"}
        A draw of its own at each rung; one for all; or noise that grows by increments, as in the forward
        process: the noises of two rungs correlate as rho_low/rho_high, rho = sigma/alpha. What a rung gets
        depends on (seed, sample, rung of the whole schedule), and for "markov" on the levels below it, and
        not on which rungs are kept, on the batch, or on the store.
    noise : array (step, sample, channel, y, x), optional
        Unit normal, in place of the seed's, of the size of the result.
    normalize : {"off", "global", "sample", "channel"}
        Recorded as `shift` and `scale` of every row; ``tk.normalized`` applies it.
    sigmas : sequence of float, optional
        A rising grid of your own in place of the schedule.
    latent_space : {"model", "vae"}
        In which space `latent` comes and the rungs are. In the VAE's, where latents are divided by the
        model's scaling factor, the noise is divided as well; `sigma` counts in model space in both.
    seed, save, progress
        As in ``tk.unsample``; rows are float32 unless ``Save.dtype`` says otherwise. A store gets blocks of
        rungs; memory holds a few of them, however many rungs there are.

    Returns
    -------
    Dataset
        dims (step, sample, channel, y, x): `latent`, `nfe`, `rows` (0), `mean`, `std`, `shift`, `scale`;
        ``tk.in_space`` converts from one space to the other.

    Raises
    ------
    ValueError, TypeError
        For bad input, an empty range among it.

    Source: the marginals of 2011.13456; ``coupling="independent"`` is what ComfyUI's batch unsamplers do.

    Examples
    --------
    >>> import toolkit as tk
    >>> model = tk.load()
    >>> latent = model.encode(tk.assets.digits()[0][0])
    >>> rungs = tk.ladder(model, latent, steps=10, coupling="shared", progress=False)
    >>> rungs.sizes["step"], round(float(tk.at(rungs, sigma=1).sigma), 2)
    (11, 0.93)
    """
    call = "tk.ladder(model, latent"
    save, mode = checked_save(save), checked_mode(normalize)
    if coupling not in COUPLINGS:
        raise unknown("coupling", coupling, COUPLINGS, 'tk.ladder(model, latent, coupling="{}")')
    every = inputs.whole("every", every, 1, None, f"{call}, every=1)")
    seed = inputs.whole("seed", seed, -(2**63), None, "seed=0")
    if latent_space not in SPACES:
        raise unknown("latent_space", latent_space, SPACES, 'tk.ladder(model, latent, latent_space="{}")')
    # the noise is drawn on the CPU, and the result is kept there
    x = inputs.latent(as_model(model), latent, space=latent_space).cpu()
    if sigmas is None:
        steps = inputs.whole("steps", steps, 1, None, f"{call}, steps=20)")
        falling, lowest = inputs.falling(
            model.levels, schedule, steps, "euler", start_at_step, end_at_step, call
        )
        below = inputs.falling(model.levels, schedule, steps, "euler", 0, None, call)[0][::-1][:lowest]
        rising = falling[::-1]
    else:
        if start_at_step or end_at_step is not None:
            why = "a part of a schedule; cut `sigmas` yourself"
            raise bad("start_at_step", (start_at_step, end_at_step), why, f"{call}, sigmas=sigmas[2:])")
        rising, below = inputs.grid(sigmas, True, model.path), []
        schedule, steps, lowest = "given", len(rising) - 1, 0
    picked = [*range(0, len(rising) - 1, every), len(rising) - 1]
    levels = [rising[k] for k in picked]
    given = None if noise is None else _given(noise, (len(levels), *x.shape), call)
    # a rung is keyed by its place in the whole schedule, counted from the clean end
    keyed = Keyed(seed, x.shape, torch.float32, rungs=lowest + len(rising))
    rungs = Rungs(coupling, keyed, [model.path.rho(s) for s in (*below, *rising)])
    fill = rungs.fill if given is None else _Given(given, picked, lowest).fill
    uncalled = _Uncalled(model)
    attrs = provenance(uncalled, kind="ladder", coupling=coupling if given is None else "given",
                       schedule=schedule, steps=steps, direction="up", seed=seed, normalize=mode)  # fmt: skip
    if latent_space == "vae":
        attrs["latent_space"] = "vae"
    names = ["latent", "shift", "scale"]
    with Recorder(save, uncalled, levels, x.shape, attrs, names, "float32", blocks=True,
                  inputs={"latent": x, "noise": given, "sigmas": levels}).guard() as record:  # fmt: skip
        if record.complete:
            return record.opened()
        numbers = [lowest + k for k in picked]
        mixer = _Mixer(model.path, x, levels, numbers, fill, record.dtype, *_space(attrs, latent))
        for first, end in bar(*_blocks(record), f"ladder, {coupling}", progress):
            latent, mean, std = mixer.rungs(first, end, record.block(first, end))
            shift, scale = from_moments(mean, std, x[0, 0].numel(), mode)
            record.rungs(first, latent, mean=mean, std=std, shift=shift, scale=scale)
            if mixer.stopped is not None:
                raise mixer.stopped
        return record.finish()


def _space(attrs: dict[str, Any], latent: Any) -> tuple[float, float, bool]:
    """Scale and shift of the space that the rungs are in, and whether `latent` is in model space instead."""
    if attrs["latent_space"] == "model":
        return 1.0, 0.0, False
    return attrs["latent_scale"], attrs["latent_shift"], inputs.is_picture(latent)


def _given(noise: Any, shape: tuple[int, ...], call: str) -> torch.Tensor:
    """The user's noise, of the size of the result."""
    given = inputs.tensor("noise", noise, f"{call}, noise=None)")
    if tuple(given.shape) != shape:
        raise bad("noise", tuple(given.shape), f"of the size of the result, {shape}", f"{call}, noise=None)")
    if not bool(torch.isfinite(given).all()):
        raise bad("noise", "NaN or Inf in it", "finite numbers, unit normal", f"{call}, noise=None)")
    return given


class _Given:
    """The user's noise in place of drawn noise."""

    def __init__(self, noise: torch.Tensor, picked: Sequence[int], lowest: int):
        self.rows = {lowest + k: row for k, row in zip(picked, noise, strict=True)}

    def fill(self, out: torch.Tensor, rung: int, sigma: float) -> None:
        out.copy_(self.rows[rung]).mul_(sigma)


def _blocks(record: Recorder) -> tuple[list[tuple[int, int]], int]:
    """First and last row + 1 of each block that is not written yet, and how many there are."""
    rows, first, found = record.sink.block, record.newest + 1, []
    while first < record.count:
        found.append((first, min(first - first % rows + rows, record.count)))
        first = found[-1][1]
    return found, len(found)


class _Mixer:
    """Rungs made in place: scaled noise is drawn where the rung will stand, then the image is added.

    A few rungs at a time, as many as the processor's cache holds, so that drawing, mixing and measuring cost
    one way to the memory together. In a space with a scale and a shift, z = x/scale + shift, a rung is
    alpha (z0 - shift) + shift + (sigma/scale) n.
    """

    def __init__(self, path: Any, x: torch.Tensor, levels: Sequence[float], numbers: Sequence[int],
                 fill: Callable, dtype: np.dtype, scale: float = 1.0, shift: float = 0.0,
                 encoded: bool = False):  # fmt: skip
        kind = torch.float64 if dtype == np.float64 else torch.float32  # float16 is rounded to at the end
        column = torch.tensor(levels, dtype=torch.float64)[:, None, None, None, None]
        self.levels, self.numbers, self.fill, self.shift = levels, numbers, fill, shift
        self.amounts = [sigma / scale for sigma in levels]
        x = x / scale if encoded else x - shift
        self.alpha = path.alpha(column).to(kind)
        self.x = x.to(kind)
        self.few = max(1, CACHED // (x.numel() * self.x.element_size()))
        self.ones = np.ones(x[0, 0].numel())
        self._flat = np.empty((self.few * x.shape[0] * x.shape[1], len(self.ones)))
        self.stopped: BaseException | None = None

    def rungs(self, first: int, end: int, out: np.ndarray) -> tuple[np.ndarray, ...]:
        """Rows first..end into `out` (step, sample, channel, y, x), mean and std (step, sample, channel).

        As many as were drawn, where something stops it: `stopped` says what.
        """
        mean, std = np.empty((2, *out.shape[:3]))
        for a in range(first, end, self.few):
            b = min(a + self.few, end)
            part = slice(a - first, b - first)
            in_place = out.dtype == self.x.numpy().dtype
            rungs = torch.from_numpy(out[part]) if in_place else torch.empty(out[part].shape)
            try:
                for row, rung in enumerate(rungs.unbind(), start=a):
                    self.fill(rung, self.numbers[row], self.amounts[row])
            except BaseException as exc:  # Ctrl-C above all: what was drawn is kept
                self.stopped, b = exc, row
                part, rungs = slice(a - first, b - first), rungs[: b - a]
            rungs.addcmul_(self.x, self.alpha[a:b])
            if self.shift:
                rungs.add_(self.shift)
            mean[part], std[part] = self._moments(rungs.numpy())
            if not in_place:
                out[part] = rungs.numpy()
            if self.stopped is not None:
                end = b
                break
        out, mean, std = out[: end - first], mean[: end - first], std[: end - first]
        if not np.isfinite(std).all():
            row = first + int(np.argwhere(~np.isfinite(std))[0][0])
            raise FloatingPointError(f"NaN or Inf in the state at rung {row}, sigma {self.levels[row]:.6g}")
        return out, mean, std

    def _moments(self, rungs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and population std; of float32 rungs to 1e-7 of the std, which halves the time.

        Dot products of runs of 256 values in float32, whose sums are then added in float64. Only where the
        mean is small beside the std: elsewhere their difference would show the rounding.
        """
        count, lead = len(self.ones), rungs.shape[:3]
        if rungs.dtype == np.float32 and count % RUN == 0 and count >= 4 * RUN:
            runs, one = rungs.reshape(-1, RUN), np.ones(RUN, np.float32)
            with np.errstate(over="ignore", invalid="ignore"):  # a state that is not finite is named below
                mean, square = (np.vecdot(runs, other).reshape(*lead, -1).sum(-1, dtype=np.float64) / count
                                for other in (one, runs))  # fmt: skip
                if (mean * mean < 0.5 * square).all():
                    return mean, np.sqrt(square - mean * mean)
        flat = self._flat[: rungs.size // count]
        np.copyto(flat, rungs.reshape(-1, count))
        mean, square = np.vecdot(flat, self.ones) / count, np.vecdot(flat, flat) / count
        variance = square - mean * mean
        for k in np.flatnonzero(variance < CANCELS * square):  # most digits of the difference are gone
            variance[k] = np.square(flat[k] - flat[k].mean()).mean()
        return mean.reshape(lead), np.sqrt(variance).reshape(lead)
