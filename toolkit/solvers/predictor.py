"""Predictor-correctors in log-SNR: the state between steps is the predicted one.

The corrector of a hop adds a combination of x0 values to what the predictor gave, so it is taken at the start
of the next step, when x0 at the far end is known: no old x is needed, and no old noise.
"""

import math

import torch

from .contract import Eval, falling, opening
from .multistep import distinct
from .phi import phis

UNIPC_ORDER, UNIPC_END = 3, 0.001  # ComfyUI's; the end stands in for a final 0, where log sigma has no value
SA_PREDICTOR, SA_CORRECTOR = 3, 4  # nodes at most, the corrector's with the far end
SA_NOISY = (0.2, 0.8)  # shares of the model's clock between which sa_solver draws noise


def fitted(r: list[float], b: list[float]) -> list[float]:
    """The weights v of sum_k v_k r_k^m = b_m, m = 0, 1, ..., on distinct nodes r (Bjorck, Pereyra 1970)."""
    v, n = list(b), len(r)
    for k in range(n - 1):
        for i in range(n - 1, k, -1):
            v[i] -= r[k] * v[i - 1]
    for k in range(n - 2, -1, -1):
        for i in range(k + 1, n):
            v[i] /= r[i] - r[i - k - 1]
        for i in range(k, n - 1):
            v[i] -= v[i + 1]
    return v


def moments(z: float, count: int) -> list[float]:
    """m! phi_{m+1}(z), the integral over u in [0, 1] of e^{z (1 - u)} u^m, for m = 0, ..., count - 1."""
    return [math.factorial(m) * phi for m, phi in enumerate(phis(z, count))]


def _unipc_older(past, sigma: float, n: int, j: int) -> list[Eval]:
    """The older nodes of the hop from `sigma` to level j of n, whose order is min(3, n - 1, j, n + 1 - j).

    Of the past it takes no more than its corrector, one step later, still finds there.
    """
    order = max(1, min(UNIPC_ORDER, n - 1, j, n + 1 - j))
    return distinct(past[: UNIPC_ORDER - 1], sigma)[: order - 1]


def _unipc_weights(a: float, b: float, older: list[Eval], variant: str, correct: bool) -> list[float]:
    """Weights of D_-k - D_0 in a hop from a to b, and of D_b - D_0 in its corrector."""
    if not older and not correct:
        return []
    z = math.log(b / a)
    B = z if variant == "bh1" else math.expm1(z)
    r = [math.log(e.sigma / a) / z for e in older]
    nodes = [*r, 1.0] if correct else r
    if len(nodes) == 1:  # the paper's choice, instead of the solution of one equation
        return [-0.5 * B / nodes[0]]
    w = fitted(nodes, moments(z, len(nodes) + 1)[1:])
    return [-z * w_k / r_k for w_k, r_k in zip(w, nodes, strict=True)]


def _add_differences(x, weights: list[float], values: list, D_0):
    """x + sum_k w_k (values_k - D_0)."""
    if not weights:
        return x
    y = x.add(D_0, alpha=-sum(weights))
    for w, value in zip(weights, values, strict=True):
        y.add_(value, alpha=w)
    return y


def uni_pc(model, x, span, past, noise, variant: str = "bh1"):
    """UniPC: order 3, 4 with its corrector (2 from a cold start), 1 call, memory 3. 2302.04867.

    A hop from a to b: z = log(b/a), B = z (bh1) or E(z) (bh2), r_k = log(sigma_-k/a)/z, V_k = (D_-k -
    D_0)/r_k;  predictor (b/a) x - E(z) D_0 - B sum_k w_k V_k, corrector the same with v_k, and v_c (D_b -
    D_0) in the sum;  sum_k w_k r_k^{m-1} = m! z phi_{m+1}(z)/B, m = 1, 2, ..., likewise v_k with v_c at r = 1

    The order falls to 1 towards the end of the grid. FLOW is treated as VE is, and a final 0 is 0.001, both
    as in ComfyUI: the row of sigma 0 holds the state at 0.001, divided by alpha there. One step is of order
    1.
    """
    s, t, n = span.s, (span.t if span.t > 0 else UNIPC_END), span.n
    r = t / s
    D = model.denoise(x, s).x0
    seen, y = Eval(s, x, D), x
    if t != s:
        if past and past[0].sigma != s:  # the corrector of the hop to here
            a = past[0]
            older = _unipc_older(past[1:], a.sigma, n, span.i)
            pred = [*_unipc_weights(a.sigma, s, older, variant, False), 0.0]
            corr = _unipc_weights(a.sigma, s, older, variant, True)
            change = [c - p for c, p in zip(corr, pred, strict=True)]
            x = _add_differences(x, change, [*(e.x0 for e in older), D], a.x0)
        older = _unipc_older(past, s, n, span.i + 1)
        weights = _unipc_weights(s, t, older, variant, False)
        y = _add_differences(torch.lerp(D, x, r), weights, [e.x0 for e in older], D)
    return (y if span.t > 0 else y / model.path.alpha(t)), seen


