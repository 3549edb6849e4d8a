"""What a solver asks of a model: x0 at (x, sigma), conditions bound, calls counted.

A `Model` knows its path, its levels and its conditions; `guide` binds a prompt and a guidance scale to it and
gives a `Denoiser`, the only thing a solver sees. A function or a foreign object with ``denoise(x, sigma)``
becomes one too.
"""

import copy
import hashlib
import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import torch

from .errors import bad
from .ode import probability_flow
from .paths import VE, Path
from .schedules import Levels
from .tables import Table


class Denoised(NamedTuple):
    """A denoiser's answer: `x0` with guidance and, where it was asked for, `uncond` without.

    Both have the shape of the state, (sample, channel, y, x).

    Examples
    --------
    >>> import torch, toolkit as tk
    >>> tk.denoiser(lambda x, sigma: tk.Denoised(0.5 * x)).denoise(torch.ones(1, 1, 2, 2), 1.0).x0.sum()
    tensor(2.)
    """

    x0: torch.Tensor
    uncond: torch.Tensor | None = None


# --- the prediction table: x0 = c_skip x + c_out F(c_in x), F the network (2206.00364, table 1) ----


def _eps(sigma: float) -> tuple[float, float, float]:
    return 1.0, -sigma, 1.0 / math.sqrt(1.0 + sigma * sigma)


def _v(sigma: float) -> tuple[float, float, float]:
    var = 1.0 + sigma * sigma
    return 1.0 / var, -sigma / math.sqrt(var), 1.0 / math.sqrt(var)


def _flow(sigma: float) -> tuple[float, float, float]:
    return 1.0, -sigma, 1.0


def _edm(sigma: float, data: float = 0.5) -> tuple[float, float, float]:
    var = sigma * sigma + data * data
    return data * data / var, sigma * data / math.sqrt(var), 1.0 / math.sqrt(var)


def _x0(sigma: float) -> tuple[float, float, float]:
    return 0.0, 1.0, 1.0 / math.sqrt(1.0 + sigma * sigma)


PREDICTIONS = Table(
    "Predictions", "prediction", 'prediction="{}"',
    {"name": lambda n, p: n, "network sees": lambda n, p: p[1], "network returns": lambda n, p: p[2]},
)  # fmt: skip
PREDICTIONS["eps"] = (_eps, "x/sqrt(1 + sigma^2)", "the noise")
PREDICTIONS["v"] = (_v, "x/sqrt(1 + sigma^2)", "v = (eps - sigma x0)/sqrt(1 + sigma^2)")
PREDICTIONS["flow"] = (_flow, "x", "the velocity eps - x0")
PREDICTIONS["edm"] = (_edm, "x/sqrt(sigma^2 + 0.25)", "EDM's F, data std 0.5")
PREDICTIONS["x0"] = (_x0, "x/sqrt(1 + sigma^2)", "x0 itself")


def predict(
    prediction: str, network: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, sigma: float
) -> torch.Tensor:
    """x0 of a `network` that predicts `prediction`; the network answers in its own dtype."""
    c_skip, c_out, c_in = PREDICTIONS[prediction][0](sigma)
    out = network(c_in * x)
    return c_skip * x + c_out * out.to(x.dtype)


# --- models and denoisers ----


