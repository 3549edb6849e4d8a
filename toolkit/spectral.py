"""Closed-form models with a spectrum: mixtures of Gaussians that are diagonal in a cosine basis.

A stationary texture, a photograph's power spectrum, anything whose variance depends on the wave number: its
denoiser is exact at any size, for the price of a cosine transform.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from . import inputs
from .denoisers import Model, guide, one_a_sample, real_tensor, usual_levels
from .errors import bad, unknown
from .ode import probability_flow
from .paths import VE, Path
from .schedules import Levels

BASES = ("pixel", "dct")  # where the state and the means live
CHUNK = 2**18  # elements of the largest temporary, 2 MiB: it stays in a cache
KEPT = 3  # levels whose tables are kept: a two-stage solver comes back to the same two


@cache
def dct_matrix(size: int, device: str = "cpu") -> torch.Tensor:
    """The orthonormal DCT-II as a matrix, float64 (wave number, pixel): its transpose is its inverse.

    sqrt(2/n) cos(pi k (2 j + 1)/(2 n)), row 0 divided by sqrt(2): `scipy.fft.dct` with ``norm="ortho"``.
    """
    k, j = np.arange(size)[:, None], np.arange(size)
    matrix = math.sqrt(2.0 / size) * np.cos(math.pi * k * (2 * j + 1) / (2 * size))
    matrix[0] /= math.sqrt(2.0)
    return torch.from_numpy(matrix).to(device)


def dct(x: torch.Tensor) -> torch.Tensor:
    """Coefficients of the last two axes (y, x), each channel for itself; float64 in and out."""
    rows, columns = (dct_matrix(n, str(x.device)) for n in x.shape[-2:])
    return rows @ x @ columns.T


def inverse_dct(x: torch.Tensor) -> torch.Tensor:
    """Pixels of coefficients: the inverse of `dct`, and its transpose."""
    rows, columns = (dct_matrix(n, str(x.device)) for n in x.shape[-2:])
    return rows.T @ x @ columns


class SpectralMixture(Model):
    """A closed-form model: the exact denoiser of Gaussians that are diagonal in a cosine basis.

    With v_k = alpha^2 V_k + sigma^2, element by element in the orthonormal two-dimensional DCT-II of each
    channel, and r_k = softmax_k(log w_k - sum((x - alpha M_k)^2/v_k + log v_k)/2),
    D(x) = sum_k r_k (M_k + (alpha V_k/v_k)(x - alpha M_k)) = E[x0 | x].

    Parameters
    ----------
    means : array (K, channel, y, x)
        Of the components, where the state lives: pictures for ``basis="pixel"``, coefficients for "dct".
        NumPy or torch; where it lies is where the model runs.
    variances : array (K, channel, y, x), or anything that broadcasts to it
        Of the DCT coefficients, in either basis; positive.
    weights : array (K,), optional
        Positive, scaled to sum to 1 over the components of each condition. None: equal.
    conditions : mapping from a prompt (text or whole number) to a list of components, optional
        None: prompt k is component k. Without a prompt it is all components, whatever is given here.
    basis : {"pixel", "dct"}
        Where the state lives. In "dct" it is never transformed.
    path : VE or FLOW
    levels : Levels, optional
        ``Levels.scaled_linear()`` on VE, ``Levels.flow(3.0)`` on FLOW where None.

    float64 inside, the dtype of x outside.

    Raises
    ------
    ValueError, TypeError
        For shapes that do not fit, a variance or weight that is not positive, NaN, conditions without a
        component.

    Source of the formula: Tweedie's, D = (x + sigma^2 grad log p)/alpha, for a mixture of Gaussians.

    Examples
    --------
    >>> import numpy as np, toolkit as tk
    >>> wave = np.hypot(*np.mgrid[:16, :16])
    >>> clouds = tk.SpectralMixture(np.zeros((1, 3, 16, 16)), 16 / (1 + wave) ** 2)
    >>> tk.sample(clouds, steps=4, progress=False).sizes["channel"]
    3
    """

    name = "SpectralMixture"

    def __init__(self, means: Any, variances: Any, weights: Any = None,
                 conditions: Mapping[str | int, Sequence[int]] | None = None, basis: str = "pixel",
                 path: Path = VE, levels: Levels | None = None):  # fmt: skip
        line = "tk.SpectralMixture(means, variances), both of shape (K, channel, y, x)"
        mu = real_tensor("means", means, line)
        if mu.ndim != 4 or 0 in mu.shape or not bool(torch.isfinite(mu).all()):
            raise bad("means", tuple(mu.shape), "finite, of shape (K, channel, y, x)", line)
        var = real_tensor("variances", variances, line).to(mu)
        if not bool((var > 0).all()) or not bool(torch.isfinite(var).all()):
            raise bad("variances", _range(var), "positive, finite numbers", "variances=1e-4 + variances")
        if var.ndim > 4 or any(
            n not in (1, m) for n, m in zip(var.shape[::-1], mu.shape[::-1], strict=False)
        ):
            raise bad("variances", tuple(var.shape), f"of the shape of the means, {tuple(mu.shape)}", line)
        w = mu.new_ones(len(mu)) if weights is None else real_tensor("weights", weights, line).to(mu)
        if w.shape != mu.shape[:1] or not bool((w > 0).all()) or not bool(torch.isfinite(w).all()):
            raise bad("weights", weights, f"positive, of shape ({len(mu)},)", f"weights=[1.0] * {len(mu)}")
        if basis not in BASES:
            raise unknown("basis", basis, BASES, 'basis="{}"')
        if not isinstance(path, Path):
            raise bad("path", path, "tk.VE or tk.FLOW", "path=tk.VE", TypeError)
        self.path, self.levels, self.basis = path, usual_levels(levels, path), basis
        self.means, self.variances = mu.contiguous(), var.expand(mu.shape).contiguous()
        self.weights, self.prompts = w / w.sum(), _checked(conditions, len(mu))
        self.shape, self.channels, self.device = tuple(mu.shape[1:]), mu.shape[1], mu.device
        self._mu = (mu if basis == "dct" else dct(mu)).flatten(1)  # (K, element), coefficients
        self._var = self.variances.flatten(1)
        self._tables: dict[tuple, tuple[torch.Tensor, ...]] = {}
        data = [a.cpu().numpy().tobytes() for a in (self.means, self.variances, self.weights)]
        data.append(json.dumps([basis, list(self.prompts.items())]).encode())
        self.fingerprint = hashlib.sha256(b"".join(data)).hexdigest()[:16]

    def facts(self) -> dict[str, Any]:
        own = {"components": len(self.means), "conditions": len(self.prompts), "basis": self.basis}
        return {**super().facts(), **own}

    def conditions(self, prompt: Any, samples: int, name: str = "prompt") -> list[tuple[int, ...]]:
        """The components of each sample's condition; None is all of them."""
        return one_a_sample(prompt, samples, self._condition, name)

    def _condition(self, prompt: Any, name: str) -> tuple[int, ...]:
        if prompt is None:
            return tuple(range(len(self.means)))
        known = isinstance(prompt, (str, int, np.integer)) and not isinstance(prompt, bool)
        if not known or prompt not in self.prompts:
            names = [json.dumps(p) for p in self.prompts]
            raise unknown(name, prompt, names, f"{name}={{}}")
        return self.prompts[prompt]

    def x0(self, x: torch.Tensor, sigma: float, conditions: Sequence[tuple[int, ...]]) -> torch.Tensor:
        z = x.to(torch.float64)
        z = (z if self.basis == "dct" else dct(z)).flatten(1)  # (row, element)
        used = tuple(sorted(set().union(*conditions)))
        gain, rest, root, log_det = self._at(float(sigma), used)  # (k, element) three times, (k,)
        if len(used) == 1:
            out = gain * z + rest
        else:
            far = self._far(z, self.path.alpha(sigma), used, root)
            r = torch.softmax(self._log_weights(conditions, used) - 0.5 * (far + log_det), dim=1)  # (row, k)
            out = (r @ gain).mul_(z).add_(r @ rest)
        out = out.view(x.shape)
        return (out if self.basis == "dct" else inverse_dct(out)).to(x.dtype)

    def _at(self, sigma: float, used: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
        """What the components `used` need at a level: D = gain x + rest, 1/sqrt(v) and log det v."""
        if (sigma, used) not in self._tables:
            pick, alpha = list(used), self.path.alpha(sigma)
            mu, var = self._mu[pick], self._var[pick]
            v = alpha * alpha * var + sigma * sigma
            # 1 - alpha^2 V/v is sigma^2/v, without the cancellation at low sigma
            made = (alpha * var / v, (sigma * sigma / v).mul_(mu), v.rsqrt(), v.log().sum(1))
            while len(self._tables) >= KEPT:
                del self._tables[next(iter(self._tables))]
            self._tables[sigma, used] = made
        return self._tables[sigma, used]

    def _far(self, z: torch.Tensor, alpha: float, used: tuple[int, ...], root: torch.Tensor) -> torch.Tensor:
        """sum((x - alpha M_k)^2/v_k), (row, k). As written: the expanded square cancels at low sigma."""
        at_once, found = max(1, CHUNK // z.numel()), []
        for first in range(0, len(used), at_once):
            part = list(used[first : first + at_once])
            off = z[:, None] - alpha * self._mu[part]  # (row, some k, element)
            found.append(off.mul_(root[first : first + at_once]).square_().sum(-1))
        return torch.cat(found, dim=1)

    def _log_weights(self, conditions: Sequence[tuple[int, ...]], used: tuple[int, ...]) -> torch.Tensor:
        """log w_k, (row, k), -inf where a row's condition leaves the component out: its r_k is exactly 0."""
        inside = [[k in c for k in used] for c in map(set, conditions)]
        log_w = self.weights[list(used)].log()
        return torch.where(torch.tensor(inside, device=self.device), log_w, -math.inf)

    def draw(self, n: int = 1, prompt: Any = None, seed: int = 0) -> torch.Tensor:
        """Exact draws of clean x0: (n, channel, y, x), float64, where the state lives.

        Draw i depends on the seed, on i and on the prompt alone, whatever n is. A list of prompts is one a
        draw. Raises ValueError for a prompt that the model does not know, TypeError for an n that is not a
        whole number.
        """
        line = "model.draw(2, prompt=None, seed=0)"
        n, seed = inputs.whole("n", n, 1, None, line), inputs.whole("seed", seed, 0, None, line)
        made = np.empty((n, *self.shape))
        for i, inside in enumerate(self.conditions(prompt, n)):
            rng = np.random.default_rng([seed, i])
            w = self.weights[list(inside)].cpu().numpy()
            k = rng.choice(inside, p=w / w.sum())
            std = self.variances[k].sqrt().cpu().numpy()
            made[i] = self._mu[k].cpu().numpy().reshape(self.shape) + std * rng.standard_normal(self.shape)
        made = torch.from_numpy(made).to(self.device)
        return made if self.basis == "dct" else inverse_dct(made)

    def probability_flow(self, x: Any, sigmas: Sequence[float], *, prompt: Any = None, negative: Any = None,
                         cfg: float = 1.0, tolerance: float = 1e-10,
                         progress: bool = False) -> torch.Tensor:  # fmt: skip
        """The exact probability-flow solution through `sigmas`; see `probability_flow`."""
        return probability_flow(guide(self, prompt, negative, cfg), x, sigmas, tolerance, progress)


def _range(values: torch.Tensor) -> str:
    return f"values from {float(values.min()):.4g} to {float(values.max()):.4g}" if values.numel() else "none"


def _checked(given: Any, count: int) -> dict[str | int, tuple[int, ...]]:
    """Prompt -> components; each component its own prompt where None."""
    if given is None:
        return {k: (k,) for k in range(count)}
    line = 'conditions={"cat": [0, 1], "dog": [2]}'
    if not isinstance(given, Mapping):
        raise bad("conditions", given, "a mapping from a prompt to a list of components", line, TypeError)
    made = {}
    for prompt, inside in given.items():
        if isinstance(prompt, bool) or not isinstance(prompt, (str, int, np.integer)):
            raise bad("conditions", prompt, "a prompt is text or a whole number", line, TypeError)
        picked = np.unique(np.asarray(inside)) if len(inside) else np.empty(0)
        if picked.dtype.kind not in "iu" or picked[0] < 0 or picked[-1] >= count:
            wanted = f"each prompt has one or more components, 0 to {count - 1}"
            raise bad("conditions", {prompt: inside}, wanted, line)
        made[prompt if isinstance(prompt, str) else int(prompt)] = tuple(picked.tolist())
    return made
