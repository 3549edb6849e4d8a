"""Solvers with an algebraic inverse: a step up after a step down is the identity, to rounding.

They need a remembered x, the one exception to the contract's first rule: between steps nobody may move the
state. obelm and bdia remember the state before; edict and rex keep a partner at the same level, in the aux of
the Eval, and their upward step is another formula than their downward one.
"""

import math

from ..errors import bad
from .contract import Eval
from .onestep import euler, midpoint

BOOTSTRAPS = {"midpoint": midpoint, "euler": euler}
FORMS = ("sigma", "data")  # x and the slope (x - D)/sigma, or x/sigma in tau = alpha/sigma and the slope D
INCREMENTS = ("midpoint", "euler")


def _hops(name: str, before: float, s: float, t: float) -> tuple[float, float]:
    """The coming hop and the one before; two of no length have no inverse."""
    if t == s or s == before:
        why = f"{name} cannot be reversed over a repeated level"
        raise bad("sigmas", (before, s, t), why, 'tk.schedule(model, "karras", steps=20)')
    return t - s, s - before


def obelm(model, x, span, past, noise, bootstrap: str = "midpoint", form: str = "sigma"):
    """O-BELM: order 2, 1 call (bootstrap: 2), memory 1, reversible. 2410.07273.

    h = t - s, h_ = s - sigma_-1, r = (h/h_)^2;  y = r x_-1 + (1 - r) x + (h (h + h_)/h_) d

    Solved for x_-1 this is the same equation with s -> sigma_-1 and sigma_-1 -> t, so the step up is this
    very function. The first step, without a past, is a `bootstrap` step; any will do, since the pair of
    states is what is kept. `form` "data" has the same formulas for Y = x/sigma in tau = alpha/sigma, with D
    for d: stable under guidance, where "sigma" makes a wrong x_T, and some digits less exact.
    """
    s, t = span.s, span.t
    if not past:
        return BOOTSTRAPS[bootstrap](model, x, span, past, noise)
    D = model.denoise(x, s).x0
    if t == 0:
        return D, Eval(s, x, D)
    before = past[0].sigma
    h, h_ = _hops("obelm", before, s, t)
    if form == "data":
        alpha = model.path.alpha
        tau = alpha(s) / s
        h, h_ = alpha(t) / t - tau, tau - alpha(before) / before
        r = (h / h_) ** 2
        y = (t * r / before * past[0].x).add_(x, alpha=t * (1.0 - r) / s)
        return y.add_(D, alpha=t * h * (h + h_) / h_), Eval(s, x, D)
    r = (h / h_) ** 2
    return (r * past[0].x).add_(x, alpha=1.0 - r).add_(x - D, alpha=h * (h + h_) / (h_ * s)), Eval(s, x, D)


def bdia(model, x, span, past, noise, bootstrap: str = "midpoint", gamma: float = 1.0):
    """BDIA: order 2 at gamma 1, 1 call (bootstrap: 2), memory 1, reversible. 2307.10829.

    h = t - s, h_ = s - sigma_-1;  down: y = gamma x_-1 + (1 - gamma) x + (h + gamma h_) d;  up, the same
    solved for x_-1: y = [x_-1 - (1 - gamma) x + (h_ + gamma h) d]/gamma

    gamma 1 only: gamma 0.5 doubles the difference of the two states at every step up. The first step, without
    a past, is a `bootstrap` step, as in obelm.
    """
    s, t = span.s, span.t
    if not past:
        return BOOTSTRAPS[bootstrap](model, x, span, past, noise)
    D = model.denoise(x, s).x0
    if t == 0:
        return D, Eval(s, x, D)
    h, h_ = _hops("bdia", past[0].sigma, s, t)
    if t < s:
        of_old, of_x, of_d = gamma, 1.0 - gamma, h + gamma * h_
    else:
        of_old, of_x, of_d = 1.0 / gamma, 1.0 - 1.0 / gamma, h_ / gamma + h
    return (of_old * past[0].x).add_(x, alpha=of_x).add_(x - D, alpha=of_d / s), Eval(s, x, D)


def _partner(x, past):
    """The second state at the level of x; at the start of a run it is x itself."""
    return past[0].aux if past and past[0].aux is not None else x