class Model:
    """A model with conditions. Subclasses give `conditions` and `x0`; the rest is here.

    Attributes
    ----------
    path, levels : Path, Levels
    channels : int
    shape : (channel, y, x) of a latent, or None where any size will do
    usual_shape : the same of a run from noise that does not say it, where any size will do
    multiple : int
        Sides of a latent are multiples of it.
    largest : int or None
        And at most this.
    name, prediction, fingerprint : str
        What the record says of the model.
    latent_scale : float
        Model space over the space of the VAE.
    rows_each : int
        Network rows that one row of `x0` costs: more than 1 where a model asks another, window by window.
    """

    path: Path = VE
    levels: Levels
    channels: int | None = None
    shape: tuple[int, int, int] | None = None
    usual_shape: tuple[int, int, int] | None = None
    multiple = 1
    largest: int | None = None
    name = "model"
    prediction = "x0"
    fingerprint: str | None = None
    latent_scale = 1.0
    device = torch.device("cpu")
    rows_each = 1
    calls = rows = 0

    def conditions(self, prompt: Any, samples: int, name: str = "prompt") -> list:
        """One condition a sample, or a ValueError that names the argument, for one that it does not know."""
        raise NotImplementedError

    def x0(self, x: torch.Tensor, sigma: float, conditions: list) -> torch.Tensor:
        """x0 of every row of x, (row, channel, y, x), each under its own condition."""
        raise NotImplementedError

    def denoise(self, x: torch.Tensor, sigma: float, uncond: bool = False) -> Denoised:
        """The answer under the default condition, counted; `guide` binds another. NumPy gets NumPy."""
        bound = guide(self)
        given = torch.from_numpy(x).to(self.device) if isinstance(x, np.ndarray) else x
        out = bound.denoise(given, sigma, uncond)
        self.calls, self.rows = self.calls + bound.calls, self.rows + bound.rows
        if given is x:
            return out
        return Denoised(*(None if a is None else a.cpu().numpy() for a in out))

    def recorded(self) -> dict[str, Any]:
        """What the record of a run says of this model beside its name, levels, space and fingerprint."""
        return {}

    def facts(self) -> dict[str, Any]:
        """What the repr shows."""
        low, high = self.levels.sigma_min, self.levels.sigma_max
        sizes = self.shape or self.usual_shape or (self.channels,)
        latent, sigma = " x ".join(map(str, sizes)), f"{low:.4g} to {high:.4g}"
        return {"path": self.path.name, "latent": latent, "sigma": sigma, "prediction": self.prediction}

    def __repr__(self) -> str:
        return f"{self.name}(" + ", ".join(f"{k}={v}" for k, v in self.facts().items()) + ")"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in self.facts().items()
        )
        return f"<table><caption>{escape(self.name)}</caption>{rows}</table>"


class Denoiser:
    """A model with prompt, negative and guidance bound: ``denoise(x, sigma, uncond=False) -> Denoised``.

    Carries `path`, `levels`, `channels`, and counts its `calls` and network `rows`; made by `guide` and
    `denoiser`.

    Examples
    --------
    >>> import torch, toolkit as tk
    >>> model = tk.guide(tk.load(), prompt=3, cfg=2.0)
    >>> model.denoise(torch.zeros(1, 4, 8, 8), 1.0).x0.shape, model.calls, model.rows
    (torch.Size([1, 4, 8, 8]), 1, 2)
    """

    def __init__(self, model: Any, prompt: Any = None, negative: Any = None, cfg: float = 1.0):
        self.model, self.prompt, self.negative, self.cfg = model, prompt, negative, float(cfg)
        self.path, self.levels, self.channels = model.path, model.levels, model.channels
        self.guided = abs(self.cfg - 1.0) > 1e-9
        self.calls = self.rows = 0
        self._samples, self._conditions = None, ([], [])
        self._known: dict[str, list] = {}

    def bind(self, samples: int) -> None:
        """Resolve the conditions of a batch, so that a bad prompt raises before the first call."""
        if self._samples != samples:
            self._conditions = (self.resolved("prompt", samples), self.resolved("negative", samples))
            self._samples = samples

    def resolved(self, name: str, samples: int | None = None) -> list:
        """The conditions of "prompt" or "negative", one a sample (None: as many as it lists).

        Kept, since a text encoder may stand behind them: each is resolved once, however large the batch.
        """
        given = getattr(self, name)
        alone = not isinstance(given, (list, tuple))
        count = 1 if alone else len(given) if samples is None else samples
        if name not in self._known or len(self._known[name]) != count:
            self._known[name] = self.model.conditions(given, count, name)
        return self._known[name] * (samples or 1) if alone else self._known[name]

    def denoise(self, x: torch.Tensor, sigma: float, uncond: bool = False) -> Denoised:
        """x0 at (x, sigma): one batched forward of 2 rows a sample under guidance, of 1 without."""
        n = len(x)
        if n != self._samples:
            self.bind(n)
        positive, negative = self._conditions
        self.calls += 1
        if not (self.guided or uncond):
            self.rows += n * self.model.rows_each
            return Denoised(self.model.x0(x, sigma, positive))
        self.rows += 2 * n * self.model.rows_each
        both = self.model.x0(torch.cat([x, x]), sigma, negative + positive)
        u, c = both[:n], both[n:]
        return Denoised(u + self.cfg * (c - u) if self.guided else c, u)

    def __repr__(self) -> str:
        return (
            f"Denoiser({self.model!r}, prompt={self.prompt!r}, negative={self.negative!r}, cfg={self.cfg:g})"
        )


