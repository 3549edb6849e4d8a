"""Train the embedded model: ``python -m toolkit.assets.train_digits --out DIR``.

Two networks, one after the other, as in Rombach et al. (2022, arXiv:2112.10752): an autoencoder from images
of 32x32 to latents of 4x8x8, and a diffusion transformer (Peebles and Xie, 2023, arXiv:2212.09748) on those
latents. Only ``digits("train")`` is read. One seed, one thread.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import trange

from toolkit.assets import digits

SEED = 0
CLASSES = 10
NULL_LABEL = 10  # one past the last class: the row which diffusers' label embedding keeps for "no label"
LABEL_DROPOUT = 0.1  # Ho and Salimans (2022), arXiv:2207.12598

# Augmentation, small enough that a moved digit is still one that somebody could have written in its box.
MAX_SHIFT = 1.0  # px of 32
MAX_ROTATION = 6.0  # degrees
MAX_ZOOM = 0.04  # relative
COPIES = 8  # augmented copies of the training images, encoded once before the transformer is trained

VAE_STEPS, VAE_BATCH, VAE_RATE = 1500, 32, 2e-3
KL_WEIGHT = 6e-4  # nats a latent number against squared error a pixel, image in -1..1
DIT_STEPS, DIT_BATCH, DIT_RATE = 6000, 64, 1e-3
WARMUP = 200
EMA_DECAY = 0.999


def build_vae() -> AutoencoderKL:
    """Autoencoder between images (1, 32, 32) and latents (4, 8, 8)."""
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
    )


def build_transformer() -> DiTTransformer2DModel:
    """Diffusion transformer on latents (4, 8, 8), with the initialisation of its paper.

    Labels apart, which start at std 1 and not 0.02: a short training does not grow them.
    """
    transformer = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=32,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
    )
    # diffusers leaves out the zero initialisation that gives "adaLN-Zero" its name: every block starts as the
    # identity and the network as zero.
    for block in transformer.transformer_blocks:
        nn.init.zeros_(block.norm1.linear.weight)
        nn.init.zeros_(block.norm1.linear.bias)
        nn.init.normal_(block.norm1.emb.class_embedder.embedding_table.weight, std=1.0)
    for layer in (transformer.proj_out_1, transformer.proj_out_2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    # In train mode diffusers drops the label in each block by a draw of that block alone, so that a sample
    # would be half labelled; there is no other dropout, so eval mode and one draw a sample instead.
    return transformer.eval()


def build_scheduler() -> DDIMScheduler:
    """The levels of Stable Diffusion 1.x."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def warmup_cosine(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """Learning rate: `WARMUP` steps up, then half a cosine down to zero."""

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / WARMUP) * 0.5 * (1.0 + np.cos(np.pi * step / steps))

    return LambdaLR(optimizer, rate)


def augment(images: Tensor) -> Tensor:
    """Shift, turn and zoom each image a little, by its own draw.

    Parameters
    ----------
    images
        Float (sample, 1, y, x) in 0..1.

    Returns
    -------
    Tensor
        Of the same shape and range.
    """
    count, _, side, _ = images.shape
    draw = 2.0 * torch.rand(4, count) - 1.0  # (parameter, sample) in -1..1
    angle = torch.deg2rad(MAX_ROTATION * draw[0])
    zoom = 1.0 + MAX_ZOOM * draw[1]
    shift = draw[2:] * MAX_SHIFT * 2.0 / side  # grid_sample's coordinates span 2 across the image
    top = torch.stack([zoom * angle.cos(), -zoom * angle.sin(), shift[0]], dim=1)
    bottom = torch.stack([zoom * angle.sin(), zoom * angle.cos(), shift[1]], dim=1)
    grid = F.affine_grid(torch.stack([top, bottom], dim=1), list(images.shape), align_corners=False)
    # The digits touch the edges of their boxes: padding by zeros would cut their strokes with a black wedge.
    moved = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return moved.clamp(0.0, 1.0)


def train_vae(images: Tensor) -> tuple[AutoencoderKL, float]:
    """Fit the autoencoder: squared error plus a light pull of the latents towards a standard normal.

    Parameters
    ----------
    images
        Float (sample, 1, y, x) in 0..1.

    Returns
    -------
    vae : AutoencoderKL
    loss : float
        Mean of the last 100 steps.
    """
    vae = build_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=VAE_RATE, weight_decay=0.0)
    schedule = warmup_cosine(optimizer, VAE_STEPS)
    losses = []
    for _ in trange(VAE_STEPS, desc="autoencoder"):
        batch = 2.0 * augment(images[torch.randint(len(images), (VAE_BATCH,))]) - 1.0
        posterior = vae.encode(batch).latent_dist
        reconstruction = vae.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = F.mse_loss(reconstruction, batch) + KL_WEIGHT * kl
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return vae.eval(), float(np.mean(losses[-100:]))


@torch.no_grad()
def encode_copies(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Latent means of `COPIES` augmented copies of the images, unscaled: (sample, 4, 8, 8)."""
    return torch.cat(
        [vae.encode(2.0 * augment(images) - 1.0).latent_dist.mean for _ in trange(COPIES, desc="latents")]
    )


