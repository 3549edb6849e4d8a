"""DPM-Solver-fast and -adaptive (2206.00927): single-step solvers with a grid of their own.

The clock is ell = -log sigma on both paths, h = ell_t - ell_s; both stop at the last positive level, whose
noise the result still holds. With eps = (x - D)/s, sigma_r = s e^{-r h}, u_r the state of a stage, eps_r its
(u_r - D(u_r, sigma_r))/sigma_r, a hop from s to t is

order 1: S1 = x - t E(h) eps = (t/s) x + (1 - t/s) D, since t E(h) = s - t
order 2: u = x - sigma_r E(r h) eps;  S2 = S1 - (s - t)(eps_r - eps)/(2 r)
order 3: r1 = 1/3, r2 = 2/3
         u2 = x - sigma_r2 E(r2 h) eps - sigma_r2 (r2/r1)(E(r2 h)/(r2 h) - 1)(eps_r1 - eps)
         S3 = S1 - (t/r2)(E(h)/h - 1)(eps_r2 - eps)

With eta, a hop goes on to a lower level, to = max(down, last level) with (down, up) = V(s, t, eta), and adds
noise of variance t^2 - to^2: right on VE, while on FLOW the state leaves the path, as in ComfyUI.
"""

import math
from dataclasses import dataclass

import torch

from ..errors import bad
from .contract import Eval, Span, Step
from .phi import z_phi2

CLOSE_ENOUGH = 1e-5  # in ell: what is left of the way when `dpm_adaptive` is done
SHORTEST = 1e-8  # in ell: a controller that asks for shorter hops would take thousand millions of them
TINY = 1e-8  # keeps the controller's 1/error finite
HOP_ORDER = 3  # of `dpm_adaptive`: its controller takes the error for O(h^3)


def _positive(levels, name: str) -> list[float]:
    """The positive levels, of which the first and the last differ."""
    found = [level for level in levels if level > 0]
    if len(found) < 2 or found[0] == found[-1]:
        why = f"two different positive levels at least: {name} stops at the last one, never at 0"
        raise bad("sigmas", tuple(levels), why, 'tk.schedule(model, "karras", steps=20).sigma.values')
    return found


def _landing(path, levels, s: float, t: float, eta: float) -> float:
    """The level at which the deterministic part of a hop ends: t, or with eta one below it."""
    if eta == 0 or s == t:
        return t
    return max(path.split(s, t, eta)[0], levels[-1] or levels[-2])


def _raised(y, to: float, s: float, t: float, s_noise: float, noise):
    """y, raised from level `to` to t in its own storage."""
    up = s_noise * math.sqrt(t * t - to * to) if to < t else 0.0
    return y.add_(noise(s, t), alpha=up) if up > 0 else y


def _second(model, x, D, s: float, t: float):
    """S2 with r = 1/2: the stage at sqrt(s t)."""
    m = math.sqrt(s * t)
    u = torch.lerp(D, x, m / s)
    return x.add(u - model.denoise(u, m).x0, alpha=(t - s) / m)


def _third(model, x, D, s: float, t: float, embedded: bool = False):
    """S3, and S2 with r = 1/3 of the same stages where it is wanted (else None)."""
    ratio = t / s
    h, m1, m2 = -math.log(ratio), s * ratio ** (1 / 3), s * ratio ** (2 / 3)
    eps = (x - D).div_(s)
    u1 = torch.lerp(D, x, m1 / s)
    bend = (u1 - model.denoise(u1, m1).x0).div_(m1).sub_(eps)  # eps_r1 - eps
    u2 = torch.lerp(D, x, m2 / s).add_(bend, alpha=-2.0 * m2 * z_phi2(2.0 * h / 3.0))
    bend2 = (u2 - model.denoise(u2, m2).x0).div_(m2).sub_(eps)  # eps_r2 - eps
    first = torch.lerp(D, x, ratio)
    low = first.add(bend, alpha=1.5 * (t - s)) if embedded else None
    return first.add_(bend2, alpha=-1.5 * t * z_phi2(h)), low