class _Function(Denoiser):
    """A function (x, sigma, uncond) -> x0 or Denoised as a denoiser; it has no conditions to bind."""

    def __init__(self, fn: Callable, path: Path, levels: Levels, channels: int | None, model: Any = None):
        self.fn, self.path, self.levels, self.channels, self.model = fn, path, levels, channels, model or self
        self.prompt = self.negative = None
        self.cfg, self.guided, self.calls, self.rows = 1.0, False, 0, 0

    def bind(self, samples: int) -> None:
        """Nothing to bind."""

    def denoise(self, x: torch.Tensor, sigma: float, uncond: bool = False) -> Denoised:
        self.calls += 1
        self.rows += len(x)
        out = self.fn(x, sigma, uncond)
        if not isinstance(out, tuple):
            return Denoised(out, out if uncond else None)
        return Denoised(*out) if not uncond or out[1] is not None else Denoised(out[0], out[0])

    def __repr__(self) -> str:
        return f"Denoiser(path={self.path!r}, levels={self.levels!r})"


def denoiser(
    fn: Callable[[torch.Tensor, float], Any], path: Path = VE, levels: Levels | None = None
) -> Denoiser:
    """A denoiser made of any function (x, sigma) -> x0.

    Parameters
    ----------
    fn : callable
        Gets x, (sample, channel, y, x) in the dtype of the state (float64 in every run), and sigma as a
        float; returns x0 of the same shape, or a `Denoised` that also has the unconditional answer.
    path : VE or FLOW
    levels : Levels, optional
        The clock and range of sigma; ``Levels.scaled_linear()`` on VE and ``Levels.flow(3.0)`` on FLOW where
        None.

    Raises
    ------
    TypeError
        Where `fn` is not callable or `path` is not a path.

    Examples
    --------
    >>> import toolkit as tk
    >>> model = tk.denoiser(lambda x, sigma: 0.5 * x)
    >>> tk.sample(model, shape=(1, 4, 8, 8), steps=3, progress=False).sizes["step"]
    4
    """
    if not callable(fn):
        raise bad("fn", fn, "a function (x, sigma) -> x0", "tk.denoiser(lambda x, sigma: 0.5 * x)", TypeError)
    if not isinstance(path, Path):
        raise bad("path", path, "tk.VE or tk.FLOW", "tk.denoiser(fn, path=tk.VE)", TypeError)
    return _Function(lambda x, sigma, uncond: fn(x, sigma), path, usual_levels(levels, path), None)


def usual_levels(given: Any, path: Path) -> Levels:
    """The levels as given; SD 1's on VE, flow with shift 3 on FLOW where None."""
    if given is None:
        return Levels.scaled_linear() if path == VE else Levels.flow(3.0)
    if not isinstance(given, Levels):
        raise bad("levels", given, "a model's table of sigmas", "levels=tk.Levels.scaled_linear()", TypeError)
    return given


def real_tensor(name: str, given: Any, line: str) -> torch.Tensor:
    """Numbers as a float64 tensor, where they lie."""
    if not isinstance(given, torch.Tensor):
        array = np.asarray(given) if not hasattr(given, "dims") else given.values
        if array.dtype.kind not in "iuf":
            raise bad(name, given, "an array of real numbers", line, TypeError)
        given = torch.from_numpy(np.ascontiguousarray(array, np.float64))
    if given.is_complex():
        raise bad(name, str(given.dtype), "an array of real numbers", line, TypeError)
    return given.to(torch.float64)


