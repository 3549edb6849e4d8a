"""What the adapters of all families share: images in and out, prompts, rows, and the record of it.

A family says how its prompts are encoded (`condition`) and how its network is asked (`ask`); that is a page.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import inputs
from ..denoisers import Model, one_a_sample, predict
from ..errors import bad
from .clocks import clock
from .pictures import pixels_of
from .prints import fingerprint
from .texts import Condition, checked, kept, stack

# pixels of an image from which on a VAE that can works tile by tile, and of a batch that it takes at a time
TILED = 1536 * 1536
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


class Asked(NamedTuple):
    """What `tk.load` was asked beside the pipeline."""

    max_rows: int | None = None
    compile: bool = False
    guidance: float | None = None


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Convolutions of float32 networks in float32: on newer GPUs cuDNN keeps ten bits of it, unasked."""
    cudnn = torch.backends.cudnn
    try:
        rounded = device.type == "cuda" and cudnn.allow_tf32
    except RuntimeError:  # the caller has said what he wants in torch's newer way, which rules this one out
        rounded = False
    if not rounded:
        yield
        return
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32 = True


class Pipeline(Model):
    """A diffusers pipeline as a model; the base of the families.

    Attributes
    ----------
    pipe : DiffusionPipeline
        As it was loaded or given; what is changed there (a LoRA, a VAE) wants another ``tk.load(pipe)``.
    network, vae : Module
        The denoiser, and the autoencoder, None where the model works on pixels.
    max_rows : int or None
        Most network rows of one forward. Part of the record: a network gives the same bits only for the same
        grouping.
    multiple : int
        Sides of a latent are multiples of it.
    usual_shape : (channel, y, x)
        Of a latent, where a run from noise does not say.
    """

    component = "unet"  # what the pipeline calls its denoiser
    takes: tuple[str, ...] = ("encoder_hidden_states",)  # of an encoded prompt

    def __init__(self, pipe: Any, name: str, asked: Asked):
        self.pipe, self.name, self.asked, self.max_rows = pipe, name, asked, asked.max_rows
        self.network, self.vae = getattr(pipe, self.component), getattr(pipe, "vae", None)
        modules = [self.network, self.vae, *(getattr(pipe, each, None) for each in TEXT_ENCODERS)]
        modules = [module for module in modules if module is not None]
        for module in modules:
            module.eval().requires_grad_(False)
        self._check_place()
        self._describe()
        if asked.guidance is not None and "guidance" not in self.recorded():
            why = "this network was not distilled to be told it; guidance is the `cfg` of a run"
            raise bad("guidance", asked.guidance, why, "tk.sample(model, cfg=3.5)")
        self.fingerprint = fingerprint(*modules)
        self._forward = self._compiled() if asked.compile else self.network
        self._prompts: dict[Any, Condition] = {}
        self._batches: dict[tuple, Any] = {}

    def _describe(self) -> None:
        """Sizes, levels and prediction, as the pipeline's configurations have them."""
        config = self.network.config
        self.channels = self.latent_channels()
        self.factor = int(getattr(self.pipe, "vae_scale_factor", 1))
        if self.vae is not None:
            self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
            self._check_vae()
            self.latent_scale = float(self.vae.config.get("scaling_factor") or 1.0)
            self.latent_shift = float(self.vae.config.get("shift_factor") or 0.0)
        size = config.get("sample_size") or self.pipe.default_sample_size
        self.usual_shape = (self.channels, *((size, size) if isinstance(size, int) else size))
        self._clock(self.usual_shape)

    latent_shift = 0.0
    overflows = False  # whether the activations of the VAE are too large for float16

    def _check_place(self) -> None:
        """Refuses a network that lies apart from where the pipeline runs, and would not be fetched."""
        runs, lies = self.device, next(self.network.parameters()).device
        waits = getattr(self.network, "_hf_hook", None) is not None or lies.type == "meta"
        if runs.type != lies.type and not waits:
            why = f"the pipeline runs on {runs}, and its {self.component} lies on {lies}"
            raise bad("source", type(self.pipe).__name__, why, f'tk.load(pipe.to("{lies}")), or offloading')

    def _check_vae(self) -> None:
        config, line = self.vae.config, "pipe.vae = the autoencoder that this network was trained with"
        given = int(config.latent_channels)
        if given != self.channels:
            why = (
                f"its network takes {self.channels} channels and its autoencoder gives {given}: one for "
                "inpainting, depth or editing takes more than a latent, which this version does not give"
            )
            raise bad("source", type(self.pipe).__name__, why, 'tk.load("path/to/the/text-to-image/model")')
        if config.get("latents_mean") is not None:
            why = "latents with a mean and std a channel (Playground 2.5) are not supported by this version"
            raise bad("pipe.vae", type(self.vae).__name__, why, line)

    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.network.config.in_channels)

    def _clock(self, shape: tuple[int, ...]) -> None:
        found = clock(self.pipe.scheduler, shape[-2] * shape[-1] // self.multiple**2)
        self.prediction, self.levels, self.unit = found
        self.path = found.path

    @property
    def device(self) -> torch.device:
        """Where the network runs (with offloading: where it runs, not where it waits)."""
        return torch.device(self.pipe._execution_device)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "dtype": self.recorded()["network_dtype"]}

    def recorded(self) -> dict[str, Any]:
        """What the record of a run says of this model beside its name, levels and fingerprint."""
        dtype = str(self.network.dtype).removeprefix("torch.")
        return {"network_dtype": dtype, "max_rows": self.max_rows, "compile": self.asked.compile}

    def sized(self, height: int, width: int) -> "Pipeline":
        """This model with the size of its images said, in pixels: a copy that shares the networks.

        What it changes: the shape of a run from noise, and the levels of a model whose scheduler shifts them
        by the size of the image (Flux dev), which otherwise are those of its usual size.

        Raises ValueError or TypeError where a side is no multiple of what the model takes, or too long.
        """
        step, most = self.factor * self.multiple, self.largest and self.largest * self.factor
        line = f"model.sized({8 * step}, {8 * step})"
        for name, side in (("height", height), ("width", width)):
            if inputs.whole(name, side, step, most, line) % step:
                raise bad(name, side, f"a multiple of {step} px", line)
        made = copy.copy(self)
        made.usual_shape = (self.channels, height // self.factor, width // self.factor)
        made._clock(made.usual_shape)
        return made

    # --- prompts

    def conditions(self, prompt: Any, samples: int, name: str = "prompt") -> list:
        """Encoded prompts, one a sample; a text is encoded once, however many samples have it."""
        return one_a_sample(prompt, samples, self._resolved, name)

    def _resolved(self, prompt: Any, name: str) -> Condition:
        prompt, negative = checked(prompt, name, self.takes), name == "negative"
        if isinstance(prompt, Condition):
            return prompt
        return kept(self._prompts, (prompt, negative), lambda: self.condition(prompt, negative))

    def condition(self, prompt: str | None, negative: bool = False) -> Condition:
        """A text, encoded as this pipeline does it; None is what it takes for no prompt.

        Raises TypeError for another prompt, ValueError where the pipeline has no text encoder.
        """
        prompt = checked(prompt, "prompt", self.takes)
        if isinstance(prompt, Condition):
            return prompt
        if all(getattr(self.pipe, each, None) is None for each in TEXT_ENCODERS):
            why = "this pipeline was loaded without a text encoder; encode with one that has it"
            line = "prompt=other.condition(text), negative=other.condition(None, negative=True)"
            raise bad("negative" if negative else "prompt", prompt, why, line)
        with torch.no_grad():
            made = self.encoded(prompt, negative)
        dtype = self.network.dtype
        return Condition(prompt, {k: v.to(self.device, dtype) for k, v in made.items()})

    def encoded(self, prompt: str | None, negative: bool) -> dict[str, torch.Tensor]:
        """The tensors (1, ...) of a prompt."""
        raise NotImplementedError

    def _stacked(self, conditions: list[Condition], x: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors of some prompts, (row, ...), beside x; kept, since every step asks for the same."""
        key = (*conditions, x.device, x.dtype)
        return kept(self._batches, key, lambda: stack(conditions, x.device, x.dtype))

    # --- the network

    def x0(self, x: torch.Tensor, sigma: float, conditions: list) -> torch.Tensor:
        most = self.max_rows or len(x)
        parts = [
            predict(self.prediction, self._asker(conditions[i : i + most], sigma), x[i : i + most], sigma)
            for i in range(0, len(x), most)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _asker(self, conditions: list, sigma: float) -> Any:
        """The network under these conditions, as a function of what it sees."""

        def network(seen: torch.Tensor) -> torch.Tensor:
            time = torch.full((len(seen),), self.time(sigma), device=seen.device)
            if self.graphs:
                torch.compiler.cudagraph_mark_step_begin()
            with full_float32(seen.device):
                return self.ask(seen.to(self._dtype), time, conditions)

        return network

    def time(self, sigma: float) -> float:
        """What the network is told of the level."""
        return self.levels.time(sigma)

    def ask(self, x: torch.Tensor, time: torch.Tensor, conditions: list) -> torch.Tensor:
        """What the network predicts: x (row, channel, y, x) in its dtype, time (row,)."""
        raise NotImplementedError

    @cached_property
    def _dtype(self) -> torch.dtype:
        """Of the network: asked once, since diffusers looks through all of its modules for an answer."""
        return self.network.dtype

    @cached_property
    def graphs(self) -> bool:
        """Whether a step is one CUDA graph, which takes away what starting a thousand kernels costs."""
        return self.asked.compile and self.device.type == "cuda"

    def _compiled(self) -> Any:
        mode = "reduce-overhead" if self.graphs else "default"
        return torch.compile(self.network, mode=mode, dynamic=False)

    # --- images

    def encode(self, image: Any) -> torch.Tensor:
        """The posterior's mode of an image, in model space.

        Parameters
        ----------
        image : PIL image, or array (y, x), (y, x, rgb), (sample, y, x) or (sample, y, x, rgb); a list of
        either
            uint8, or floating in 0..1; sides in multiples of `factor` times `multiple` px.

        Returns
        -------
        Tensor (sample, channel, y, x), float64
            ``(z - latent_shift)*latent_scale``.

        Raises
        ------
        ValueError, TypeError
            For another shape, range or kind of image.
        """
        pixels = pixels_of(image, self._image_channels())
        self._check_size(*pixels.shape[-2:])
        scaled = torch.from_numpy(2.0 * pixels - 1.0)
        if self.vae is None:
            return scaled.to(self.device, torch.float64)
        z = [self._modes(part.to(self.device, self.vae.dtype)) for part in self._parts(scaled, 1)]
        return (torch.cat(z) - self.latent_shift) * self.latent_scale

    def _modes(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            out = self.vae.encode(pixels)
        # a distilled autoencoder (AutoencoderTiny) has latents, and no distribution of them
        return (out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latents).double()

    def decode(self, latent: Any) -> np.ndarray:
        """Images of latents in model space: (sample, channel, y, x) to (sample, y, x, rgb), float32 in 0..1.

        Large images are decoded tile by tile, where the autoencoder can. Raises ValueError or TypeError for
        what is not such an array (a DataArray comes without `step`).
        """
        x = inputs.latent(self, latent, "latent", "model.decode(run.latent.isel(step=-1))")
        self._image_channels()
        images = (
            x if self.vae is None else torch.cat([self._pixels(part) for part in self._parts(x, self.factor)])
        )
        images = (0.5 * images.float() + 0.5).clamp(0.0, 1.0).permute(0, 2, 3, 1).cpu().numpy()
        return np.ascontiguousarray(np.broadcast_to(images, (*images.shape[:3], 3)))

    def _pixels(self, x: torch.Tensor) -> torch.Tensor:
        z = (x / self.latent_scale + self.latent_shift).to(self.vae.dtype)
        with torch.no_grad():
            return self.vae.decode(z).sample

    def _parts(self, batch: torch.Tensor, factor: int) -> Iterator[torch.Tensor]:
        """A batch in parts of at most `TILED` pixels, or one by one where tiles are needed."""
        each = batch.shape[-2] * batch.shape[-1] * factor**2
        with self._tiled(each > TILED), self._widened(), full_float32(self.device):
            yield from batch.split(max(1, TILED // each))

    @contextmanager
    def _widened(self) -> Iterator[None]:
        """A VAE that overflows float16, in float32 for as long as it works."""
        narrow = self.overflows and self.vae.dtype == torch.float16
        if narrow:
            self.vae.float()
        try:
            yield
        finally:
            if narrow:
                self.vae.half()

    @contextmanager
    def _tiled(self, needed: bool) -> Iterator[None]:
        needed = needed and hasattr(self.vae, "enable_tiling") and not getattr(self.vae, "use_tiling", False)
        if needed:
            self.vae.enable_tiling()
        try:
            yield
        finally:
            if needed:
                self.vae.disable_tiling()

    def _image_channels(self) -> int:
        if self.vae is None and self.channels not in (1, 3):
            why = "images need the autoencoder, and this pipeline was loaded without it"
            raise bad("pipe.vae", None, why, "pipe.vae = ..., then tk.load(pipe)")
        return self.channels if self.vae is None else int(self.vae.config.in_channels)

    def _check_size(self, height: int, width: int) -> None:
        step = self.factor * self.multiple
        if self.shape is not None:
            want = (self.shape[-2] * self.factor, self.shape[-1] * self.factor)
            if (height, width) != want:
                line = f"image.resize(({want[1]}, {want[0]}))"
                raise bad("image", (height, width), f"this model takes {want[0]} x {want[1]} pixels", line)
        elif height % step or width % step:
            near = [max(step, step * math.floor(side / step + 0.5)) for side in (width, height)]
            why = f"sides of this model's images are multiples of {step} px"
            raise bad("image", (height, width), why, f"image.resize(({near[0]}, {near[1]}))")
