"""Ancestral solvers: step down further than asked, then add fresh noise. They go down in sigma only.

Splits: V(a, b, eta) = ``path.split``, of sigmas or of rhos; F = ``path.ancestral``, which renoises on FLOW
and is V of sigma on VE. At t = s nothing moves and no noise is drawn; at t = 0 the step returns D.
"""

import math

import torch

from .contract import Eval, falling

BELOW_ONE = 0.9999  # the middle level of `dpmpp_2s_ancestral` from FLOW's sigma 1, where log-SNR is -infinity


def _renoised(y, scale: float, up: float, span, noise):
    """scale*y + up*n in the storage of y, which is the caller's own; nothing is drawn where up is 0."""
    if scale != 1.0:
        y.mul_(scale)
    return y.add_(noise(span.s, span.t), alpha=up) if up > 0 else y


def euler_ancestral(model, x, span, past, noise, eta: float = 1.0, s_noise: float = 1.0):
    """Euler, then fresh noise: order 1 at eta 0, 1 call, stochastic. k-diffusion on VE; renoising on FLOW.

    (down, scale, up) = F(s, t, eta);  y = scale ((down/s) x + (1 - down/s) D) + s_noise up n
    """
    s, t = falling(span, "euler_ancestral")
    D = model.denoise(x, s).x0
    if t in (0, s):
        return x if t else D, Eval(s, x, D)
    down, scale, up = model.path.ancestral(s, t, eta)
    if down <= 0:  # above t = 0 only where eta is large; ComfyUI adds no noise there either
        return D, Eval(s, x, D)
    return _renoised(torch.lerp(D, x, down / s), scale, s_noise * up, span, noise), Eval(s, x, D)


def euler_cfg_pp(model, x, span, past, noise, eta: float = 0.0, s_noise: float = 1.0):
    """Euler with CFG++: order 1 where U = D and eta is 0, 1 call, no memory. 2406.08070.

    (r_down, r_up) = V(rho_s, rho_t, eta)
    y = alpha_t D + alpha_t r_down (x - alpha_s U)/s + s_noise alpha_t r_up n

    Every step adds D - U whole, whatever its length: as steps grow in number there is no limit unless U = D.
    The split is in rho on both paths, unlike that of `euler_ancestral` on FLOW; and D is taken at the cfg
    given, which the paper maps to [0, 1].
    """
    s, t = falling(span, "euler_cfg_pp")
    D, U = model.denoise(x, s, uncond=True)
    if t in (0, s):
        return x if t else D, Eval(s, x, D)
    path = model.path
    r_down, r_up = path.split(path.rho(s), path.rho(t), eta)
    a = path.alpha(t)
    b = a * r_down / s
    y = D.mul(a).add_(x, alpha=b).add_(U, alpha=-b * path.alpha(s))
    return _renoised(y, 1.0, s_noise * a * r_up, span, noise), Eval(s, x, D)


def ddpm(model, x, span, past, noise):
    """DDPM: order 1, 1 call, no memory, stochastic. The posterior of 2006.11239, in VE variables.

    y = D + (t/s)^2 (x - D) + n t sqrt(s^2 - t^2)/s

    The formula is that of `euler_ancestral` on VE at eta 1. The name keeps it on FLOW too, as ComfyUI does,
    where the marginals are wrong.
    """
    s, t = falling(span, "ddpm")
    D = model.denoise(x, s).x0
    if t in (0, s):
        return x if t else D, Eval(s, x, D)
    y = torch.lerp(D, x, (t / s) ** 2)
    return y.add_(noise(s, t), alpha=t * math.sqrt(s * s - t * t) / s), Eval(s, x, D)


def lcm(model, x, span, past, noise):
    """LCM: denoise, then noise again; no order, 1 call, no memory, stochastic. 2310.04378; 2303.01469 alg. 1.

    y = alpha_t D + t n

    No ODE is solved: it is for models that give a sharp D in one call.
    """
    s, t = falling(span, "lcm")
    D = model.denoise(x, s).x0
    if t in (0, s):
        return x if t else D, Eval(s, x, D)
    return D.mul(model.path.alpha(t)).add_(noise(s, t), alpha=t), Eval(s, x, D)


