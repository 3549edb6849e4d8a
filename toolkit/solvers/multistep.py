"""Linear multistep solvers in sigma: slopes of the past, formed from the x and x0 of each Eval."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .contract import Eval, falling

_GAUSS = (0.5 - 0.5 / math.sqrt(3.0), 0.5 + 0.5 / math.sqrt(3.0))  # 2 points: exact for the cubic of 4 nodes

# Adams-Bashforth on equal steps, newest slope first (2202.09778)
ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)

# The VP clock of deis (2204.13902): beta_d and beta_min of a linear beta schedule from sigma 0.002 to 80 at
# epsilon 0.001, whatever the model. BETA_MIN is -0.00476898649 if computed in float64; ComfyUI has log(1 +
# 0.002^2) in float32, 1.3 % off, and a run upwards sees the difference.
BETA_D, BETA_MIN = 17.5378511304, -0.00471581790
_DEIS_POINTS, _DEIS_WEIGHTS = np.polynomial.legendre.leggauss(24)


def distinct(past: Sequence[Eval], sigma: float) -> list[Eval]:
    """The Evals of `past` at levels other than `sigma` and each other's: `simple` repeats levels."""
    out: list[Eval] = []
    met = [sigma]
    for old in past:
        if old.sigma not in met:  # a node twice adds nothing, and divides by zero
            met.append(old.sigma)
            out.append(old)
    return out


def along(x, evals: Sequence[Eval], weights: Sequence[float]):
    """x + sum_j w_j d_j, with the slope d_j = (x_j - x0_j)/sigma_j of each Eval."""
    y = x.add(evals[0].x - evals[0].x0, alpha=weights[0] / evals[0].sigma)
    for e, w in zip(evals[1:], weights[1:], strict=True):
        y.add_(e.x - e.x0, alpha=w / e.sigma)
    return y


def lagrange_integrals(nodes: list[float], s: float, t: float) -> list[float]:
    """The integral from s to t of each Lagrange basis polynomial on up to 4 distinct nodes."""
    points = [s + u * (t - s) for u in _GAUSS]
    out = []
    for j, node in enumerate(nodes):
        total = 0.0
        for p in points:
            value = 1.0
            for k, other in enumerate(nodes):
                if k != j:
                    value *= (p - other) / (node - other)
            total += value
        out.append(0.5 * (t - s) * total)
    return out


def lms(model, x, span, past, noise):
    """Adams-Bashforth with variable steps: order 4 (2 from a cold start), 1 call, memory 3. k-diffusion.

    y = x + sum_j d_-j c_j, c_j = integral from s to t of L_j, the Lagrange basis on the nodes s, sigma_-1,
    ...
    """
    s, t = span.s, span.t
    D = model.denoise(x, s).x0
    seen = Eval(s, x, D)
    if t == 0:
        return D, seen
    evals = [seen, *distinct(past, s)]
    return along(x, evals, lagrange_integrals([e.sigma for e in evals], s, t)), seen


def ipndm(model, x, span, past, noise):
    """iPNDM: order 4 on levels even in sigma, else 2, 1 call, memory 3. 2202.09778, 2204.13902.

    y = x + (t - s) A;  A = d, then (3 d - d_-1)/2, then (23 d - 16 d_-1 + 5 d_-2)/12, then (55 d - 59 d_-1 +
    37 d_-2 - 9 d_-3)/24

    The weights are those of equal steps, whatever the steps are; `lms` has the true ones.
    """
    s, t = span.s, span.t
    D = model.denoise(x, s).x0
    seen = Eval(s, x, D)
    if t == 0:
        return D, seen
    return along(x, (seen, *past), [(t - s) * w for w in ADAMS_BASHFORTH[len(past)]]), seen


def _variable_weights(h: Sequence[float]) -> list[float]:
    """ComfyUI's c_1, c_2, ... of ipndm_v, from the steps h0 (the coming one), h1, h2, h3 (the oldest)."""
    if len(h) == 1:
        return [1.0]
    h0, h1 = h[:2]
    half = 0.5 * h0 / h1
    if len(h) == 2:
        return [1.0 + half, -half]
    h2 = h[2]
    T = 0.5 * (1.0 - h0 * h0 / (3.0 * h1 * (h1 + h2)))
    c = [1.0 + half + T, -half - (1.0 + h1 / h2) * T, T * h1 / h2]
    if len(h) == 3:
        return c
    h3 = h[3]
    h01, h012, h12, h123 = h0 + h1, h0 + h1 + h2, h1 + h2, h1 + h2 + h3
    Q = 0.5 * (1.0 - h0 / (3.0 * h01)) + (1.0 - h0 / (2.0 * h01)) * h0 / (6.0 * h012)
    Q *= h0 * h01 * h012 / (h1 * h12 * h123)
    B = h1 * h12 / (h2 * (h2 + h3))
    c[0] += Q
    c[1] -= (1.0 + h1 / h2 + B) * Q
    c[2] += (h1 / h2 + B * (1.0 + h2 / h3)) * Q
    return [*c, -Q * B * h1 / h2]


def ipndm_v(model, x, span, past, noise):
    """iPNDM with variable steps: order 3 (2 from a cold start), 1 call, memory 3. 2204.13902; ComfyUI.

    y = x + h0 (c1 d + c2 d_-1 + c3 d_-2 + c4 d_-3), h0 = t - s, h1 = s - sigma_-1, ...; c: _variable_weights

    The weights are ComfyUI's, which are not Adams-Bashforth's: one bracket is misplaced, and the newest term
    is 11/24 where equal steps need 9/24. So order 3 and not 4, and 2 where the ratio of the steps varies:
    only where it is constant do they add up to 1. The exact solver is `lms`.
    """
    s, t = span.s, span.t
    D = model.denoise(x, s).x0
    seen = Eval(s, x, D)
    if t == 0:
        return D, seen
    evals = [seen, *distinct(past, s)]
    h = [t - s, *(a.sigma - b.sigma for a, b in pairwise(evals))]
    return along(x, evals, [h[0] * c for c in _variable_weights(h)]), seen


