"""The phi functions of exponential integrators: phi_1 = (e^z - 1)/z, phi_{k+1} = (phi_k - 1/k!)/z."""

import math


def phis(z: float, count: int) -> list[float]:
    """phi_1(z), ..., phi_count(z), to rounding."""
    if abs(z) >= 1.0:
        out = [math.expm1(z) / z]
        for k in range(1, count):
            out.append((out[-1] - 1.0 / math.factorial(k)) / z)
        return out
    # below 1 the recurrence loses digits: the series of the last one, and the recurrence backwards
    value = term = 1.0 / math.factorial(count)
    for k in range(count + 1, count + 18):
        term *= z / k
        value += term
    out = [value]
    for k in range(count - 1, 0, -1):
        out.append(z * out[-1] + 1.0 / math.factorial(k))
    return out[::-1]


def z_phi2(z: float) -> float:
    """z phi_2(z) = (e^z - 1)/z - 1, 0 at 0."""
    return z * phis(z, 2)[1]