def as_model(given: Any) -> Any:
    """A model, or something that can stand for one: what denoises, with its path, levels and channels."""
    lacks = [name for name in ("denoise", "path", "levels", "channels") if not hasattr(given, name)]
    if lacks:
        line = "tk.load(), or tk.denoiser(fn, path=tk.VE)"
        raise bad("model", given, f"it lacks {', '.join(lacks)}", line, TypeError)
    return given


def guide(model: Any, prompt: Any = None, negative: Any = None, cfg: float = 1.0) -> Denoiser:
    """A fresh `Denoiser` of a model with its conditions bound: D = U + cfg (C - U), C positive, U negative.

    Parameters
    ----------
    model : Model, or anything with ``denoise(x, sigma)``, ``path``, ``levels`` and ``channels``
    prompt, negative : optional
        What the model conditions on (a label, a mixture's index, text); a list of them is one a sample.
    cfg : float
        Guidance scale. At 1 the network is called once a sample, unless a solver asks for the unconditional
        answer; otherwise one batched forward holds both.

    Raises
    ------
    ValueError, TypeError
        For a cfg that is not a finite number, a prompt the model does not know, conditions for a model
        without any.

    Examples
    --------
    >>> import toolkit as tk
    >>> tk.guide(tk.load(), prompt=3, cfg=2.0).cfg
    2.0
    """
    if isinstance(cfg, bool) or not isinstance(cfg, (int, float, np.number)) or not math.isfinite(cfg):
        raise bad("cfg", cfg, "a finite number", "cfg=1.0")
    if isinstance(model, Model):
        made = Denoiser(model, prompt, negative, cfg)
        for name in ("prompt", "negative"):
            made.resolved(name)
        return made
    as_model(model)
    for name, value, usual in (("prompt", prompt, None), ("negative", negative, None), ("cfg", cfg, 1.0)):
        if value is not usual and (value is None or usual is None or abs(value - usual) > 1e-9):
            raise bad(name, value, "this model has no conditions to bind", f"{name}={usual}")
    if isinstance(model, Denoiser):
        made = copy.copy(model)
        made.calls = made.rows = 0
        return made

    def call(x: torch.Tensor, sigma: float, uncond: bool) -> Any:
        return model.denoise(x, sigma, uncond=True) if uncond else model.denoise(x, sigma)

    return _Function(call, model.path, model.levels, model.channels, model)


