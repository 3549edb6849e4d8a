"""Solvers with an algebraic inverse: a step up after a step down is the identity, to rounding.

They need a remembered x, the one exception to the contract's first rule: between steps nobody may move the
state.
"""

from ..errors import bad
from .contract import Eval
from .onestep import euler, midpoint

BOOTSTRAPS = {"midpoint": midpoint, "euler": euler}


def obelm(model, x, span, past, noise, bootstrap: str = "midpoint"):
    """O-BELM: order 2, 1 call (bootstrap: 2), memory 1, reversible. 2410.07273.

    h = t - s, h_ = s - sigma_-1, r = (h/h_)^2;  y = r x_-1 + (1 - r) x + (h (h + h_)/h_) d

    Solved for x_-1 this is the same equation with s -> sigma_-1 and sigma_-1 -> t, so the step up is this
    very function. The first step, without a past, is a `bootstrap` step; any will do, since the pair of
    states is what is kept.
    """
    s, t = span.s, span.t
    if not past:
        return BOOTSTRAPS[bootstrap](model, x, span, past, noise)
    D = model.denoise(x, s).x0
    if t == 0:
        return D, Eval(s, x, D)
    h, h_ = t - s, s - past[0].sigma
    if h == 0 or h_ == 0:
        raise bad(
            "sigmas", (past[0].sigma, s, t), "obelm cannot be reversed over a repeated level", "fewer steps"
        )
    r = (h / h_) ** 2
    return (r * past[0].x).add_(x, alpha=1.0 - r).add_(x - D, alpha=h * (h + h_) / (h_ * s)), Eval(s, x, D)