def _sa_weights(model, a: float, b: float, nodes: list[Eval], tau: float, simple: bool) -> list[float]:
    """c_j, the weight of each node's D in a hop from a to b; `simple`: the closed form of two nodes."""
    lam = model.path.half_log_snr
    start, alpha, T = lam(a), model.path.alpha(b), 1.0 + tau * tau
    h = lam(b) - start
    r = [(lam(e.sigma) - start) / h for e in nodes]
    if simple and len(nodes) == 2:
        if r[0] == 0.0:  # the predictor: nodes a and the one before
            other = 0.5 * alpha * T * h / r[1]
            return [-alpha * math.expm1(-T * h) - other, other]
        near = 0.5 * alpha * T * h  # the corrector: nodes b and a
        return [near, -alpha * math.expm1(-T * h) - near]
    return fitted(r, [alpha * T * h * m for m in moments(-T * h, len(nodes))])


def _sa_corrected(model, x, seen: Eval, past, ends: int, tau: float, simple: bool):
    """x, less the predictor of the hop to here, plus its corrector; `ends`: hops up to the final 0."""
    before = [past[0], *distinct(past[1:], past[0].sigma)]
    nodes, known = [seen, *before][: min(SA_CORRECTOR, ends)], before[: min(SA_PREDICTOR, ends)]
    a = past[0].sigma
    new = _sa_weights(model, a, seen.sigma, nodes, tau, simple)
    old = _sa_weights(model, a, seen.sigma, known, tau, simple)
    y = x.add(seen.x0, alpha=new[0])
    for k, e in enumerate(before):
        c = (new[k + 1] if k + 1 < len(new) else 0.0) - (old[k] if k < len(old) else 0.0)
        y.add_(e.x0, alpha=c)
    return y


def sa_solver(model, x, span, past, noise, eta: float = 1.0, s_noise: float = 1.0, pece: bool = False,
              simple_order_2: bool = False):  # fmt: skip
    """SA-Solver: order 4 at eta 0 (2 to 4 cold-started), 1 call (pece: 2), memory 3, stochastic. 2309.05019.

    A hop from a to b with nodes lam_j: h = lam_b - lam_a, T = 1 + tau^2;  (b/a) e^{-tau^2 h} x + sum_j c_j
    D_j + s_noise b sqrt(-E(-2 tau^2 h)) n, c_j = alpha_b T times the integral from lam_a to lam_b of e^{-T
    (lam_b - u)} L_j(u) du (eq. 15, 18);  predictor: the 3 newest D up to a, corrector: the 4 newest up to b,
    less where the grid begins, and where it ends at 0

    tau is eta where sigma_b is between the levels at 0.2 and 0.8 of the model's clock, else 0: ComfyUI's
    rule, in sigma, where the paper switches by time. `pece` evaluates again after the corrector.
    `simple_order_2` takes the shorter weights of appendix D where there are two nodes.
    """
    falling(span, "sa_solver")
    s, t = opening(model, span), span.t
    D = model.denoise(x, s).x0
    seen = Eval(s, x, D)
    if t == span.s:
        return x, seen
    ends = span.n - span.i if span.levels[-1] == 0 else SA_CORRECTOR + 1  # the order falls towards a 0
    high, low = (model.levels.percent(share) for share in SA_NOISY)
    corrected = x
    if past and past[0].sigma != s and (t > 0 or pece):
        tau = eta if high >= s >= low else 0.0
        corrected = _sa_corrected(model, x, seen, past, ends, tau, simple_order_2)
        if pece:
            D = model.denoise(corrected, s).x0
            seen = Eval(s, x, D)
    if t == 0:
        return D, seen
    tau = eta if high >= t >= low else 0.0
    # no more of the past than the corrector of this hop, one step later, still finds there
    nodes = [seen, *distinct(past[: SA_PREDICTOR - 1], s)][: ends - 1]
    r, h = t / s, model.path.half_log_snr(t) - model.path.half_log_snr(s)
    y = (r * math.exp(-tau * tau * h)) * corrected
    for e, c in zip(nodes, _sa_weights(model, s, t, nodes, tau, simple_order_2), strict=True):
        y.add_(e.x0, alpha=c)
    up = s_noise * t * math.sqrt(-math.expm1(-2.0 * tau * tau * h))
    return (y.add_(noise(s, t), alpha=up) if up > 0 else y), seen
