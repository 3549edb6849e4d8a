"""ComfyUI's `.latent` files: what it writes is read, and what we write it can read."""

import json

import numpy as np
import pytest
import safetensors
import torch
import xarray as xr
from PIL import Image
from safetensors.torch import load_file, save_file

import toolkit as tk
from toolkit.comfy import load_latent, save_latent

WORKFLOW = json.dumps({"nodes": [{"type": "KSampler", "widgets_values": [1, "fixed"]}], "version": 0.4})
PROMPT = json.dumps({"3": {"class_type": "KSampler", "inputs": {"seed": 1}}})


def normal(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def latent():
    return normal(2, 4, 8, 6)


@pytest.fixture
def theirs(tmp_path, latent):
    """A file as ComfyUI's SaveLatent writes it."""
    path = tmp_path / "ComfyUI_00001_.latent"
    tensors = {"latent_tensor": latent, "latent_format_version_0": torch.tensor([])}
    save_file(tensors, path, {"prompt": PROMPT, "workflow": WORKFLOW})
    return path


def mixture(shift):
    """Two conditions of two pictures, on a model whose latents are scaled, and shifted."""
    model = tk.GaussianMixture(normal(2, 2, 4, 8, 6, seed=5), 0.5)
    model.latent_scale, model.latent_shift = 0.25, shift
    return model


@pytest.fixture(scope="module")
def run():
    return tk.unsample(mixture(0.5), normal(2, 4, 8, 6), prompt=[0, 1], steps=3, progress=False)


def texts(path):
    with safetensors.safe_open(path, framework="pt") as opened:
        return opened.metadata()


# --- reading ----


def test_a_file_of_theirs_is_read_as_it_is(theirs, latent):
    got = load_latent(theirs)
    assert got.dims == ("sample", "channel", "y", "x") and got.dtype == np.float32
    np.testing.assert_array_equal(got.values, latent.numpy())
    assert got.attrs["latent_space"] == "vae"
    assert got.attrs["metadata"] == {"prompt": PROMPT, "workflow": WORKFLOW}
    assert json.loads(got.attrs["metadata"]["workflow"])["nodes"][0]["type"] == "KSampler"
    assert "run" not in got.attrs and "sigma" not in got.coords


def test_an_older_file_is_scaled_as_ComfyUI_scales_it(tmp_path, latent):
    save_file({"latent_tensor": latent}, tmp_path / "old.latent")
    got = load_latent(tmp_path / "old.latent")
    np.testing.assert_array_equal(got.values, (latent * (1.0 / 0.18215)).numpy())
    assert got.attrs["metadata"] == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floats_are_read_to_float32(tmp_path, latent, dtype):
    save_file(
        {"latent_tensor": latent.to(dtype), "latent_format_version_0": torch.tensor([])},
        tmp_path / "a.latent",
    )
    got = load_latent(str(tmp_path / "a.latent"))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.values, latent.to(dtype).float().numpy())


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_a_model_puts_it_into_its_space(theirs, latent, shift):
    model = mixture(shift)
    got = load_latent(theirs, model)
    assert got.attrs["latent_space"] == "model" and got.dtype == np.float64
    np.testing.assert_array_equal(got.values, (latent.double().numpy() - shift) * 0.25)
    bound = load_latent(theirs, tk.guide(model, 0))
    assert bound.identical(got)
    node = tk.comfy.unsampler(model, steps=3, latent_image=load_latent(theirs))
    rows = tk.unsample(model, got, sigmas=node.sigma.values, inverse="reverse", progress=False)
    np.testing.assert_allclose(tk.in_space(node, "model").latent[0], rows.latent[0], rtol=0, atol=1e-14)


def test_zeros_stay_zeros(tmp_path):
    file = save_latent(np.zeros((1, 4, 8, 6), np.float32), tmp_path / "empty.latent")
    assert (load_latent(file, mixture(0.5)) == 0).all()


def test_nodes_take_it_as_it_is(theirs, latent):
    model, noise = mixture(0.5), normal(3, 2, 4, 8, 6)
    for call in (
        lambda given: tk.comfy.unsampler(model, steps=2, latent_image=given),
        lambda given: tk.comfy.unsampler(model, steps=2, latent_image={"samples": given}),
        lambda given: tk.comfy.batch_unsampler_iterative_mixer(
            model, "euler", "normal", 3, latent_image=given, noise=noise
        ),
        lambda given: tk.ladder(model, given, steps=2, latent_space="vae", progress=False),
    ):
        xr.testing.assert_identical(call(load_latent(theirs)), call(latent))


