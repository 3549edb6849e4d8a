"""Multistep solvers in log-SNR, for the data prediction D."""

import math

import torch

from .contract import Eval


def dpmpp_2m(model, x, span, past, noise):
    """DPM-Solver++(2M): order 2, 1 call, memory 1. 2211.01095.

    D~ = D + (D - D_-1)/(2 q), q = log(sigma_-1/s)/log(s/t);  y = (t/s) x + (1 - t/s) D~

    The clock is -log sigma on both paths, as in ComfyUI; on FLOW the paper's is half log-SNR, another method
    of this order.
    """
    s, t = span.s, span.t
    D = model.denoise(x, s).x0
    if not past or t == 0 or past[0].sigma == s:  # a level that repeats has no slope
        return torch.lerp(D, x, t / s), Eval(s, x, D)
    half_over_q = 0.5 * math.log(s / t) / math.log(past[0].sigma / s)
    D_tilde = torch.lerp(D, past[0].x0, -half_over_q)
    return torch.lerp(D_tilde, x, t / s), Eval(s, x, D)
