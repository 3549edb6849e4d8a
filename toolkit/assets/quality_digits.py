"""Measure the embedded model: ``python -m toolkit.assets.quality_digits --out FILE``.

The weights are judged as shipped: read from float16, run in float32, sampled by this package. The judge of
samples is a support vector classifier fitted to the real training digits; held-out digits say how far it can
be trusted.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist, pdist
from sklearn.svm import SVC

import toolkit as tk

SEED = 0
STEPS = 20
A_CLASS = 50  # samples
CLASSES = 10
SIGMA = 1.0  # where the denoising error is compared: half signal, half noise


def flat(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """(image, y, x) to (image, pixel)."""
    return images.reshape(len(images), -1)


def drawn(model: Any, labels: NDArray[np.int64], cfg: float) -> NDArray[np.float32]:
    """One image a label, (sample, y, x) in 0..1."""
    save = tk.Save(what=["latent"], every=STEPS)
    asked = {
        "prompt": labels.tolist(),
        "cfg": cfg,
        "solver": "dpmpp_2m",
        "schedule": "normal",
        "steps": STEPS,
    }
    run = tk.sample(model, **asked, seed=SEED, save=save)
    return model.decode(run.latent[-1])[..., 0]


def spread(images: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Mean Euclidean distance in pixels between two images of one class, averaged over classes."""
    return float(np.mean([pdist(flat(images[labels == digit])).mean() for digit in range(CLASSES)]))


def nearest(images: NDArray[np.float32], others: NDArray[np.float32]) -> float:
    """Mean Euclidean distance in pixels from an image to the nearest of the others."""
    return float(cdist(flat(images), flat(others)).min(axis=1).mean())


def denoising_error(model: Any, images: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Mean squared error of x0 at `SIGMA`, per latent number."""
    latents = model.encode(images)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    with torch.no_grad():
        x0 = tk.guide(model, prompt=labels.tolist()).denoise(latents + SIGMA * noise, SIGMA).x0
    return float((x0 - latents).square().mean())


def measure(folder: Path | None = None) -> dict[str, float]:
    """Figures of the shipped model, or of one in `folder`.

    Returns
    -------
    dict
        ``agreement_*`` are shares of samples which the classifier takes for the digit asked for, over all
        classes or in the worst; distances are Euclidean, in pixel values of 0..1; ``psnr_*`` in dB, the peak
        being the full range of the image.
    """
    model = tk.load(folder)
    (train, train_labels), (held_out, held_out_labels) = (tk.assets.digits(s) for s in ("train", "held-out"))
    judge = SVC(C=10.0).fit(flat(train), train_labels)
    latents = model.encode(held_out)
    errors = np.square(model.decode(latents)[..., 0] - held_out).mean(axis=(1, 2))
    figures = {
        "classifier_accuracy_held_out": judge.score(flat(held_out), held_out_labels),
        "psnr_held_out": -10.0 * np.log10(errors.mean()),
        "psnr_held_out_worst_image": -10.0 * np.log10(errors.max()),
        "latent_mean_held_out": latents.mean().item(),
        "latent_std_held_out": latents.std().item(),
        "denoising_error_train": denoising_error(model, train, train_labels),
        "denoising_error_held_out": denoising_error(model, held_out, held_out_labels),
        "nearest_train_from_held_out": nearest(held_out, train),
        "spread_held_out": spread(held_out, held_out_labels),
    }
    labels = np.repeat(np.arange(CLASSES), A_CLASS)
    for cfg in (1.0, 2.0):
        images, name = drawn(model, labels, cfg), f"cfg_{cfg:g}"
        right = judge.predict(flat(images)) == labels
        figures[f"agreement_{name}"] = right.mean()
        figures[f"agreement_{name}_worst_class"] = right.reshape(CLASSES, A_CLASS).mean(axis=1).min()
        figures[f"spread_{name}_over_held_out"] = spread(images, labels) / figures["spread_held_out"]
        figures[f"nearest_train_from_{name}"] = nearest(images, train)
    return {key: round(float(value), 4) for key, value in figures.items()}


def main() -> None:
    """Read the command line, measure and write."""
    parser = argparse.ArgumentParser(description="Measure the embedded model of handwritten digits.")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--model", type=Path, default=None, help="folder of the model (default: shipped)")
    arguments = parser.parse_args()
    arguments.out.write_text(json.dumps(measure(arguments.model), indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