def edict(model, x, span, past, noise, p: float = 0.93):
    """EDICT: two coupled states, 2 calls, memory 1, reversible; it does not converge. 2211.12446.

    x_, y_ the state and its partner, h = t - s;  down: xi = x_ + h d(y_, s), eta = y_ + h d(xi, s), x' = p xi
    + (1 - p) eta, y' = p eta + (1 - p) x';  up, from (x', y') at s to t: eta = (y' - (1 - p) x')/p, xi = (x'
    - (1 - p) eta)/p, y_ = eta + h d(xi, t), x_ = xi + h d(y_, t)

    For 10 to 50 steps: the climb multiplies the difference of the pair by up to 1/p each half-step. The x0
    that is kept is that of y_ at s, in a step down only: the step up calls the model at t.
    """
    s, t, y = span.s, span.t, _partner(x, past)
    if t == 0:
        D = model.denoise(x, s).x0
        return D, Eval(s, x, D)
    if t == s:  # the mixing would still move the pair
        return x, Eval(s, x, None, y)
    if t < s:
        D, c = model.denoise(y, s).x0, (t - s) / s
        xi = x.add(y - D, alpha=c)
        eta = y.add(xi - model.denoise(xi, s).x0, alpha=c)
        x_next = (p * xi).add_(eta, alpha=1.0 - p)
        return x_next, Eval(s, x, D, (p * eta).add_(x_next, alpha=1.0 - p))
    if s == 0:
        raise ZeroDivisionError("the step to 0 returns D: it has no inverse")  # `Solver.step` says what to do
    c, q = (t - s) / t, (1.0 - p) / p
    eta = (y * (1.0 / p)).sub_(x, alpha=q)
    xi = (x * (1.0 / p)).sub_(eta, alpha=q)
    y_next = eta.add_(xi - model.denoise(xi, t).x0, alpha=c)
    return xi.add(y_next - model.denoise(y_next, t).x0, alpha=c), Eval(s, x, None, y_next)


def _increment(model, x, s: float, t: float, form: str, increment: str):
    """What one step from s to t adds to x (form "sigma") or to x/sigma ("data"), and D at (x, s)."""
    D = model.denoise(x, s).x0
    if form == "sigma":
        if increment == "euler":
            return (x - D).mul_((t - s) / s), D
        m = 0.5 * (s + t)
        z = x.add(x - D, alpha=(m - s) / s)
        return (z - model.denoise(z, m).x0).mul_((t - s) / m), D
    path = model.path
    tau, h = path.alpha(s) / s, path.alpha(t) / t - path.alpha(s) / s
    if increment == "euler":
        return h * D, D
    m = path.from_half_log_snr(math.log(tau + 0.5 * h))
    z = (m / s * x).add_(D, alpha=0.5 * m * h)
    return h * model.denoise(z, m).x0, D


def rex(model, x, span, past, noise, zeta: float = 0.999, form: str = "sigma", increment: str = "midpoint"):
    """Rex: order 2 (increment "euler": below 1), 4 calls (euler: 2), memory 1, reversible.

    McCallum and Foster's pair around a one-step Psi: 2502.08834, 2410.11648.

    xh the partner of x, Psi_(s->t)(x) what a step from s to t adds to x;  down: x' = zeta x + (1 - zeta) xh +
    Psi_(s->t)(xh), xh' = xh - Psi_(t->s)(x');  up, from (x', xh') at s to t: xh = xh' + Psi_(s->t)(x'), x =
    [x' - (1 - zeta) xh - Psi_(t->s)(xh)]/zeta

    `form` "data" has the same for Y = x/sigma in tau = alpha/sigma, with slope D: for states in float32,
    where "sigma" loses digits; in float64 "sigma" is by far the more accurate.
    """
    s, t, xh = span.s, span.t, _partner(x, past)
    if t == 0:
        D = model.denoise(x, s).x0
        return D, Eval(s, x, D)
    if t == s:  # the mixing would still move the pair
        return x, Eval(s, x, None, xh)
    ratio, scale_t = (1.0, 1.0) if form == "sigma" else (t / s, t)  # "data" keeps x, not x/sigma
    if t < s:
        psi, D = _increment(model, xh, s, t, form, increment)
        x_next = (ratio * zeta * x).add_(xh, alpha=ratio * (1.0 - zeta)).add_(psi, alpha=scale_t)
        back, _ = _increment(model, x_next, t, s, form, increment)
        return x_next, Eval(s, x, D, (ratio * xh).sub_(back, alpha=scale_t))
    psi, D = _increment(model, x, s, t, form, increment)
    xh_next = (ratio * xh).add_(psi, alpha=scale_t)
    back, _ = _increment(model, xh_next, t, s, form, increment)
    x_next = (ratio / zeta * x).add_(xh_next, alpha=1.0 - 1.0 / zeta).sub_(back, alpha=scale_t / zeta)
    return x_next, Eval(s, x, D, xh_next)