def test_the_wrong_space_is_refused_with_the_line_to_type(theirs):
    model = mixture(0.5)
    vae, ours = load_latent(theirs), load_latent(theirs, model)
    for call in (
        lambda: tk.unsample(model, vae, steps=2, progress=False),
        lambda: tk.sample(model, vae, steps=2, progress=False),
        lambda: tk.ladder(model, vae, steps=2, progress=False),
    ):
        with pytest.raises(
            ValueError, match=r'model space. Try: tk.comfy.load_latent\("image.latent", model'
        ):
            call()
    for call in (
        lambda: tk.comfy.unsampler(model, steps=2, latent_image=ours),
        lambda: tk.comfy.unsampler(model, steps=2, latent_image={"samples": ours}),
        lambda: tk.ladder(model, ours, steps=2, latent_space="vae", progress=False),
    ):
        with pytest.raises(
            ValueError, match=r'space of the VAE. Try: tk.comfy.load_latent\("image.latent"\)'
        ):
            call()


# --- writing ----


def test_what_we_write_is_what_they_read(tmp_path, latent):
    file = save_latent(latent, tmp_path / "new" / "a.latent")
    assert file == tmp_path / "new" / "a.latent"
    assert [p.name for p in file.parent.iterdir()] == ["a.latent"]
    there = load_file(file)
    assert sorted(there) == ["latent_format_version_0", "latent_tensor"]
    assert there["latent_format_version_0"].shape == (0,)
    assert there["latent_tensor"].dtype == torch.float32 and torch.equal(there["latent_tensor"], latent)
    assert not texts(file)


@pytest.mark.parametrize(
    "kind",
    ["tensor", "grad", "bfloat16", "array", "transposed", "big-endian", "DataArray", "turned", "dict"],
)
def test_whatever_holds_a_latent_is_written(tmp_path, latent, kind):
    array = latent.numpy()
    labelled = xr.DataArray(array, dims=("sample", "channel", "y", "x"))
    given = {
        "tensor": latent,
        "grad": latent.clone().requires_grad_(),
        "bfloat16": latent.bfloat16(),
        "array": array.astype(np.float64),
        "transposed": np.ascontiguousarray(array.swapaxes(2, 3)).swapaxes(2, 3),
        "big-endian": array.astype(">f4"),
        "DataArray": labelled,
        "turned": labelled.transpose("x", "y", "channel", "sample"),
        "dict": {"samples": latent, "noise_mask": None},
    }[kind]
    want = latent.bfloat16().float().numpy() if kind == "bfloat16" else array
    np.testing.assert_array_equal(load_latent(save_latent(given, tmp_path / "a.latent")).values, want)


def test_load_of_save_is_identical(tmp_path, theirs, run):
    once = load_latent(theirs)
    assert load_latent(save_latent(once, tmp_path / "b.latent")).identical(once)
    ours = load_latent(save_latent(run, tmp_path / "c.latent", step=1))
    assert load_latent(save_latent(ours, tmp_path / "d.latent")).identical(ours)
    model = mixture(0.0)  # a shift rounds
    there = load_latent(theirs, model)
    assert load_latent(save_latent(there, tmp_path / "e.latent")).identical(once)
    assert load_latent(save_latent(there, tmp_path / "e.latent", model=model)).identical(once)


@pytest.mark.parametrize("step", [-1, 0, 2])
def test_a_row_of_a_run_goes_over_to_the_space_of_the_VAE(tmp_path, run, step):
    file = save_latent(run, tmp_path / "run.latent", step=step)
    got, row = load_latent(file), run.isel(step=step)
    want = (row.latent.values / 0.25 + 0.5).astype(np.float32)
    np.testing.assert_allclose(got.values, want, rtol=1e-7)
    assert got.attrs["run"] == json.loads(json.dumps(run.attrs)) and got.attrs["run"]["prompt"] == [0, 1]
    for name in ("step", "sigma", "timestep", "alpha", "log_snr"):
        xr.testing.assert_identical(got[name].variable, row[name].variable)
    in_vae = save_latent(tk.in_space(run, "vae"), tmp_path / "vae.latent", step=step)
    np.testing.assert_array_equal(load_latent(in_vae).values, got.values)
    array = save_latent(row.latent, tmp_path / "row.latent", model=mixture(0.5))
    np.testing.assert_array_equal(load_latent(array).values, got.values)
    assert float(load_latent(array).sigma) == float(row.sigma)


