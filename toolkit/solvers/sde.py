"""SDE solvers with stages, in half log-SNR: no memory, several draws a step. They go down in sigma only.

h = lam_t - lam_s, H = (1 + eta) h. At FLOW's first level of 1, where lam is -infinity, s is a little less
(see `opening`); at t = s nothing moves and no noise is drawn; at t = 0 the step returns D.
"""

import math

import torch

from ..errors import bad
from .contract import Eval, falling, opening
from .phi import z_phi2


def _between(model, s: float, t: float, r: float) -> float:
    """The level at the share r of the way from s to t in half log-SNR, computed in float32.

    ComfyUI's scalars are float32, and its Brownian path is asked at this level. The path is rough: one unit
    in the last place of the level moves the draw by some 5e-4, so float64 here gives other numbers.
    """
    ends = torch.tensor((s, t), dtype=torch.float32)
    if model.path.name == "VE":
        a, b = ends.log().neg_()
        m = float((a + r * (b - a)).neg_().exp_())
    else:
        a, b = ends.logit().neg_()
        m = float((a + r * (b - a)).neg_().sigmoid_())
    return min(m, s)  # rounding must not lift it above s


def dpmpp_sde(model, x, span, past, noise, r: float = 0.5, eta: float = 1.0, s_noise: float = 1.0):
    """DPM-Solver++(SDE): order 2 at eta 0, 2 calls (1 at t = 0), stochastic, 2 draws. 2211.01095.

    lam_m = lam_s + r h;  (r1, u1) = V(rho_s, rho_m, eta);  (r2, u2) = V(rho_s, rho_t, eta)
    z = (alpha_m/alpha_s)(r1/rho_s) x + alpha_m (1 - r1/rho_s) D + s_noise alpha_m u1 n1
    y = (alpha_t/alpha_s)(r2/rho_s) x + alpha_t (1 - r2/rho_s) D~ + s_noise alpha_t u2 n2
    D~ = D + (D2 - D)/(2 r), D2 at (z, m)

    The draws are for (s, m) and (s, t), which overlap: in ComfyUI they are increments of one Brownian path,
    so correlated; independent ones make another consistent method.
    """
    falling(span, "dpmpp_sde")
    s, t, path = opening(model, span), span.t, model.path
    D = model.denoise(x, s).x0
    if t in (0, span.s):
        return x if t else D, Eval(s, x, D)
    m, rho = _between(model, s, t, r), path.rho(s)

    def hop(D, to: float):
        down, up = path.split(rho, path.rho(to), eta)
        a, up = path.alpha(to), s_noise * up
        y = D.mul(a * (1.0 - down / rho)).add_(x, alpha=a * down / s)
        return y.add_(noise(s, to), alpha=a * up) if up > 0 else y

    D2 = model.denoise(hop(D, m), m).x0
    return hop(D2 if r == 0.5 else torch.lerp(D, D2, 0.5 / r), t), Eval(s, x, D)


def _stage(x, D, s: float, to: float, alpha: float, h: float, eta: float):
    """(to/s) e^{-eta h} x - alpha E(-(1 + eta) h) D, a first-order hop of length h without its noise."""
    return D.mul(-alpha * math.expm1(-(1.0 + eta) * h)).add_(x, alpha=to / s * math.exp(-eta * h))


def _fresh(before, gap: float, scale: float, noise, s: float, t: float):
    """Noise at the next stage: e^-gap N + n sqrt(-E(-2 gap)), gap = eta times the half log-SNR passed."""
    if scale * gap <= 0:
        return before
    weight = math.sqrt(-math.expm1(-2.0 * gap))
    n = noise(s, t)
    return n * weight if before is None else (before * math.exp(-gap)).add_(n, alpha=weight)


def _noised(y, N, scale: float):
    """y + scale N in the storage of y, where there is noise."""
    return y if N is None else y.add_(N, alpha=scale)