class GaussianMixture(Model):
    """The closed-form model: the exact denoiser of a mixture of isotropic Gaussians, on VE and FLOW.

    With v = alpha^2 std^2 + sigma^2 and r_k = softmax_k(log w_k - |x - alpha mu_k|^2/(2 v)),
    D(x) = sum_k r_k (mu_k + (alpha std^2/v)(x - alpha mu_k)) = E[x0 | x].

    Parameters
    ----------
    means : array (K, channel, y, x), or (M, K, channel, y, x) with a leading axis of conditions
        NumPy or torch; where it lies is where the model runs.
    std : float
        Standard deviation within a component, positive.
    weights : array (K,) or (M, K), optional
        Positive; each row is scaled to sum to 1. None: equal.
    path : VE or FLOW
    levels : Levels, optional
        ``Levels.scaled_linear()`` on VE, ``Levels.flow(3.0)`` on FLOW where None.

    ``prompt=m`` picks condition m, by default 0; float64 inside, the dtype of x outside.

    Raises
    ------
    ValueError, TypeError
        For shapes that do not fit, a std or weight that is not positive, NaN.

    Examples
    --------
    >>> import numpy as np, toolkit as tk
    >>> model = tk.GaussianMixture(np.zeros((1, 4, 8, 8)), 1.0)
    >>> tk.sample(model, steps=4, progress=False).sizes["channel"]
    4
    """

    name = "GaussianMixture"

    def __init__(self, means, std: float, weights=None, path: Path = VE, levels: Levels | None = None):
        line = "tk.GaussianMixture(means, std=0.5, weights=None), means of shape (K, channel, y, x)"
        mu = real_tensor("means", means, line)
        if mu.ndim not in (4, 5) or 0 in mu.shape or not bool(torch.isfinite(mu).all()):
            raise bad(
                "means", tuple(mu.shape), "finite, of shape (K, channel, y, x) or (M, K, channel, y, x)", line
            )
        if not isinstance(path, Path):
            raise bad("path", path, "tk.VE or tk.FLOW", line, TypeError)
        real = isinstance(std, (int, float, np.number, np.ndarray)) and np.ndim(std) == 0
        if not real or isinstance(std, bool) or not (math.isfinite(std) and std > 0):
            raise bad("std", std, "a positive number", line)
        mu = mu if mu.ndim == 5 else mu[None]
        w = torch.ones(mu.shape[:2]) if weights is None else real_tensor("weights", weights, line)
        w = torch.atleast_2d(w.to(mu))
        if w.shape != mu.shape[:2] or not bool((w > 0).all()) or not bool(torch.isfinite(w).all()):
            raise bad("weights", weights, f"positive, of shape {tuple(mu.shape[:2])}", line)
        self.path, self.levels = path, usual_levels(levels, path)
        self.means, self.std, self.weights = mu.contiguous(), float(std), w / w.sum(1, keepdim=True)
        self.shape, self.channels, self.device = tuple(mu.shape[2:]), mu.shape[2], mu.device
        self._flat, self._log_w = self.means.flatten(2), self.weights.log()
        data = (
            b"".join(a.cpu().numpy().tobytes() for a in (self.means, self.weights)) + repr(self.std).encode()
        )
        self.fingerprint = hashlib.sha256(data).hexdigest()[:16]

    def facts(self) -> dict[str, Any]:
        conditions, components = self.weights.shape
        return {**super().facts(), "conditions": conditions, "components": components, "std": f"{self.std:g}"}

    def conditions(self, prompt: Any, samples: int, name: str = "prompt") -> list[int]:
        """Indices of the conditions, one a sample; None is condition 0."""
        return one_a_sample(prompt, samples, self._condition, name)

    def _condition(self, prompt: Any, name: str) -> int:
        count = len(self.means)
        if prompt is None:
            return 0
        if isinstance(prompt, bool) or not isinstance(prompt, (int, np.integer)) or not 0 <= prompt < count:
            raise bad(name, prompt, f"a condition of this mixture, 0 to {count - 1}", f"{name}=0")
        return int(prompt)

    def x0(self, x: torch.Tensor, sigma: float, conditions: Sequence[int]) -> torch.Tensor:
        alpha = self.path.alpha(sigma)
        var = alpha * alpha * self.std**2 + sigma * sigma
        gain = alpha * self.std**2 / var
        flat = x.to(torch.float64).flatten(1)  # (row, element)
        if all(c == conditions[0] for c in conditions):
            mu, log_w = (
                self._flat[conditions[0]][None],
                self._log_w[conditions[0]][None],
            )  # (1, K, element), (1, K)
        else:
            picked = torch.as_tensor(conditions, device=self.device)
            mu, log_w = self._flat[picked], self._log_w[picked]  # (row, K, element), (row, K)
        far = (flat[:, None] - alpha * mu).square().sum(-1)  # (row, K)
        r = torch.softmax(log_w - far / (2.0 * var), dim=1)
        mean = (r[:, None] @ mu.expand(len(flat), -1, -1))[:, 0]  # (row, element)
        return (gain * flat + (1.0 - gain * alpha) * mean).view(x.shape).to(x.dtype)

    def probability_flow(self, x, sigmas: Sequence[float], *, prompt: Any = None, negative: Any = None,
                         cfg: float = 1.0, tolerance: float = 1e-10,
                         progress: bool = False) -> torch.Tensor:  # fmt: skip
        """The exact probability-flow solution through `sigmas`; see `probability_flow`."""
        return probability_flow(guide(self, prompt, negative, cfg), x, sigmas, tolerance, progress)


def one_a_sample(prompt: Any, samples: int, resolve: Callable[[Any, str], Any], name: str) -> list:
    """`prompt` resolved, once for all samples or, where it is a list, one by one; `name` is for messages."""
    if not isinstance(prompt, (list, tuple)):
        return [resolve(prompt, name)] * samples
    if len(prompt) != samples or samples == 0:
        wanted = f"a list is one a sample, and there are {samples} samples"
        raise bad(name, prompt, wanted, f"{name}={(prompt[0] if prompt else None)!r}")
    return [resolve(p, name) for p in prompt]