def fast_orders(n: int) -> list[int]:
    """Orders of the hops of `dpm_fast`, which spend n model calls: threes, then what is left."""
    m = n // 3 + 1
    return [3] * (m - 2) + [2, 1] if n % 3 == 0 else [3] * (m - 1) + [n % 3]


def fast_grid(levels: tuple[float, ...], eta: float = 0.0, s_noise: float = 1.0, steps: int | None = None):
    """The floor(n/3) + 2 levels of `dpm_fast` for a grid of n hops: even in log sigma, ends as they are.

    Where `steps` says what n is, the grid is the solver's own already.
    """
    if steps is not None:
        return levels
    found, n = _positive(levels, "dpm_fast"), len(levels) - 1
    hops = n // 3 + 1
    start, ratio = found[0], found[-1] / found[0]
    return (start, *(start * ratio ** (k / hops) for k in range(1, hops)), found[-1])


def dpm_fast(model, x, span, past, noise, eta: float = 0.0, s_noise: float = 1.0, steps: int | None = None):
    """DPM-Solver-fast: order 2 (3 inside, lower in the last hops), 3 calls, no memory. 2206.00927 app.

    With n the hops of the grid asked for, m = floor(n/3) + 1 hops, which spend n calls in all. Orders: where
    3 divides n, 3 (m - 2 times), 2, 1; else 3 (m - 1 times), n mod 3. The hops: see the head of this file.

    ``steps=n`` says what n is where the grid handed in is the solver's own already, as in a replay.
    """
    s, t = span.s, span.t
    n = len(span.asked) - 1 if steps is None and span.asked is not None else steps
    if n is None:
        why = "None where the grid asked for is not known either: the orders of the hops follow from it"
        raise bad("steps", n, why, 'tk.solver("dpm_fast", steps=20)')
    orders = fast_orders(n)
    if t > 0 and span.i >= len(orders):
        line = f'tk.solver("dpm_fast", steps={3 * len([p for p in span.levels if p > 0]) - 4})'
        raise bad("steps", n, f"it makes {len(orders)} hops, and this is hop {span.i + 1}", line)
    D = model.denoise(x, s).x0
    if t == 0:
        return D, Eval(s, x, D)
    order, to = orders[span.i], _landing(model.path, span.levels, s, t, eta)
    if order == 1:
        y = torch.lerp(D, x, to / s)
    else:
        y = _second(model, x, D, s, to) if order == 2 else _third(model, x, D, s, to)[0]
    return _raised(y, to, s, t, s_noise, noise), Eval(s, x, D)


@dataclass(frozen=True)
class Control:
    """Options of `dpm_adaptive`: tolerances, the first h, a PID controller, its threshold; and the noise."""

    rtol: float = 0.05
    atol: float = 0.0078
    h_init: float = 0.05
    pcoeff: float = 0.0
    icoeff: float = 1.0
    dcoeff: float = 0.0
    accept_safety: float = 0.81
    eta: float = 0.0
    s_noise: float = 1.0

    def __post_init__(self):
        if self.accept_safety > 1:  # a rejected hop could then be followed by the same one, for ever
            line = 'tk.solver("dpm_adaptive", accept_safety=0.81)'
            raise bad("accept_safety", self.accept_safety, "at most 1", line)

    def error(self, high, low, x_prev) -> float:
        """Root mean square of (low - high)/max(atol, rtol max(|low|, |x_prev|)), over the batch too."""
        scale = torch.maximum(low.abs(), x_prev.abs()).mul_(self.rtol).clamp_min_(self.atol)
        return float((low - high).div_(scale).norm()) / math.sqrt(low.numel())

    def factor(self, values: tuple[float, float, float]) -> float:
        """What h is multiplied by: 1 + atan(v0^b1 v1^b2 v2^b3 - 1), v = 1/error now and at the last two hops.

        b1 = (p + i + d)/k, b2 = -(p + 2 d)/k, b3 = d/k, k = 3, with noise 3/2.
        """
        p, i, d = self.pcoeff, self.icoeff, self.dcoeff
        k = HOP_ORDER / 2 if self.eta else HOP_ORDER
        v0, v1, v2 = values
        return 1.0 + math.atan(v0 ** ((p + i + d) / k) * v1 ** (-(p + 2 * d) / k) * v2 ** (d / k) - 1.0)