def dpm_2_ancestral(model, x, span, past, noise, eta: float = 1.0, s_noise: float = 1.0):
    """DPM-Solver-2, then fresh noise: order 2 at eta 0, 2 calls (1 at t = 0), stochastic. 2206.00927.

    (down, scale, up) = F(s, t, eta);  m = sqrt(s down);  z = x + (m - s) d
    y = scale (x + (down - s)(z - D2)/m) + s_noise up n, D2 at (z, m);  D without noise where down is 0
    """
    s, t = falling(span, "dpm_2_ancestral")
    D = model.denoise(x, s).x0
    if t in (0, s):
        return x if t else D, Eval(s, x, D)
    down, scale, up = model.path.ancestral(s, t, eta)
    if down <= 0:  # above t = 0 only where eta is large
        return D, Eval(s, x, D)
    m = math.sqrt(s * down)
    z = torch.lerp(D, x, m / s)
    y = x.add(z - model.denoise(z, m).x0, alpha=(down - s) / m)
    return _renoised(y, scale, s_noise * up, span, noise), Eval(s, x, D)


def dpmpp_2s_ancestral(model, x, span, past, noise, eta: float = 1.0, s_noise: float = 1.0):
    """DPM-Solver++(2S), then fresh noise: order 2 at eta 0, 2 calls (1 at t = 0), stochastic. 2211.01095.

    (down, scale, up) = F(s, t, eta);  lam_m = (lam_s + lam_down)/2, on VE m = sqrt(s down)
    z = (m/s) x + (1 - m/s) D
    y = scale ((down/s) x + (1 - down/s) D2) + s_noise up n, D2 at (z, m);  D without noise where down is 0

    From FLOW's sigma 1, where lam_s is -infinity, m is 0.9999, as in ComfyUI: the other names take another s.
    """
    s, t = falling(span, "dpmpp_2s_ancestral")
    D = model.denoise(x, s).x0
    if t in (0, s):
        return x if t else D, Eval(s, x, D)
    path = model.path
    down, scale, up = path.ancestral(s, t, eta)
    if down <= 0:  # above t = 0 only where eta is large
        return D, Eval(s, x, D)
    lam = path.half_log_snr(s)
    m = BELOW_ONE if math.isinf(lam) else path.from_half_log_snr(0.5 * (lam + path.half_log_snr(down)))
    z = torch.lerp(D, x, m / s)
    y = torch.lerp(model.denoise(z, m).x0, x, down / s)
    return _renoised(y, scale, s_noise * up, span, noise), Eval(s, x, D)


def dpmpp_2s_ancestral_cfg_pp(model, x, span, past, noise, eta: float = 1.0, s_noise: float = 1.0,
                              repaired: bool = False):  # fmt: skip
    """DPM-Solver++(2S) with CFG++, then fresh noise: order 0, 2 calls (1 at t = 0), stochastic.

    (down, up) = V(s, t, eta) on both paths;  m = sqrt(s down);  z = (m/s)(x + D - U) + (1 - m/s) D
    y = (down/s)(x + D - U2) + (1 - down/s) D2 + s_noise up n, (D2, U2) at (z, m)

    From 2211.01095 and 2406.08070. D - U2, of two stages, adds up as steps grow in number even where U = D.
    The name keeps ComfyUI's number; ``repaired=True`` takes U in place of U2: order 2 where U = D, at eta 0.
    """
    s, t = falling(span, "dpmpp_2s_ancestral_cfg_pp")
    D, U = model.denoise(x, s, uncond=True)
    if t in (0, s):
        return x if t else D, Eval(s, x, D)
    down, up = model.path.split(s, t, eta)
    if down == 0:  # above t = 0 only where eta is large
        return D, Eval(s, x, D)
    m = math.sqrt(s * down)
    z = (x - U).mul_(m / s).add_(D)
    D2, U2 = model.denoise(z, m, uncond=True)
    y = torch.lerp(D2, (D - (U if repaired else U2)).add_(x), down / s)
    return _renoised(y, 1.0, s_noise * up, span, noise), Eval(s, x, D)
