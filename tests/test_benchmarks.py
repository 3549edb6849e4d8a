"""The benchmarks of a step run, on the smallest networks: what they count is right; times are no tests."""

import importlib
import json
import math
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "benchmarks"
ASKED = ["--no-compile", "--steps", "2", "4", "--repeats", "1"]


@pytest.fixture
def script(monkeypatch):
    """A benchmark by name; they import each other as scripts do."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.mark.parametrize(
    "name, asked",
    [
        ("cpu", ["--size", "tiny"]),
        ("gpu", ["--size", "tinyxl", "--device", "cpu", "--batch", "2"]),
    ],
)
def test_a_step_is_measured(name, asked, script, tmp_path, capsys, monkeypatch):
    out = tmp_path / "told.json"
    monkeypatch.setattr(script("ratios"), "HOLLOW", (2, 4))
    assert script(name).main([*asked, *ASKED, "--out", str(out)]) == 0
    (found,) = json.loads(out.read_text())["tables"]
    calls = {what: run["calls"] for what, run in found["runs"].items()}
    recorded = {"unsample": 3, "unsample, store": 3}  # the hop from sigma 0 asks no model
    assert calls == {"forward": 4, "diffusers": 4, **recorded, "regions": 4, "regions, one by one": 4}
    assert len(found["ratios"]) == 6
    assert all(math.isfinite(ratio["a_step"]) for ratio in found["ratios"].values())
    alone = found["runs"]["forward"]["s_call"]
    ratio = found["ratios"]["added, over the bare forward"]["a_step"]
    assert ratio == pytest.approx(1 + found["added_s"]["unsample"] / alone)
    assert all(run["s_whole"] > 0 for run in found["runs"].values())
    assert "over the bare forward" in capsys.readouterr().out


def test_all_runs_ask_the_same_network_as_often(script, monkeypatch, tmp_path):
    """Rows of each forward; ours sees what diffusers' loop sees, in its dtype."""
    ratios = script("ratios")
    case = ratios.Case("tiny", 2, "cpu", torch.float32, False, tmp_path)
    seen, forward = [], case.pipe.unet.forward

    def told(sample, timestep, *args, **options):
        seen.append((tuple(sample.shape), sample.dtype, options["encoder_hidden_states"].shape[0]))
        return forward(sample, timestep, *args, **options)

    monkeypatch.setattr(case.pipe.unet, "forward", told)
    rows = {}
    with ratios.quiet():
        for name, run in case.runs.items():
            seen.clear()
            run(3)
            rows[name] = [shape[0] for shape, *_ in seen]
            assert {(shape[1:], dtype) for shape, dtype, _ in seen} == {((4, 8, 8), torch.float32)}
            assert all(shape[0] == prompts for shape, _, prompts in seen)
    assert rows == {
        "forward": [2, 2, 2], "diffusers": [2, 2, 2], "unsample": [2, 2], "unsample, store": [2, 2],
        "regions": [6, 6, 6], "regions, one by one": [2] * 9,
    }  # fmt: skip


def test_a_ratio_over_its_limit_is_told(script, capsys):
    ratios = script("ratios")
    run = {"s_call": 1.0, "s_whole": 1.0, "calls": 4}
    found = {
        "size": "tiny", "batch": 8, "shape": [8, 4, 8, 8], "parameters": 1, "runs": {"forward": run},
        "added_s": {"unsample": 1e-4, "diffusers": 1e-4}, "peak_mib": {"unsample": 1.0, "diffusers": 1.0},
        "waits_a_step": 0.0,
    }  # fmt: skip
    limits = script("gpu").LIMITS
    over, regions = "over the bare forward", "three regions at once over one by one"
    for ratio, batch, want in ((1.01, 8, False), (1.03, 8, True), (1.03, 1, True)):
        found |= {"ratios": {over: {"a_step": ratio, "whole": 9.0}}, "batch": batch}
        assert ratios.shown(found, limits) is want
    for batch, want in ((8, False), (1, True)):  # its limit is for a batch of one
        found |= {"ratios": {regions: {"a_step": 0.5, "whole": 0.1}}, "batch": batch}
        assert ratios.shown(found, limits) is want
    assert "limit 0.45" in capsys.readouterr().out


def test_imports_are_told(script):
    imports = script("imports")
    assert imports.once("import toolkit") == (pytest.approx(0.0, abs=1.0), [])
    assert imports.once("import sys\nsys.modules['transformers'] = sys")[1] == ["transformers"]
