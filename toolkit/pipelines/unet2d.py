"""UNets without text (2006.11239): pixels or latents, with class labels or without any condition."""

from ..errors import bad
from .labels import Labelled


class UNet2D(Labelled):
    """A pipeline around a `UNet2DModel`, such as `DDPMPipeline`: the model works on pixels in -1..1."""

    def _describe(self) -> None:
        super()._describe()
        if hasattr(self.pipe, "vqvae"):
            why = "latents of a VQ-VAE are not supported by this version"
            raise bad("source", type(self.pipe).__name__, why, 'tk.load("path/to/a/DDPMPipeline")')
        self.shape = self.usual_shape
        self.classes = int(self.network.config.num_class_embeds or 0)