def test_a_shift_is_added(tmp_path, latent):
    model = mixture(0.5)
    rows = tk.ladder(model, latent, steps=2, progress=False)
    want = (rows.latent[1].values.astype(np.float64) / 0.25 + 0.5).astype(np.float32)
    np.testing.assert_array_equal(load_latent(save_latent(rows, tmp_path / "a.latent", 1)).values, want)
    back = load_latent(save_latent(rows, tmp_path / "a.latent", 1), model)
    np.testing.assert_allclose(back.values, rows.latent[1].values, rtol=0, atol=1e-6)


def test_the_output_of_a_node_is_written_as_it_is(tmp_path, latent):
    model = mixture(0.5)
    node = tk.comfy.unsampler(model, steps=2, normalize="enable", latent_image=latent)
    got = load_latent(save_latent(node, tmp_path / "a.latent"))
    np.testing.assert_array_equal(got.values, node.latent[-1].values.astype(np.float32))
    assert got.attrs["run"]["quirks"] == node.attrs["quirks"]
    pipe, _ = tk.comfy.easy_unsampler(
        steps=2, optional_model=model, optional_positive=0, optional_negative=1, optional_latent=latent
    )
    file = save_latent(pipe["samples"], tmp_path / "a.latent")
    np.testing.assert_array_equal(load_latent(file).values, pipe["samples"]["samples"].numpy())


def test_metadata_is_text_or_JSON_and_keeps_what_the_file_had(tmp_path, theirs, run):
    loaded = load_latent(theirs)
    graph = {"nodes": []}
    file = save_latent(loaded, tmp_path / "a.latent", metadata={"workflow": graph, "note": "mine"})
    assert texts(file) == {"prompt": PROMPT, "workflow": json.dumps(graph), "note": "mine"}
    told = run.assign_attrs(metadata=loaded.attrs["metadata"])
    file = save_latent(told, tmp_path / "b.latent")
    assert sorted(texts(file)) == ["prompt", "toolkit", "workflow"] and texts(file)["workflow"] == WORKFLOW
    got = load_latent(file)
    assert got.attrs["metadata"] == loaded.attrs["metadata"]
    assert got.attrs["run"] == json.loads(json.dumps(run.attrs))


def test_an_entry_of_this_name_that_is_not_ours_is_kept(tmp_path, latent):
    for text in ("no JSON", '{"run": 1, "rung": {}}', "[]"):
        save_file({"latent_tensor": latent}, tmp_path / "a.latent", {"toolkit": text})
        got = load_latent(tmp_path / "a.latent")
        assert got.attrs["metadata"] == {"toolkit": text} and "run" not in got.attrs


def test_what_the_format_has_no_room_for_is_said(tmp_path, latent):
    given = {"samples": latent, "noise_mask": torch.ones(8, 6), "batch_index": [0, 1]}
    with pytest.warns(UserWarning, match="noise_mask, batch_index: left out"):
        save_latent(given, tmp_path / "a.latent")


# --- what is refused ----


