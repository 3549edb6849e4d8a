"""DiT: class-conditional transformers over the latents of a VAE (2212.09748), our digits among them."""

from typing import Any

from .labels import Labelled


class DiT(Labelled):
    """A `DiTPipeline` as a model: labels as prompts, the null class where the prompt is None."""

    component = "transformer"

    def _describe(self) -> None:
        super()._describe()
        self.shape = self.usual_shape  # its places are learnt: it takes no other size
        self.none = self.classes = int(self.network.config.num_embeds_ada_norm)  # the label after the last
        self.labels = dict(getattr(self.pipe, "labels", {}))  # text -> class, from the pipeline's id2label

    def facts(self) -> dict[str, Any]:
        facts = super().facts()
        dtype = facts.pop("dtype")
        return {**facts, "classes": self.classes, "dtype": dtype}
