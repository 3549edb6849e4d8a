"""How masks are fitted to latents, and what they leave and share: NumPy and SciPy alone, no torch.

Fitting is simple arithmetic, so that others (a page in a browser) can repeat it: bilinear with antialiasing
to the size of the latent, then grown by a disc, then blurred by a Gaussian.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

LEFT = 1e-6  # what the masks leave of 1, below which they leave nothing: they add up to 1 to rounding
HOLE = 0.5  # sum of the masks below which a pixel is in none of them: where the contours are, too
OVERLAP = 0.05  # excess of the sum over 1 from which normalising changes what one sees


def disc(radius: float) -> np.ndarray:
    """The pixels within a radius, as a symmetric square of booleans."""
    reach = math.floor(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return y * y + x * x <= radius * radius


def resampling(size: int, out: int) -> np.ndarray:
    """Weights (out, size) of a bilinear resize with antialiasing, those of ``torch``'s ``interpolate``."""
    scale = size / out
    reach, narrow = max(scale, 1.0), min(1.0 / scale, 1.0)
    centres = scale * (np.arange(out) + 0.5)[:, None]
    first = np.maximum(np.floor(centres - reach + 0.5), 0)
    last = np.minimum(np.floor(centres + reach + 0.5), size)
    pixels = np.arange(size)[None]
    weights = np.clip(1.0 - np.abs((pixels - centres + 0.5) * narrow), 0.0, None)
    weights = np.where((pixels >= first) & (pixels < last), weights, 0.0)
    return weights / weights.sum(1, keepdims=True)


def resampled(planes: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Planes (..., y, x) at another size (y, x)."""
    if planes.shape[-2:] == tuple(size):
        return planes
    across = planes @ resampling(planes.shape[-1], size[1]).T
    return np.clip(resampling(planes.shape[-2], size[0]) @ across, 0.0, 1.0)


def shaped(planes: np.ndarray, grow: float, feather: float) -> np.ndarray:
    """Planes (sample, y, x) grown by a disc, or shrunk, and then blurred; in pixels."""
    if grow:
        change = ndimage.grey_dilation if grow > 0 else ndimage.grey_erosion
        footprint = disc(abs(grow))
        # beyond the border it is as at the border: a mask that reaches it does not shrink from it
        planes = np.stack([change(p, footprint=footprint, mode="nearest") for p in planes])
    if feather:
        planes = np.stack([ndimage.gaussian_filter(p, feather, mode="nearest") for p in planes])
    return np.clip(planes, 0.0, 1.0)


def shares(masks: np.ndarray, kept: Sequence[bool]) -> np.ndarray:
    """Who has how much of each pixel, the base first: masks over max(their sum, 1), as a run has them.

    Parameters
    ----------
    masks : array (region, ...)
        Times the weight of each region.
    kept : sequence of bool
        Those under which the picture is kept go before all others, who have what these leave.

    Returns
    -------
    array (1 + region, ...)
        Sums to 1 over the first axis.
    """
    flags = np.array(kept, bool).reshape(-1, *[1] * (masks.ndim - 1))
    asked, own = _normalised(np.where(flags, 0.0, masks)), _normalised(np.where(flags, masks, 0.0))
    w = asked * own[0]
    w[1:] += own[1:]
    return w


def _normalised(masks: np.ndarray) -> np.ndarray:
    """Masks over max(their sum, 1), after what they leave of 1."""
    total = masks.sum(0)
    whole = total >= 1.0 - LEFT
    return np.concatenate([np.where(whole, 0.0, 1.0 - total)[None], masks / np.where(whole, total, 1.0)])


def coverage(masks: np.ndarray, kept: Sequence[bool]) -> tuple[float, float, tuple[int, int] | None]:
    """What is wrong with masks (region, y, x): shares of hole and overlap, and who overlaps most.

    A hole is where all of them together are below `HOLE`. An overlap is where those that are asked add up to
    more than 1 by over `OVERLAP`; the pair is that of the largest common area, None where there is none.
    """
    asked = np.where(np.array(kept, bool)[:, None, None], 0.0, masks)
    hole, over = masks.sum(0) < HOLE, asked.sum(0) > 1.0 + OVERLAP
    pairs = [(i, j) for j in range(len(masks)) for i in range(j)]
    common = [float(np.minimum(asked[i], asked[j])[over].sum()) for i, j in pairs]
    most = pairs[int(np.argmax(common))] if over.any() and pairs else None
    return float(hole.mean()), float(over.mean()), most
