"""Two photographs as a closed-form latent model: pictures to look at, and a truth to measure against.

A linear patch autoencoder stands where other models have a VAE, and a `SpectralMixture` where they have a
network: everything a run shows is exact, in colour, and computed without a network connection.
"""

import hashlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from .. import inputs
from ..errors import bad, unknown
from ..paths import VE, Path
from ..schedules import Levels
from ..spectral import SpectralMixture, dct, inverse_dct
from .pictures import pixels_of

# name -> the part of the 640 x 427 px that is used: left, upper, right, lower
CROPS = {"china": (0, 0, 427, 427), "flower": (94, 0, 521, 427)}
SIDE = 256  # px
PATCH = 4  # px of a latent pixel's side
CHANNELS = 16  # of the 48 numbers of a patch
COLOURS = 3  # channels that show their patch's colour rather than its structure; they come first
# The mean keeps of a photograph KEPT + (1 - KEPT)/(1 + (k/SOFT)^2) at wave number k: everything at the lowest
# and 70 % of the detail, so that draws look like photographs, and no two alike.
KEPT = 0.7
SOFT = 4.0  # half periods a side
FLOOR = 1e-4  # least variance; its std is a third of the lowest level's 0.03, where no picture shows it

CREDITS = (
    'china.jpg: "danielbuechele", https://www.flickr.com/photos/danielbuechele/6061409035, CC BY 2.0',
    'flower.jpg: "vultilion", https://www.flickr.com/photos/vultilion/6056698931, CC BY 2.0',
)