def dpm_adaptive(model, x, span, past, noise, rtol: float = Control.rtol, atol: float = Control.atol,
                 h_init: float = Control.h_init, pcoeff: float = Control.pcoeff,
                 icoeff: float = Control.icoeff, dcoeff: float = Control.dcoeff,
                 accept_safety: float = Control.accept_safety, eta: float = Control.eta,
                 s_noise: float = Control.s_noise):  # fmt: skip
    """DPM-Solver-23: order 3 (its error estimate 2), 3 calls an attempt, memory 1. 2206.00927 app. C.

    This is the hop between two given levels, S3 as at the head of this file, which no controller sees: how a
    recorded grid is replayed. `adaptive` chooses the levels.
    """
    s, t = span.s, span.t
    D = model.denoise(x, s).x0
    if t == 0:
        return D, Eval(s, x, D)
    to = _landing(model.path, span.levels, s, t, eta)
    return _raised(_third(model, x, D, s, to)[0], to, s, t, s_noise, noise), Eval(s, x, D)


def adaptive(solver, model, x, sigmas, noise, past, start, stop):
    """The generator of Steps of `dpm_adaptive`, one an accepted hop, between the positive ends of `sigmas`.

    ell_t = ell_s + h, ell_e at most;  low = S2 with r = 1/3, high = S3 (see the head of this file)
    error = |(low - high)/max(atol, rtol max(|low|, |x_prev|))|_rms;  f as in `Control.factor`
    accepted where f >= accept_safety: x = high, x_prev = low;  h = f h, accepted or not

    ``Eval.aux`` is (h, x_prev, the levels up to t, 1/error of the last two hops), all that a resume needs.
    The norm runs over the batch: what a sample becomes depends on its companions. Where a hop is tried again,
    D at its start is kept: 2 calls.
    """
    control, (top, *_, end) = Control(**solver.options), _positive(solver.grid(sigmas), solver.name)
    sign = math.copysign(1.0, top - end)  # ell rises where sigma falls
    state = past[0].aux if past else None
    if start > 0 and not (isinstance(state, tuple) and len(state) == 4 and len(state[2]) == start + 1):
        line = "tk.steps(model, solver, step.x_next, sigmas, past=step.past, start=step.span.i + 1)"
        raise bad("start", start, "hop to go on from, with the past of the hop before it", line)
    h, x_prev, levels, errors = state if start > 0 else (sign * control.h_init, x, (top,), ())
    i = start
    while (stop is None or i < stop) and sign * math.log(levels[-1] / end) > CLOSE_ENOUGH:
        s, before = levels[-1], model.calls
        D, accepted = model.denoise(x, s).x0, False
        while not accepted:
            if abs(h) < SHORTEST:
                raise _stuck(s, f"its step has shrunk to {h:.3g} in log sigma")
            ell = h - math.log(s)
            t = end if sign * (ell + math.log(end)) >= 0 else math.exp(-ell)
            to = _landing(model.path, (end,), s, t, control.eta)
            high, low = _third(model, x, D, s, to, embedded=True)
            error = control.error(high, low, x_prev)
            if not math.isfinite(error):
                raise _stuck(s, "the model's answer, or the state, is not finite")
            inverse = 1.0 / (error + TINY)
            errors = errors or (inverse, inverse)
            factor = control.factor((inverse, *errors))
            accepted, h = factor >= control.accept_safety, factor * h
        levels, errors = (*levels, t), (inverse, errors[0])
        y = _raised(high, to, s, t, control.s_noise, noise.at(i))
        seen = Eval(s, x, D, (h, low, levels, errors), model.calls - before)
        yield Step(Span(levels, i, sigmas), x, y, seen, (seen,))
        x, x_prev, i = y, low, i + 1


def _stuck(s: float, why: str) -> Exception:
    """The error of a controller that makes no progress."""
    line = 'tk.solver("dpm_adaptive", rtol=0.1, atol=0.05), or tk.solver("dpmpp_2m") on a fixed grid'
    return bad("sigma", s, f"dpm_adaptive makes no progress from here: {why}", line, FloatingPointError)
