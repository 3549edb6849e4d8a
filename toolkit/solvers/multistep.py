"""Linear multistep solvers in sigma: slopes of the past, formed from the x and x0 of each Eval."""

import math

from .contract import Eval

_GAUSS = (0.5 - 0.5 / math.sqrt(3.0), 0.5 + 0.5 / math.sqrt(3.0))  # 2 points: exact for the cubic of 4 nodes


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
    evals = [seen]
    for old in past:
        if all(old.sigma != e.sigma for e in evals):  # `simple` repeats levels: a node twice adds nothing
            evals.append(old)
    y = x
    for e, c in zip(evals, lagrange_integrals([e.sigma for e in evals], s, t), strict=True):
        y = y.add(e.x - e.x0, alpha=c / e.sigma)
    return y, seen
