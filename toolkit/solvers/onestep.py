"""One-step solvers: no memory. D is the denoised at (x, s), d = (x - D)/s the slope, on VE and FLOW alike.

Churn (2206.00364 alg. 2), an option of `euler`, `heun`, `heunpp2` and `dpm_2`: before the step the state is
raised to v = s (1 + gamma) with fresh noise, and the step starts there. It is meant for VE.
"""

import math

import torch

from ..errors import bad
from .contract import Eval, falling

MOST_CHURN = math.sqrt(2.0) - 1.0  # 2206.00364 alg. 2: no more new noise than is there already


def churned(x, span, noise, S_churn: float, S_tmin: float, S_tmax: float, s_noise: float):
    """The state raised by churn, and its sigma: what the step starts from, and what its Eval must hold.

    gamma = min(S_churn/n, sqrt 2 - 1) where S_tmin <= s <= S_tmax, else 0;  v = s (1 + gamma)
    x_hat = x + s_noise n sqrt(v^2 - s^2)
    """
    s, t = span.s, span.t
    if t > s:
        why = "churn adds noise on the way down: there is none upwards"
        raise bad("S_churn", S_churn, why, 'tk.solver("euler", S_churn=0.0)')
    gamma = min(S_churn / span.n, MOST_CHURN) if S_tmin <= s <= S_tmax else 0.0
    if gamma == 0 or s == t:  # a hop of no length moves nothing
        return x, s
    v = s * (1.0 + gamma)
    if s_noise == 0:
        return x, v
    return x.add(noise(s, v), alpha=s_noise * math.sqrt(v * v - s * s)), v


def euler(model, x, span, past, noise, S_churn: float = 0.0, S_tmin: float = 0.0, S_tmax: float = math.inf,
          s_noise: float = 1.0):  # fmt: skip
    """Euler: order 1, 1 call, no memory. 2206.00364 alg. 1 (alg. 2 with churn); DDIM, 2010.02502.

    y = x + (t - s) d = (t/s) x + (1 - t/s) D
    """
    s, t = span.s, span.t
    if S_churn:
        x, s = churned(x, span, noise, S_churn, S_tmin, S_tmax, s_noise)
    D = model.denoise(x, s).x0
    return torch.lerp(D, x, t / s), Eval(s, x, D)


def heun(model, x, span, past, noise, S_churn: float = 0.0, S_tmin: float = 0.0, S_tmax: float = math.inf,
         s_noise: float = 1.0):  # fmt: skip
    """Heun: order 2, 2 calls (1 at t = 0), no memory. 2206.00364 alg. 1 (alg. 2 with churn).

    z = x + (t - s) d;  d2 = (z - D2)/t, D2 at (z, t);  y = x + (t - s)(d + d2)/2
    """
    s, t = span.s, span.t
    if S_churn:
        x, s = churned(x, span, noise, S_churn, S_tmin, S_tmax, s_noise)
    D = model.denoise(x, s).x0
    z = torch.lerp(D, x, t / s)
    if t == 0:
        return z, Eval(s, x, D)
    D2 = model.denoise(z, t).x0
    half = 0.5 * (t - s)
    return x.add(x - D, alpha=half / s).add_(z - D2, alpha=half / t), Eval(s, x, D)


def heunpp2(model, x, span, past, noise, S_churn: float = 0.0, S_tmin: float = 0.0, S_tmax: float = math.inf,
            s_noise: float = 1.0):  # fmt: skip
    """Heun++: order 1, 3 calls (2 and 1 in the last two hops), no memory. From sd-webui-samplers-scheduler.

    z = x + (t - s) d;  d2 = (z - D2)/t, D2 at (z, t);  z3 = z + (u - t) d2;  d3 = (z3 - D3)/u, D3 at (z3, u)
    w2 = t/(3 g_0), w3 = u/(3 g_0), w1 = 1 - w2 - w3;  y = x + (t - s)(w1 d + w2 d2 + w3 d3)

    u is the level after t, g_0 the first of the grid. Where u is the last one, w2 = t/(2 g_0), w3 = 0; where
    t is the last one, whether 0 or not, Euler. The weights meet no order condition beyond the first, depend
    on where the grid began, and explode upwards, which is refused.
    """
    s, t = falling(span, "heunpp2")
    top, end = span.levels[0], span.levels[-1]
    if S_churn:
        x, s = churned(x, span, noise, S_churn, S_tmin, S_tmax, s_noise)
    D = model.denoise(x, s).x0
    z, seen = torch.lerp(D, x, t / s), Eval(s, x, D)
    if t == end:
        return z, seen
    u, h = span.levels[span.i + 2], t - s
    D2 = model.denoise(z, t).x0
    if u == end:
        w2 = t / (2.0 * top)
        return x.add(x - D, alpha=h * (1.0 - w2) / s).add_(z - D2, alpha=h * w2 / t), seen
    z3 = torch.lerp(D2, z, u / t)
    D3 = model.denoise(z3, u).x0
    w2, w3 = t / (3.0 * top), u / (3.0 * top)
    y = x.add(x - D, alpha=h * (1.0 - w2 - w3) / s).add_(z - D2, alpha=h * w2 / t)
    return y.add_(z3 - D3, alpha=h * w3 / u), seen


def dpm_2(model, x, span, past, noise, S_churn: float = 0.0, S_tmin: float = 0.0, S_tmax: float = math.inf,
          s_noise: float = 1.0):  # fmt: skip
    """DPM-Solver-2: order 2, 2 calls (1 at t = 0), no memory. 2206.00927, 2206.00364.

    m = sqrt(s t);  z = x + (m - s) d;  y = x + (t - s)(z - D2)/m, D2 at (z, m)

    The midpoint is that of log sigma, the step one in sigma: not the paper's exponential form, as in ComfyUI.
    """
    s, t = span.s, span.t
    if S_churn:
        x, s = churned(x, span, noise, S_churn, S_tmin, S_tmax, s_noise)
    D = model.denoise(x, s).x0
    if t == 0:
        return D, Eval(s, x, D)
    m = math.sqrt(s * t)
    z = torch.lerp(D, x, m / s)
    D2 = model.denoise(z, m).x0
    return x.add(z - D2, alpha=(t - s) / m), Eval(s, x, D)


def midpoint(model, x, span, past, noise):
    """Midpoint in sigma: order 2, 2 calls (1 at t = 0), no memory. What RF-Solver's code does (2411.04746).

    z = x + (h/2) d, h = t - s, m = s + h/2;  y = x + h (z - D2)/m, D2 at (z, m)
    """
    s, t = span.s, span.t
    D = model.denoise(x, s).x0
    if t == 0:
        return D, Eval(s, x, D)
    m = 0.5 * (s + t)
    z = torch.lerp(D, x, m / s)
    D2 = model.denoise(z, m).x0
    return x.add(z - D2, alpha=(t - s) / m), Eval(s, x, D)
