"""The embedded model and its data: handwritten digits, 32x32 grey.

`digits/` beside this file is the model, a class-conditional latent diffusion model in diffusers' layout.
`train_digits.py` made it and `quality_digits.py` measures it.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import unknown

__all__ = ["digits"]

SPLITS = ("train", "held-out", "all")
SIDE = 32  # px, four times the 8 px of the data
GREY_MAX = 16.0  # the data counts the set pixels of 4x4 blocks
SPLIT_SEED = 0
SPLIT_EVERY = 5  # one image in five is held out


def digits(split: str = "held-out") -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Real handwritten digits, as the embedded model saw them or never saw them.

    The 1,797 images of 8x8 grey levels which scikit-learn ships, enlarged to 32x32 by a bicubic filter and
    clipped to 0..1, in the order of the data set. The split is seeded, stratified by class and part of the
    shipped weights: the 360 held-out images were used neither to fit the two networks nor to set the scale of
    the latents.

    Parameters
    ----------
    split
        ``"train"`` (1,437 images), ``"held-out"`` (360) or ``"all"``.

    Returns
    -------
    images : float32 array (image, y, x)
        0 is paper, 1 is ink.
    labels : int64 array (image,)
        The digit, 0 to 9.

    Raises
    ------
    ValueError
        If `split` is none of the three names.
    ImportError
        If scikit-learn is not installed.

    Notes
    -----
    E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning Repository
    (1998), https://doi.org/10.24432/C50P49, licensed CC BY 4.0. scikit-learn's copy is the test part of that
    set. The writers of the two splits are the same people: held-out means unseen images, not unseen hands.

    Examples
    --------
    >>> images, labels = digits("held-out")
    >>> images.shape, labels.shape
    ((360, 32, 32), (360,))
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS, 'tk.assets.digits("{}")')
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits are read from scikit-learn, which is not installed. "
            'Try: pip install "unsampling-toolkit[notebooks]"'
        ) from error
    small, labels = load_digits(return_X_y=True)  # (image, y * x), (image,)
    chosen = _split_indices(labels, split)
    images = np.stack([_enlarge(row.reshape(8, 8) / GREY_MAX) for row in small[chosen]])
    return images, labels[chosen].astype(np.int64)


def _split_indices(labels: NDArray[np.integer], split: str) -> NDArray[np.intp]:
    """Row numbers of a split, ascending.

    Every fifth of the shuffled images sorted by class: each class gives a fifth, to within one image.
    """
    if split == "all":
        return np.arange(labels.size)
    # RandomState and not default_rng: its stream is frozen, and another split would leak held-out images into
    # what the shipped weights were fitted to.
    shuffled = np.random.RandomState(SPLIT_SEED).permutation(labels.size)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    held_out = np.sort(by_class[::SPLIT_EVERY])
    return held_out if split == "held-out" else np.setdiff1d(np.arange(labels.size), held_out)


def _enlarge(small: NDArray[np.floating]) -> NDArray[np.float32]:
    """One image in 0..1, (8, 8) to (32, 32); clipped, as a bicubic filter overshoots at sharp edges."""
    picture = Image.fromarray(small.astype(np.float32))  # float32 makes it mode "F", which keeps all levels
    return np.clip(np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)), 0.0, 1.0)