def train_transformer(latents: Tensor, labels: Tensor, levels: Tensor) -> tuple[DiTTransformer2DModel, float]:
    """Fit the transformer to the velocity of noised latents (Salimans and Ho, 2022, arXiv:2202.00512).

    v = sqrt(abar) eps - sqrt(1 - abar) x0: at high noise the network learns x0 itself, the shape of the
    digit, and not the noise, whose error would reach x0 multiplied by sigma.

    Parameters
    ----------
    latents
        Float (sample, 4, 8, 8), of unit variance.
    labels
        Integer (sample,), 0 to 9.
    levels
        Float (timestep,): cumulative products of alpha.

    Returns
    -------
    transformer : DiTTransformer2DModel
        With the moving average of the weights.
    loss : float
        Mean of the last 100 steps.
    """
    transformer = build_transformer()
    average = AveragedModel(transformer, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=DIT_RATE, weight_decay=0.0)
    schedule = warmup_cosine(optimizer, DIT_STEPS)
    losses = []
    for _ in trange(DIT_STEPS, desc="transformer"):
        chosen = torch.randint(len(latents), (DIT_BATCH,))
        # One timestep from each of DIT_BATCH equal strata: a steadier gradient than independent draws.
        timestep = ((torch.arange(DIT_BATCH) + torch.rand(DIT_BATCH)) / DIT_BATCH * len(levels)).long()
        dropped = torch.rand(DIT_BATCH) < LABEL_DROPOUT
        label = labels[chosen].masked_fill(dropped, NULL_LABEL)
        noise = torch.randn(DIT_BATCH, *latents.shape[1:])
        alpha_bar = levels[timestep].view(-1, 1, 1, 1)
        noised = alpha_bar.sqrt() * latents[chosen] + (1.0 - alpha_bar).sqrt() * noise
        velocity = alpha_bar.sqrt() * noise - (1.0 - alpha_bar).sqrt() * latents[chosen]
        loss = F.mse_loss(transformer(noised, timestep, label).sample, velocity)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(transformer)
        losses.append(loss.item())
    return average.module, float(np.mean(losses[-100:]))


def train(out: Path) -> None:
    """Train both networks and write them, with a record of the run in ``training.json``, below `out`.

    Weights are stored in float16; the record holds the seed, sizes, losses, minutes and versions.
    """
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # the order of a sum depends on the number of threads, and so do its last bits
    started = time.perf_counter()
    pictures, classes = digits("train")
    images = torch.from_numpy(pictures)[:, None]  # (sample, 1, y, x)
    vae, vae_loss = train_vae(images)
    latents = encode_copies(vae, images)
    scaling_factor = 1.0 / latents.std().item()
    vae.register_to_config(scaling_factor=scaling_factor)
    scheduler = build_scheduler()
    labels = torch.from_numpy(classes).repeat(COPIES)
    transformer, dit_loss = train_transformer(latents * scaling_factor, labels, scheduler.alphas_cumprod)
    minutes = (time.perf_counter() - started) / 60.0

    pipeline = DiTPipeline(transformer, vae, scheduler)
    # The constructor reads id2label but does not keep it; only what is registered is saved.
    pipeline.register_to_config(id2label={str(digit): str(digit) for digit in range(CLASSES)})
    pipeline.to(torch.float16).save_pretrained(out, safe_serialization=True)
    record = {
        "seed": SEED,
        "training_images": len(images),
        "parameters": {"vae": vae.num_parameters(), "transformer": transformer.num_parameters()},
        "steps": {"vae": VAE_STEPS, "transformer": DIT_STEPS},
        "batch": {"vae": VAE_BATCH, "transformer": DIT_BATCH},
        "final_loss": {"vae": round(vae_loss, 5), "transformer": round(dit_loss, 4)},
        "minutes": round(minutes, 1),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
    }
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train the embedded model of handwritten digits.")
    parser.add_argument("--out", type=Path, default=Path("digits"), help="folder to write (default: digits)")
    train(parser.parse_args().out)


if __name__ == "__main__":
    main()