def test_files_that_are_no_latents(tmp_path, theirs, latent):
    def refuses(path, match, kind=ValueError):
        with pytest.raises(kind, match=match) as found:
            load_latent(path)
        assert "Try: tk.comfy.load_latent(" in str(found.value)

    refuses(tmp_path / "none.latent", "no such file", FileNotFoundError)
    refuses(theirs.with_suffix(""), r"no such file.*ComfyUI_00001_.latent", FileNotFoundError)
    refuses(tmp_path, "no such file", FileNotFoundError)
    refuses(3, "the path of a .latent file", TypeError)
    bad = tmp_path / "bad.latent"
    whole = theirs.read_bytes()
    for part in (b"", b"hello", b"a picture, or a page of text", whole[:40], whole[:-5], whole + b"more"):
        bad.write_bytes(part)
        refuses(bad, "not a safetensors file, or one that was cut off")
    save_file({"model.weight": latent, "model.bias": latent.clone()}, bad)
    refuses(bad, r"without latent_tensor; it holds model.bias, model.weight\.")
    save_file({}, bad)
    refuses(bad, "it holds nothing")
    save_file({"latent_tensor": latent.int()}, bad)
    refuses(bad, "dtype I32")
    save_file({"latent_tensor": latent[None]}, bad)
    refuses(bad, r"\(1, 2, 4, 8, 6\): a latent of a video")
    save_file({"latent_tensor": latent[0]}, bad)
    refuses(bad, r"\(4, 8, 6\): not a latent of images")
    save_file({"latent_tensor": latent[:0]}, bad)
    refuses(bad, r"\(0, 4, 8, 6\)")
    with pytest.raises(ValueError, match=r"has 3 channels, and the latent in .* 4"):
        load_latent(theirs, tk.GaussianMixture(normal(1, 3, 8, 6), 0.5))
    with pytest.raises(TypeError, match="model="):
        load_latent(theirs, "sd15")


def broken(latent, where, value):
    out = latent.clone().double()
    out[where] = value
    return out


@pytest.mark.parametrize(
    "given, match, kind",
    [
        (lambda x, run: broken(x, (1, 0, 0, 0), torch.nan), "NaN or Inf.: finite", ValueError),
        (lambda x, run: broken(x, (1, 0, 0, 0), 1e39), "NaN or Inf.: finite", ValueError),
        (lambda x, run: run.where(run.step != 3), "NaN or Inf in row 3", ValueError),
        (lambda x, run: x[None], r"\(1, 2, 4, 8, 6\).*video", ValueError),
        (lambda x, run: x[0], r"\(4, 8, 6\)", ValueError),
        (lambda x, run: x[:, :, :0], r"\(2, 4, 0, 6\)", ValueError),
        (lambda x, run: x.int(), "int32", ValueError),
        (lambda x, run: run.latent, "dims sample, channel, y, x.*step=-1", ValueError),
        (lambda x, run: run.drop_vars("latent"), "variable `latent`", ValueError),
        (lambda x, run: run.assign_attrs(latent_space="there"), "latent_space", ValueError),
        (lambda x, run: tk.normalized(run, "global"), "normalised states are in no space", ValueError),
        (lambda x, run: {"noise_mask": x}, "key samples", ValueError),
        (lambda x, run: x.tolist(), "a run, a DataArray.*encode", TypeError),
        (lambda x, run: None, "a run, a DataArray", TypeError),
        (lambda x, run: Image.new("RGB", (64, 64)), "model.encode", TypeError),
    ],
)
def test_latents_that_no_file_can_have(tmp_path, latent, run, given, match, kind):
    file = save_latent(latent, tmp_path / "a.latent")
    before = file.read_bytes()
    with pytest.raises(kind, match=match):
        save_latent(given(latent, run), file)
    assert file.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_arguments_that_are_refused(tmp_path, latent, run, monkeypatch):
    with pytest.raises(ValueError, match=r'suffix .latent only. Try: .*"a.latent"'):
        save_latent(latent, tmp_path / "a.safetensors")
    with pytest.raises(TypeError, match="the path of a file"):
        save_latent(latent, None)
    for step in (4, -5):
        with pytest.raises(ValueError, match=r"this run has 4 rows. Try: .*step=3"):
            save_latent(run, tmp_path / "a.latent", step=step)
    with pytest.raises(TypeError, match="the number of a row"):
        save_latent(run, tmp_path / "a.latent", step=1.0)
    for metadata in ("text", {1: "text"}, {"a": {1, 2}}):
        with pytest.raises(TypeError, match="metadata="):
            save_latent(latent, tmp_path / "a.latent", metadata=metadata)
    with pytest.raises(ValueError, match="the run's own attributes"):
        save_latent(latent, tmp_path / "a.latent", metadata={"toolkit": "mine"})
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written"):
        save_latent(latent, tmp_path / "file" / "a.latent")
    file = save_latent(latent, tmp_path / "a.latent")
    before = file.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)  # the last thing before the new file is there
    with pytest.raises(OSError, match="no space left"):
        save_latent(latent + 1, file)
    assert file.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == ["a.latent", "file"]
