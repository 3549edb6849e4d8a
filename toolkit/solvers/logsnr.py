"""Multistep solvers in log-SNR, for the data prediction D."""

import math

import numpy as np
import torch

from .contract import Eval, Span, falling, opening
from .multistep import distinct
from .phi import phis

# er_sde's noise scaling psi(r) = r (exp(r^0.3) + 10), and the points of its integrals (2309.06169)
ER_POWER, ER_SHIFT, ER_POINTS = 0.3, 10.0, 200
_ER_STEPS = np.arange(ER_POINTS, dtype=np.float64)


def dpmpp_2m(model, x, span, past, noise, textbook: bool = False):
    """DPM-Solver++(2M): order 2, 1 call, memory 1. 2211.01095.

    D~ = D + (D - D_-1)/(2 q), q = log(sigma_-1/s)/log(s/t);  y = (t/s) x + (1 - t/s) D~

    The clock is -log sigma on both paths, as in ComfyUI; on FLOW the paper's is half log-SNR, another method
    of this order: `textbook`. There the first level of 1 is a little less, and a hop up to 1 is infinitely
    long and taken with D.
    """
    s, t = (opening(model, span) if textbook else span.s), span.t
    D = model.denoise(x, s).x0
    seen = Eval(s, x, D)
    if t == span.s != 0:
        return x, seen
    if not past or t == 0 or past[0].sigma == s:  # a level that repeats has no slope
        return torch.lerp(D, x, t / s), seen
    if textbook:
        lam, now = model.path.half_log_snr, model.path.half_log_snr(s)
        half_over_q = 0.5 * (lam(t) - now) / (now - lam(past[0].sigma))
        half_over_q = half_over_q if math.isfinite(half_over_q) else 0.0
    else:
        half_over_q = 0.5 * math.log(s / t) / math.log(past[0].sigma / s)
    D_tilde = torch.lerp(D, past[0].x0, -half_over_q)
    return torch.lerp(D_tilde, x, t / s), seen


def dpmpp_2m_cfg_pp(model, x, span, past, noise):
    """DPM-Solver++(2M) with CFG++: order 2 where U = D, else none, 1 call, memory 1. 2211.01095, 2406.08070.

    y = D + (t/s)(x - U) + (1 - t/s)(D - U_-1)/(2 q), q as dpmpp_2m; the last term from the second step on

    The difference mixes the guided D with the unconditional U_-1, as in ComfyUI, and every step adds D - U
    whole, whatever its length: under guidance there is no limit of many steps.
    """
    s, t = falling(span, "dpmpp_2m_cfg_pp")
    D, U = model.denoise(x, s, uncond=True)
    seen = Eval(s, x, D, U)
    if t == 0 or t == s:  # between equal levels D - U would still be added
        return (D if t == 0 else x), seen
    r = t / s
    y = D.add(x - U, alpha=r)
    if past and past[0].sigma != s:
        half_over_q = -0.5 * math.log(r) / math.log(past[0].sigma / s)
        y.add_(D - past[0].aux, alpha=(1.0 - r) * half_over_q)
    return y, seen


def _sde_terms(model, s: float, t: float, eta: float, s_noise: float) -> tuple[float, ...]:
    """h, H, and the factors of x, D and the noise in the first-order step of DPM-Solver++ SDE."""
    r, h = t / s, model.path.half_log_snr(t) - model.path.half_log_snr(s)
    H = (1.0 + eta) * h
    up = s_noise * t * math.sqrt(-math.expm1(-2.0 * eta * h)) if eta > 0 else 0.0
    return h, H, r * math.exp(-eta * h), -model.path.alpha(t) * math.expm1(-H), up


