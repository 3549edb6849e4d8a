"""One-step solvers: no memory. D is the denoised at (x, s), d = (x - D)/s the slope, on VE and FLOW alike."""

import torch

from .contract import Eval


def euler(model, x, span, past, noise):
    """Euler: order 1, 1 call, no memory. 2206.00364 alg. 1 uncorrected; DDIM, 2010.02502, in these variables.

    y = x + (t - s) d = (t/s) x + (1 - t/s) D
    """
    s, t = span.s, span.t
    D = model.denoise(x, s).x0
    return torch.lerp(D, x, t / s), Eval(s, x, D)


def euler_ancestral(model, x, span, past, noise, eta: float = 1.0, s_noise: float = 1.0):
    """Euler, then fresh noise: order 1 at eta 0, 1 call, stochastic. k-diffusion on VE; renoising on FLOW.

    (down, scale, up) of the path;  y = scale ((down/s) x + (1 - down/s) D) + s_noise up n
    """
    s, t = span.s, span.t
    down, scale, up = model.path.ancestral(s, t, eta)
    D = model.denoise(x, s).x0
    y = torch.lerp(D, x, down / s)
    if up > 0 and down > 0:  # ComfyUI adds no noise where `down` is 0, also above t = 0 (large eta)
        y = scale * y + (s_noise * up) * noise(s, t)
    return y, Eval(s, x, D)


def heun(model, x, span, past, noise):
    """Heun: order 2, 2 calls (1 at t = 0), no memory. 2206.00364 alg. 1.

    z = x + (t - s) d;  d2 = (z - D2)/t, D2 at (z, t);  y = x + (t - s)(d + d2)/2
    """
    s, t = span.s, span.t
    D = model.denoise(x, s).x0
    z = torch.lerp(D, x, t / s)
    if t == 0:
        return z, Eval(s, x, D)
    D2 = model.denoise(z, t).x0
    half = 0.5 * (t - s)
    return x.add(x - D, alpha=half / s).add_(z - D2, alpha=half / t), Eval(s, x, D)


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