def _vp_time(sigma: np.ndarray) -> np.ndarray:
    return (np.sqrt(BETA_MIN**2 + 2.0 * BETA_D * np.log1p(sigma * sigma)) - BETA_MIN) / BETA_D


def _deis_weights(nodes: list[float], s: float, t: float) -> list[float]:
    """The integral from s to t, in sigma, of each Lagrange basis polynomial in VP time on the `nodes`."""
    if len(nodes) == 1:
        return [t - s]
    half = 0.5 * (t - s)
    tau = _vp_time(s + half * (1.0 + _DEIS_POINTS))  # (point,)
    at = _vp_time(np.array(nodes)).tolist()
    out = []
    for j, node in enumerate(at):
        value = half * _DEIS_WEIGHTS
        for k, other in enumerate(at):
            if k != j:
                value = value * ((tau - other) * (1.0 / (node - other)))
        out.append(float(value.sum()))
    return out


def deis(model, x, span, past, noise):
    """tAB-DEIS: order 3 (2 from a cold start), 1 call, memory 2. 2204.13902.

    y = x + sum_j C_j d_-j, C_j = integral from s to t of L_j(tau(sigma)) dsigma, L_j the Lagrange basis on
    the VP times tau(sigma) = (sqrt(beta_min^2 + 2 beta_d log(1 + sigma^2)) - beta_min)/beta_d of the nodes

    The clock is ComfyUI's and the same for all models, FLOW included, where the paper takes the model's own.
    """
    s, t = span.s, span.t
    D = model.denoise(x, s).x0
    seen = Eval(s, x, D)
    if t == 0:
        return D, seen
    evals = [seen, *distinct(past, s)]
    return along(x, evals, _deis_weights([e.sigma for e in evals], s, t)), seen


def gradient_estimation(model, x, span, past, noise, gamma: float = 2.0):
    """Gradient estimation: order 1 (2 at gamma 1.5), 1 call, memory 1. 2306.04848.

    y = x + (t - s) (gamma d + (1 - gamma) d_-1); the first step is Euler's
    """
    s, t = span.s, span.t
    D = model.denoise(x, s).x0
    seen = Eval(s, x, D)
    if t == 0:
        return D, seen
    h = t - s
    weights = [gamma * h, (1.0 - gamma) * h] if past else [h]
    return along(x, (seen, *past), weights), seen


def gradient_estimation_cfg_pp(model, x, span, past, noise, gamma: float = 2.0):
    """Gradient estimation with CFG++: order 1 where U = D, else none, 1 call, memory 1.

    2306.04848, 2406.08070.

    v = (x - U)/s;  y = D + t v + (gamma - 1)(t - s)(v - v_-1), the last term from the second step on

    Every step adds D - U whole, whatever its length: under guidance there is no limit of many steps. ComfyUI
    takes D at the cfg it is given, where the paper maps it to [0, 1].
    """
    s, t = falling(span, "gradient_estimation_cfg_pp")
    D, U = model.denoise(x, s, uncond=True)
    seen = Eval(s, x, D, U)
    if t == 0 or t == s:  # between equal levels D - U would still be added
        return (D if t == 0 else x), seen
    if not past:
        return D.add(x - U, alpha=t / s), seen
    more, old = (gamma - 1.0) * (t - s), past[0]
    y = D.add(x - U, alpha=(t + more) / s)
    return y.add_(old.x - old.aux, alpha=-more / old.sigma), seen


def _kept_slope(model, x, s: float, past):
    """D and the slope that the step before has kept; D is None then. At the start D and d at (x, s)."""
    if past and past[0].aux is not None:
        return None, past[0].aux
    D = model.denoise(x, s).x0
    return D, (x - D) * (1.0 / s)


def fireflow(model, x, span, past, noise):
    """FireFlow: order 2, 1 call (first step: 2), memory 1. 2412.07517.

    m = s + h/2, h = t - s;  z = x + (h/2) v_-1;  v = (z - D2)/m, D2 at (z, m);  y = x + h v

    The midpoint rule whose predictor slope v_-1 is the midpoint slope of the step before, d at first. The
    model sees the midpoints only: x0 at (x, s) is known in the first step and the last, to 0.
    """
    s, t = span.s, span.t
    if t == 0:
        D = model.denoise(x, s).x0
        return D, Eval(s, x, D)
    D, v = _kept_slope(model, x, s, past)
    h = t - s
    m = s + 0.5 * h
    z = x.add(v, alpha=0.5 * h)
    v = (z - model.denoise(z, m).x0) * (1.0 / m)
    return x.add(v, alpha=h), Eval(s, x, D, v)


def uni_inv(model, x, span, past, noise):
    """Uni-Inv: order 1, 1 call (first step: 2), memory 1. 2504.13109.

    y = x + h v_-1, h = t - s;  v = d(y, t);  x + h v is returned, and v kept

    Euler with the slope of the far end, so upwards it nears the inverse of Euler's way down and not the ODE.
    The first slope is d(x, s); to 0, where there is none, D at (x, s) is returned.
    """
    s, t = span.s, span.t
    if t == 0:
        D = model.denoise(x, s).x0
        return D, Eval(s, x, D)
    D, v = _kept_slope(model, x, s, past)
    h = t - s
    y = x.add(v, alpha=h)
    v = (y - model.denoise(y, t).x0) * (1.0 / t)
    return x.add(v, alpha=h), Eval(s, x, D, v)