def dpmpp_2m_sde(model, x, span, past, noise, eta: float = 1.0, s_noise: float = 1.0,
                 solver_type: str = "midpoint"):  # fmt: skip
    """DPM-Solver++(2M) SDE: order 2 at eta 0, 1 call, memory 1, stochastic. 2211.01095; k-diffusion.

    h = lam_t - lam_s, H = (1 + eta) h, q = (lam_s - lam_-1)/h;  y = (t/s) e^{-eta h} x - alpha_t E(-H) D + w
    (D - D_-1)/q + s_noise t sqrt(-E(-2 eta h)) n, w = -alpha_t E(-H)/2 (midpoint) or alpha_t (1 + E(-H)/H)
    (heun)
    """
    falling(span, "dpmpp_2m_sde")
    s, t = opening(model, span), span.t
    D = model.denoise(x, s).x0
    seen = Eval(s, x, D)
    if t == 0 or t == span.s:
        return (D if t == 0 else x), seen
    h, H, of_x, of_D, up = _sde_terms(model, s, t, eta, s_noise)
    w = 0.0
    if past and past[0].sigma != s:
        over_q = h / (model.path.half_log_snr(s) - model.path.half_log_snr(past[0].sigma))
        half = 0.5 * of_D if solver_type == "midpoint" else model.path.alpha(t) * H * phis(-H, 2)[1]
        w = half * over_q
    y = (of_x * x).add_(D, alpha=of_D + w)
    if w:
        y.add_(past[0].x0, alpha=-w)
    return (y.add_(noise(s, t), alpha=up) if up > 0 else y), seen


def dpmpp_3m_sde(model, x, span, past, noise, eta: float = 1.0, s_noise: float = 1.0,
                 textbook: bool = False):  # fmt: skip
    """DPM-Solver++(3M) SDE: order 2 at eta 0 (textbook: 3), 1 call, memory 2, stochastic. k-diffusion.

    h, H and the first terms as dpmpp_2m_sde; q0 = (lam_s - lam_-1)/h, q1 = (lam_-1 - lam_-2)/h, f2 = 1 +
    E(-H)/H, f3 = f2/H - 1/2, A = (D - D_-1)/q0, B = (D_-1 - D_-2)/q1;  add alpha_t f2 A with one Eval of the
    past, else alpha_t (f2 A1 - f3 A2), A1 = A + (A - B) q0/(q0 + q1), A2 = (A - B)/(q0 + q1)

    A2 is half the second derivative, so the last term should be 2 f3 A2; without the 2, as in ComfyUI, the
    order is 2. `textbook` has it.
    """
    falling(span, "dpmpp_3m_sde")
    s, t = opening(model, span), span.t
    D = model.denoise(x, s).x0
    seen = Eval(s, x, D)
    if t == 0 or t == span.s:
        return (D if t == 0 else x), seen
    h, H, of_x, of_D, up = _sde_terms(model, s, t, eta, s_noise)
    old = distinct(past, s)
    if old:
        lam = [model.path.half_log_snr(e.sigma) for e in (seen, *old)]
        _, p2, p3 = phis(-H, 3)
        f2, f3 = H * p2, -H * p3
        q0 = (lam[0] - lam[1]) / h
        a, b = f2 / q0, 0.0  # weights of D - D_-1 and D_-1 - D_-2
        if len(old) > 1:
            q1 = (lam[1] - lam[2]) / h
            g = (f2 * q0 - (2.0 if textbook else 1.0) * f3) / (q0 + q1)  # weight of A - B
            a, b = (f2 + g) / q0, -g / q1
        alpha = model.path.alpha(t)
        y = (of_x * x).add_(D, alpha=of_D + alpha * a).add_(old[0].x0, alpha=alpha * (b - a))
        if b:
            y.add_(old[1].x0, alpha=-alpha * b)
    else:
        y = (of_x * x).add_(D, alpha=of_D)
    return (y.add_(noise(s, t), alpha=up) if up > 0 else y), seen


def _res_terms(model, span: Span, past, eta: float) -> tuple[float, float, float]:
    """down and up of the split in sigma, and h b2, the weight of the older value (0: a first-order step)."""
    s, t = span.s, span.t
    down, up = model.path.split(s, t, eta) if eta > 0 else (t, 0.0)
    if not past or down == 0 or past[0].sigma == s:
        return down, up, 0.0
    before = past[0].sigma
    down_before = model.path.split(before, s, eta)[0] if eta > 0 else s
    if down_before in (0.0, before):  # ComfyUI's NaN, taken as 0
        return down, up, 0.0
    h = math.log(s / down)
    return down, up, h * h * phis(-h, 2)[1] / math.log(down_before / before)


