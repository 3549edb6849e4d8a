"""What several tests need: the reference mixture on both paths, its images, pipelines in folders."""

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import toolkit as tk

DATA = Path(__file__).parent / "data"
PATHS = {"VE": tk.VE, "FLOW": tk.FLOW}


def pytest_terminal_summary(terminalreporter) -> None:
    """One line for each reason to skip; pytest's own list has one for each place."""
    skipped = terminalreporter.stats.get("skipped", [])
    for reason, count in Counter(report.longrepr[2] for report in skipped).items():
        terminalreporter.write_line(f"{count} skipped: {reason.removeprefix('Skipped: ')}")


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative L2 distance of two tensors."""
    return float(torch.linalg.norm(got - want) / torch.linalg.norm(want))


def run(model, solver, x, sigmas, **options) -> torch.Tensor:
    """The last state of a walk of the loop."""
    for step in tk.steps(model, solver, x, sigmas, **options):
        x = step.x_next
    return x


@pytest.fixture(autouse=True)
def one_thread():
    """Bits that do not depend on how many cores the machine has."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def reference() -> dict[str, np.ndarray]:
    """The closed-form mixture that the reference numbers were measured on (`data/README.md`)."""
    with np.load(DATA / "mixture.npz") as data:
        return dict(data)


def reference_mixture(reference: dict[str, np.ndarray], path=tk.VE) -> tk.GaussianMixture:
    """The mixture of the reference data on a path."""
    std, weights = float(reference["mix_within_std"]), reference["mix_weights"]
    return tk.GaussianMixture(reference["mix_means"], std, weights, path)


@pytest.fixture(scope="session", params=["VE", "FLOW"])
def mixture(request, reference) -> tk.GaussianMixture:
    """The reference mixture, five conditions of three components, on each path."""
    return reference_mixture(reference, PATHS[request.param])


@pytest.fixture(scope="session")
def images(reference) -> dict[str, torch.Tensor]:
    """Two images the mixture would draw, and two it would not."""
    inside = torch.from_numpy(reference["image_batch2_f64"])
    rough = torch.randn(inside.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return {"in": inside, "off": inside + 0.5 * rough}


@pytest.fixture(scope="session")
def digits_model():
    """The embedded pipeline, loaded once."""
    return tk.load()


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a tiny pipeline by its name in `tiny.PIPELINES`, made once; to be left as it is."""
    root = tmp_path_factory.mktemp("tiny")

    @functools.cache
    def folder(name: str) -> Path:
        import tiny  # diffusers takes seconds to import

        return tiny.save(name, root / name.replace(" ", "-"))

    return folder


@pytest.fixture
def behind_a_device(monkeypatch) -> Callable[[Callable], None]:
    """Asserts that a run records the same one hop late, as from a GPU, and knows where its states are."""
    from toolkit import later

    def check(run: Callable) -> None:
        want, seen = run(), []
        monkeypatch.setattr(later, "is_deferred", lambda device: seen.append(device) or True)
        got = run()
        assert seen == [torch.device("cpu")]
        for name in ("latent", "nfe", "rows"):
            np.testing.assert_array_equal(got[name], want[name])
        np.testing.assert_allclose(got["std"], want["std"], rtol=1e-12)

    return check