class PatchCodec:
    """A linear autoencoder: patches of 4 x 4 px in colour to 16 channels, by principal components.

    Each channel has unit std over what it was fitted to; within the space of the components both ways are
    exact. The channels that show colour come first, then by the variance they explain.

    Parameters
    ----------
    images : float64 array (sample, y, x, rgb)
        In 0..1; what to fit.
    """

    def __init__(self, images: NDArray[np.float64]):
        patches = _patches(images)  # (patch, number)
        self.mean = patches.mean(0)
        _, vectors = np.linalg.eigh(np.cov((patches - self.mean).T))
        basis = vectors[:, ::-1][:, :CHANNELS]  # (number, channel), the largest variance first
        colour = np.linalg.norm(basis.reshape(PATCH * PATCH, 3, CHANNELS).mean(0), axis=0)
        first = np.sort(np.argsort(-colour)[:COLOURS])
        basis = basis[:, [*first, *np.setdiff1d(np.arange(CHANNELS), first)]]
        # an eigenvector's sign is the library's whim: its largest number is positive, so bright is up
        basis = basis * np.sign(basis[np.abs(basis).argmax(0), np.arange(CHANNELS)])
        self.basis, self.std = basis, ((patches - self.mean) @ basis).std(0)

    def analyse(self, images: NDArray[np.floating]) -> NDArray[np.float64]:
        """Images (sample, y, x, rgb) in 0..1 to latents (sample, channel, y, x)."""
        n, height, width = images.shape[:3]
        z = (_patches(images) - self.mean) @ (self.basis / self.std)
        z = z.reshape(n, height // PATCH, width // PATCH, CHANNELS)
        return np.ascontiguousarray(z.transpose(0, 3, 1, 2))

    def synthesise(self, latent: NDArray[np.float64]) -> NDArray[np.float64]:
        """Latents (sample, channel, y, x) to images (sample, y, x, rgb), not clipped."""
        n, _, height, width = latent.shape
        patches = latent.transpose(0, 2, 3, 1) @ (self.basis * self.std).T + self.mean
        patches = patches.reshape(n, height, width, PATCH, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
        return 0.5 * patches.reshape(n, height * PATCH, width * PATCH, 3) + 0.5


def _patches(images: NDArray[np.floating]) -> NDArray[np.float64]:
    """Images (sample, y, x, rgb) in 0..1 as patches (patch, number) in -1..1."""
    n, height, width = images.shape[:3]
    cut = (2.0 * images - 1.0).reshape(n, height // PATCH, PATCH, width // PATCH, PATCH, 3)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(-1, PATCH * PATCH * 3)


class Photographs(SpectralMixture):
    """Two photographs, a pagoda and a dahlia, as an exact latent model: ``tk.load("photographs")``.

    Latents are 16 x 64 x 64, of 256 x 256 px. The prior has one Gaussian a photograph: its mean keeps the low
    frequencies and part of the detail, its covariance is the radial power spectrum of the rest in the DCT of
    each channel. Prompts are "china" and "flower"; "both", like none, is the mixture.

    Attributes
    ----------
    credits : tuple of str
        Author, source and licence of each photograph.
    codec : PatchCodec
    latent_scale : 1.0
        The codec's latents, of unit std a channel, are the model's.

    A component is one Gaussian, so its flow is linear: the noise of a photograph has the right size and
    spectrum, but keeps the phases, and one sees the photograph in it. The noise of a draw is noise to the eye
    too: to see that, unsample ``model.draw(2, ["china", "flower"])``. Guidance changes nothing once the
    mixture is decided, and without a prompt pure noise at 14.6 always ends as a flower, whose latents are the
    smaller ones: `path` FLOW, or ``levels=tk.Levels.scaled_linear(zero_snr=True)``, gives both.

    The photographs are those that scikit-learn ships, cropped and scaled: china.jpg by danielbuechele
    (https://www.flickr.com/photos/danielbuechele/6061409035) and flower.jpg by vultilion
    (https://www.flickr.com/photos/vultilion/6056698931), both CC BY 2.0
    (https://creativecommons.org/licenses/by/2.0/). scikit-learn's note names danielbuechele for both, and
    links the second to vultilion.

    Examples
    --------
    >>> import toolkit as tk
    >>> model = tk.load("photographs")
    >>> images, prompts = model.images()
    >>> run = tk.unsample(model, model.encode(images), prompt=prompts, steps=3, progress=False)
    >>> prompts, model.decode(run.latent[0]).shape
    (['china', 'flower'], (2, 256, 256, 3))
    """

    name = "photographs"
    credits = CREDITS

    def __init__(self, path: Path = VE, levels: Levels | None = None, device: Any = None):
        self._images = _photographs()  # uint8 (sample, y, x, rgb)
        self.codec = PatchCodec(self._images / 255.0)
        latent = torch.from_numpy(self.codec.analyse(self._images / 255.0))
        means, variances = prior(latent)
        conditions = {name: [k] for k, name in enumerate(CROPS)} | {"both": list(range(len(CROPS)))}
        # scaled_linear on VE is the clock of Stable Diffusion and of the digits: the same schedules there as
        # here, up to 14.6 times the latents' unit std
        super().__init__(means.to(device), variances.to(device), None, conditions, "pixel", path, levels)
        recipe = (CROPS, SIDE, PATCH, CHANNELS, COLOURS, KEPT, SOFT, FLOOR)
        # of what is fitted to, not of the fit: its last bits are the linear algebra library's
        data = self._images.tobytes() + repr(recipe).encode()
        self.fingerprint = hashlib.sha256(data).hexdigest()[:16]

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "prompts": "/".join(self.prompts)}

    def images(self) -> tuple[NDArray[np.float32], list[str]]:
        """The photographs, (sample, y, x, rgb) float32 in 0..1, and the prompt of each."""
        return (self._images / 255.0).astype(np.float32), list(CROPS)

    def encode(self, image: Any) -> torch.Tensor:
        """Latents of an image, in model space: exact for what 16 numbers a patch can hold.

        Parameters
        ----------
        image : PIL image, or array (y, x), (y, x, rgb), (sample, y, x) or (sample, y, x, rgb); a list of
        either
            uint8, or floating in 0..1; 256 x 256 px.

        Returns
        -------
        Tensor (sample, channel, y, x), float64

        Raises
        ------
        ValueError, TypeError
            For another shape, range or kind of image.
        """
        pixels = pixels_of(image, 3).transpose(0, 2, 3, 1)
        if pixels.shape[1:3] != (SIDE, SIDE):
            line = f"image.resize(({SIDE}, {SIDE}))"
            raise bad("image", pixels.shape[1:3], f"this model takes {SIDE} x {SIDE} pixels", line)
        return torch.from_numpy(self.codec.analyse(pixels)).to(self.device)

    def decode(self, latent: Any) -> NDArray[np.float32]:
        """Images of latents: (sample, channel, y, x) to (sample, y, x, rgb), float32, clipped to 0..1.

        Raises ValueError or TypeError for what is not such an array (a DataArray comes without `step`).
        """
        x = inputs.latent(self, latent, "latent", "model.decode(run.latent.isel(step=-1))")
        return self.codec.synthesise(x.cpu().numpy()).clip(0.0, 1.0).astype(np.float32)


def prior(latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means, and variances of the DCT coefficients, (sample, channel, y, x), of one Gaussian a latent.

    The mean is ``keep(k) X``; what it leaves of the power, averaged over rings of equal wave number, is the
    variance: the latent itself is then typical, its residual having the model's own spectrum.
    """
    found = dct(latent)
    waves = np.hypot(*np.mgrid[: latent.shape[-2], : latent.shape[-1]])
    keep = torch.from_numpy(KEPT + (1.0 - KEPT) / (1.0 + (waves / SOFT) ** 2))
    rings = torch.from_numpy(np.rint(waves).astype(np.int64)).flatten()
    power = ((1.0 - keep) * found).square().flatten(2)  # (sample, channel, element)
    total = power.new_zeros(*power.shape[:2], int(rings.max()) + 1).index_add_(2, rings, power)
    mean = total / torch.bincount(rings).clamp_min(1)  # (sample, channel, ring)
    return inverse_dct(keep * found), mean[..., rings].view(found.shape) + FLOOR


def _photographs() -> NDArray[np.uint8]:
    """The photographs that scikit-learn ships, cropped to squares: (sample, y, x, rgb)."""
    try:
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise ImportError(
            "the photographs are read from scikit-learn, which is not installed. "
            'Try: pip install "unsampling-toolkit[notebooks]"'
        ) from error
    whole = {name: Image.fromarray(load_sample_image(f"{name}.jpg")) for name in CROPS}
    size, soft = (
        (SIDE, SIDE),
        Image.Resampling.BILINEAR,
    )  # sharper filters leave more than 16 numbers can hold
    return np.stack([np.asarray(whole[name].resize(size, soft, box)) for name, box in CROPS.items()])


def build(device: Any = None, dtype: Any = None, **options: Any) -> Photographs:
    """The model of ``tk.load("photographs", device=, dtype=, path=, levels=)``.

    Raises ValueError for a dtype other than float64 and TypeError for another option, ImportError without
    scikit-learn.
    """
    line = 'tk.load("photographs", path=tk.FLOW)'
    if dtype not in (None, torch.float64):
        why = "closed form, computed in float64: there is no network to run in another dtype"
        raise bad("dtype", dtype, why, 'tk.load("photographs")')
    for name in options:
        if name not in ("path", "levels"):
            raise unknown("option", name, ("path", "levels"), line)
    return Photographs(device=device, **options)