def res_multistep(model, x, span, past, noise, eta: float = 1.0, s_noise: float = 1.0):
    """RES, second-order multistep: order 2 at eta 0, 1 call, memory 1, stochastic at eta > 0. 2308.02157.

    (down, up) of the split in sigma, h = log(s/down), k = log(down_-1/sigma_-1)/h, down_-1 that of the step
    before;  y = e^{-h} x + h (b1 D + b2 D_-1) + s_noise up n, b1 = phi1(-h) - phi2(-h)/k, b2 = phi2(-h)/k

    At eta > 0 the name keeps ComfyUI's number: k is measured from down_-1 and not from s, and FLOW takes VE's
    split, where the state leaves the path.
    """
    s, t = span.s, span.t
    D = model.denoise(x, s).x0
    seen = Eval(s, x, D)
    if t == 0 or t == s:
        return (D if t == 0 else x), seen
    down, up, w = _res_terms(model, span, past, eta)
    y = torch.lerp(D, x, down / s)
    if w:
        y.add_(past[0].x0 - D, alpha=w)
    return (y.add_(noise(s, t), alpha=s_noise * up) if s_noise * up > 0 else y), seen


def res_multistep_cfg_pp(model, x, span, past, noise, eta: float = 0.0, s_noise: float = 1.0):
    """RES multistep with CFG++: order 2 where U = D and eta 0, else none, 1 call, memory 1.

    2308.02157, 2406.08070.

    y = e^{-h} (x + D - U) + h (b1 U + b2 U_-1) + s_noise up n, as res_multistep; the first step is D + down
    (x - U)/s

    Every step adds D - U whole, whatever its length: under guidance there is no limit of many steps.
    """
    s, t = falling(span, "res_multistep_cfg_pp")
    D, U = model.denoise(x, s, uncond=True)
    seen = Eval(s, x, D, U)
    if t == 0 or t == s:  # between equal levels D - U would still be added
        return (D if t == 0 else x), seen
    down, up, w = _res_terms(model, span, past, eta)
    r = down / s
    if w:
        y = torch.lerp(U, x + (D - U), r).add_(past[0].aux - U, alpha=w)
    else:
        y = D.add(x - U, alpha=r)
    return (y.add_(noise(s, t), alpha=s_noise * up) if s_noise * up > 0 else y), seen


def _psi(r):
    return r * (np.exp(r**ER_POWER) + ER_SHIFT)


def er_sde(model, x, span, past, noise, s_noise: float = 1.0):
    """ER-SDE-Solver-3: 1 call, memory 2, stochastic; no order of an ODE. 2309.06169.

    a = rho_s, b = rho_t, w = b - a, psi(r) = r (exp(r^0.3) + 10), R = psi(b)/psi(a), I_m = integral from b to
    a of (r - a)^m/psi(r), by a left Riemann sum of 200 points;  y = (alpha_t/alpha_s) R x + alpha_t (1 - R) D
    + alpha_t (w + I_0 psi(b)) D' + alpha_t (w^2/2 + I_1 psi(b)) D'' + s_noise alpha_t sqrt(b^2 - a^2 R^2) n,
    D' and D'' the differences of D in rho, as far as the past reaches

    psi belongs to the SDE: s_noise 0 silences the noise and does not give the ODE.
    """
    falling(span, "er_sde")
    s, t = opening(model, span), span.t
    D = model.denoise(x, s).x0
    seen = Eval(s, x, D)
    if t == 0 or t == span.s:
        return (D if t == 0 else x), seen
    path, old = model.path, distinct(past, s)
    a, b, alpha = path.rho(s), path.rho(t), path.alpha(t)
    w, psi_b = b - a, float(_psi(b))
    R = psi_b / float(_psi(a))
    y = (alpha / path.alpha(s) * R * x).add_(D, alpha=alpha * (1.0 - R))
    if old:
        rho = [path.rho(e.sigma) for e in old]
        k = -w / ER_POINTS
        r = b + k * _ER_STEPS  # (point,)
        over = 1.0 / _psi(r)
        slope = (D - old[0].x0) * (1.0 / (a - rho[0]))
        y.add_(slope, alpha=alpha * (w + k * float(over.sum()) * psi_b))
        if len(old) > 1:
            before = (old[0].x0 - old[1].x0) * (1.0 / (rho[0] - rho[1]))
            second = alpha * (0.5 * w * w + k * float(over @ (r - a)) * psi_b)
            y.add_(slope.sub_(before), alpha=second / (0.5 * (a - rho[1])))
    up = s_noise * alpha * math.sqrt(max(b * b - (a * R) ** 2, 0.0))
    return (y.add_(noise(s, t), alpha=up) if up > 0 else y), seen