def seeds_2(model, x, span, past, noise, r: float = 0.5, eta: float = 1.0, s_noise: float = 1.0):
    """SEEDS-2: order 2 at eta 0, 2 calls (1 at t = 0), stochastic, 2 draws. 2305.14267, data prediction.

    lam_m = lam_s + r h;  N1 = n1 sqrt(-E(-2 r eta h))
    z = (m/s) e^{-r eta h} x - alpha_m E(-r H) D + s_noise m N1;  D~ = D + (D2 - D)/(2 r), D2 at (z, m)
    N2 = e^{(r-1) eta h} N1 + n2 sqrt(-E(2 (r-1) eta h))
    y = (t/s) e^{-eta h} x - alpha_t E(-H) D~ + s_noise t N2
    """
    falling(span, "seeds_2")
    if r > 1:
        raise bad("r", r, "at most 1: the stage lies between s and t", 'tk.solver("seeds_2", r=0.5)')
    s, t, path = opening(model, span), span.t, model.path
    D = model.denoise(x, s).x0
    if t in (0, span.s):
        return x if t else D, Eval(s, x, D)
    lam = path.half_log_snr(s)
    h = path.half_log_snr(t) - lam
    m = path.from_half_log_snr(lam + r * h)
    N = _fresh(None, r * eta * h, s_noise, noise, s, m)
    z = _noised(_stage(x, D, s, m, path.alpha(m), r * h, eta), N, s_noise * m)
    D2 = model.denoise(z, m).x0
    N = _fresh(N, (1.0 - r) * eta * h, s_noise, noise, m, t)
    y = _stage(x, D2 if r == 0.5 else torch.lerp(D, D2, 0.5 / r), s, t, path.alpha(t), h, eta)
    return _noised(y, N, s_noise * t), Eval(s, x, D)


def seeds_3(model, x, span, past, noise, r1: float = 1 / 3, r2: float = 2 / 3, eta: float = 1.0,
            s_noise: float = 1.0):  # fmt: skip
    """SEEDS-3: order 3 at eta 0, 3 calls (1 at t = 0), stochastic, 3 draws. 2305.14267, data prediction.

    lam_k = lam_s + r_k h, sigma m_k;  P(q) = (E(q) - q)/q;  N1, N2, N3 as in `seeds_2`, from level to level
    z2 = (m1/s) e^{-r1 eta h} x - alpha_1 E(-r1 H) D + s_noise m1 N1, D2 at (z2, m1)
    z3 = (m2/s) e^{-r2 eta h} x - alpha_2 (a31 D + a32 D2) + s_noise m2 N2, D3 at (z3, m2)
    y = (t/s) e^{-eta h} x - alpha_t (b1 D + b3 D3) + s_noise t N3
    a32 = (r2/r1) P(-r2 H), a31 = E(-r2 H) - a32;  b3 = P(-H)/r2, b1 = E(-H) - b3
    """
    falling(span, "seeds_3")
    if not r1 < r2 <= 1:
        why = "r1 below r2, and r2 at most 1: the stages lie between s and t"
        raise bad("r1, r2", (r1, r2), why, 'tk.solver("seeds_3", r1=1/3, r2=2/3)')
    s, t, path = opening(model, span), span.t, model.path
    D = model.denoise(x, s).x0
    if t in (0, span.s):
        return x if t else D, Eval(s, x, D)
    lam = path.half_log_snr(s)
    h = path.half_log_snr(t) - lam
    H = (1.0 + eta) * h
    m1, m2 = path.from_half_log_snr(lam + r1 * h), path.from_half_log_snr(lam + r2 * h)
    N = _fresh(None, r1 * eta * h, s_noise, noise, s, m1)
    z2 = _noised(_stage(x, D, s, m1, path.alpha(m1), r1 * h, eta), N, s_noise * m1)
    D2 = model.denoise(z2, m1).x0
    N = _fresh(N, (r2 - r1) * eta * h, s_noise, noise, m1, m2)
    # E D + a (D2 - D) = (E - a) D + a D2: the hop of first order and what a stage corrects it by
    z3 = _stage(x, D, s, m2, path.alpha(m2), r2 * h, eta)
    z3.add_(D2 - D, alpha=-path.alpha(m2) * r2 / r1 * z_phi2(-r2 * H))
    D3 = model.denoise(_noised(z3, N, s_noise * m2), m2).x0
    N = _fresh(N, (1.0 - r2) * eta * h, s_noise, noise, m2, t)
    y = _stage(x, D, s, t, path.alpha(t), h, eta).add_(D3 - D, alpha=-path.alpha(t) * z_phi2(-H) / r2)
    return _noised(y, N, s_noise * t), Eval(s, x, D)
