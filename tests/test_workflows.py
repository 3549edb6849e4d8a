"""Workflows of ComfyUI, read: in both formats, from pictures, with all that their files can hold."""

import ast
import json
import random
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch
import xarray as xr
from conftest import DATA
from PIL import Image, PngImagePlugin

import toolkit as tk
from toolkit.comfy import nodes

FILES = DATA / "workflows"
ALL = sorted(file.name for file in FILES.glob("*.json"))


def tree(name):
    return json.loads((FILES / name).read_text(encoding="utf-8"))


def read(name):
    return tk.comfy.read_workflow(FILES / name)


def at(workflow, node):
    """The call of a node, loads left out."""
    (found,) = [call for call in workflow if call.node == node and call.function != "tk.load"]
    return found


def shown(call):
    """The parameters of a call, variables as their names."""
    return {name: repr(value) if not isinstance(value, (str, int, float)) else value
            for name, value in call.parameters.items()}  # fmt: skip


def prompt(**changes):
    """A KSampler from noise, in the server's format; `changes` are inputs of node 5."""
    links = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    sampler = links | {"seed": 1, "steps": 4, "cfg": 2.0, "sampler_name": "euler", "scheduler": "karras"}
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "digits"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "3"}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "7"}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 32, "height": 32, "batch_size": 1}},
        "5": {"class_type": "KSampler", "inputs": sampler | {"denoise": 1.0} | changes},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
    }


def drawn(kind, values, inputs=(), **more):
    """A workflow in the interface's format whose node 9 is of that type, its latent from an empty one."""
    slots = [("model", "MODEL", 1), ("positive", "CONDITIONING", 2), ("latent_image", "LATENT", 3), *inputs]
    node = {"id": 9, "type": kind, "mode": 0, "outputs": [{"name": "LATENT", "type": "LATENT"}],
            "inputs": [{"name": n, "type": t, "link": k} for n, t, k in slots]}  # fmt: skip
    return {
        "nodes": [
            {"id": 1, "type": "CheckpointLoaderSimple", "widgets_values": ["digits"],
             "outputs": [{"type": t} for t in ("MODEL", "CLIP", "VAE")]},
            {"id": 2, "type": "CLIPTextEncode", "widgets_values": ["3"],
             "outputs": [{"type": "CONDITIONING"}]},
            {"id": 3, "type": "EmptyLatentImage", "widgets_values": [32, 32, 1],
             "outputs": [{"type": "LATENT"}]},
            {**node, "widgets_values": values, **more},
        ],
        "links": [[1, 1, 0, 9, 0, "MODEL"], [2, 2, 0, 9, 1, "CONDITIONING"], [3, 3, 0, 9, 2, "LATENT"]],
    }  # fmt: skip


def assignments(body):
    """What is assigned to plain names."""
    lines = [line for line in body if isinstance(line, ast.Assign)]
    return {line.targets[0].id: line.value for line in lines if isinstance(line.targets[0], ast.Name)}


@pytest.fixture(scope="module")
def digit():
    return tk.assets.digits()[0][0]


# --- what comes out -------------------------------------------------------------------------------


def test_an_unsample_workflow_becomes_two_calls():
    workflow = read("unsample.json")
    up, down = at(workflow, "27"), at(workflow, "12")
    assert (up.function, up.type, up.title) == ("tk.comfy.unsampler", "BNK_Unsampler", "up")
    assert up.targets == ("unsampled",) and up.needs == ()
    assert shown(up) == {
        "model": "model", "steps": "steps", "end_at_step": 0, "cfg": "cfg", "sampler_name": "sampler_name",
        "scheduler": "scheduler", "positive": "prompt", "negative": "negative_prompt",
        "latent_image": "latent",
    }  # fmt: skip
    assert down.parameters["add_noise"] == "disable" and down.parameters["end_at_step"] == 6
    assert repr(down.parameters["latent_image"]) == "tk.comfy.nodes.output(unsampled, latent=latent)"
    assert workflow.parameters() == {
        "model_id": "digits", "image_path": "digit.png", "prompt": "3", "negative_prompt": "7", "seed": 5,
        "steps": 6, "cfg": 1, "sampler_name": "dpmpp_2m", "scheduler": "karras",
    }  # fmt: skip
    assert workflow.untranslated == () and workflow.remarks == () and workflow.gaps == {}


def test_both_formats_give_the_same_code():
    ui, api = read("unsample.json"), read("unsample_api.json")
    assert ui.to_code().splitlines()[1:] == api.to_code().splitlines()[1:]
    assert ui.parameters() == api.parameters()


def test_the_translated_run_is_the_run_by_hand(digits_model, digit):
    made = read("unsample.json").run(digits_model, image_path=digit)
    image, _ = nodes.load_image(digit)
    latent = nodes.vae_encode(digits_model, image)
    asked = {
        "steps": 6,
        "cfg": 1,
        "sampler_name": "dpmpp_2m",
        "scheduler": "karras",
        "positive": "3",
        "negative": "7",
    }
    up = tk.comfy.unsampler(digits_model, latent_image=latent, **asked)
    down = tk.comfy.ksampler_advanced(
        digits_model, "disable", 5, latent_image=nodes.output(up), end_at_step=6, **asked
    )
    xr.testing.assert_identical(made["unsampled"], up)
    xr.testing.assert_identical(made["sampled"], down)
    assert np.array_equal(made["picture"], nodes.vae_decode(digits_model, down))
    other = read("unsample.json").run(digits_model, image_path=digit, steps=3)
    assert other["unsampled"].sizes["step"] == 4


def test_the_translated_run_on_stable_diffusion():
    model, workflow = tk.load(tiny.stable_diffusion()), read("unsample.json")
    image = np.random.default_rng(0).random((1, 64, 64, 3), np.float32)
    made = workflow.run(model, image_path=image, prompt="a cat", negative_prompt="a dog")
    asked = {"steps": 6, "cfg": 1, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    latent = model.encode(image) / model.latent_scale
    up = tk.comfy.unsampler(model, positive="a cat", negative="a dog", latent_image=latent, **asked)
    xr.testing.assert_identical(made["unsampled"], up)
    assert made["sampled"].attrs["node"] == "KSamplerAdvanced" and made["picture"].shape == image.shape


@pytest.mark.parametrize("name", ALL)
def test_the_code_runs_as_it_is(name, tmp_path, monkeypatch, digit):
    workflow = read(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clipspace").mkdir()
    picture = np.full((32, 32, 4), 255, np.uint8)
    picture[..., :3] = 255 * np.asarray(digit)[..., None]
    picture[:, 16:, 3] = 0  # a mask, its right half
    Image.fromarray(picture).save(tmp_path / "digit.png")
    Image.fromarray(picture).save(tmp_path / "clipspace" / "left.png")
    known, code = {}, workflow.to_code().replace("(3:1.2)", "3").replace(", guidance=guidance", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # RegionalSamplerAdvanced says its quirks
        exec(compile(code, name, "exec"), known)
    for call in workflow:
        results = [known.get(target) for target in call.targets if target != "_"]
        assert all(result is not None for result in results) != bool(call.needs)
    runs = [value for value in known.values() if isinstance(value, xr.Dataset)]
    assert runs and all(np.isfinite(run.latent.values).all() for run in runs)
    assert set(workflow.parameters()) <= set(known)


@pytest.mark.parametrize("name", ALL)
def test_no_node_is_dropped(name):
    workflow, raw = read(name), tree(name)
    ids = {str(node["id"]) for node in raw["nodes"]} if "nodes" in raw else set(raw)
    told = {one.node for part in (workflow.calls, workflow.untranslated, workflow.aside) for one in part}
    assert ids <= told
    for entry in (*workflow.untranslated, *workflow.remarks, *workflow.aside):
        assert entry.why and entry.type


@pytest.mark.parametrize("name", ALL)
def test_the_code_is_tidy(name):
    workflow = read(name)
    code = workflow.to_code()
    lines = code.splitlines()
    assert max(map(len, lines)) <= 110 and not any(line != line.rstrip() for line in lines)
    ruff = [sys.executable, "-m", "ruff", "format", "--diff", "--line-length", "110", "-"]
    done = subprocess.run(ruff, input=code, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "tk.load" not in workflow.to_code(load=False) and "model_id" in code
    assigned = assignments(ast.parse(workflow.to_code(parameters=False)).body)
    assert not set(assigned) & set(workflow.parameters())


@pytest.mark.parametrize("name", ALL)
def test_parameters_are_plain_json(name):
    parameters = read(name).parameters()
    assert json.loads(json.dumps(parameters, allow_nan=False)) == parameters
    assert all(key.isidentifier() for key in parameters) and parameters["model_id"] == "digits"


def test_regions_with_pipes():
    workflow = read("regional.json")
    call = at(workflow, "2")
    assert call.function == "tk.regional"
    (region,) = call.parameters["regions"]
    assert region.function == "tk.Region" and repr(region.parameters["prompt"]) == "prompt_10"
    assert repr(region.parameters["negative"]) == "negative_prompt" and region.parameters["grow"] == 0.312
    assert (
        workflow.parameters()["prompt_10"] == "(3:1.2)"
        and workflow.parameters()["mask_path"] == "clipspace/left.png"
    )
    whys = [entry.why for entry in workflow.remarks]
    assert any("not the node's" in why and "schedule of the base" in why for why in whys)
    assert any("dpm_fast" in why for why in whys) and any("'(3:1.2)'" in why for why in whys)


def test_the_advanced_regional_sampler(digits_model):
    workflow = read("regional_advanced_api.json")
    with pytest.warns(UserWarning, match="RegionalSamplerAdvanced"):
        made = workflow.run(digits_model)["regional"]
    base = tk.comfy.KSamplerAdvanced("0", "1", 2.0, "euler", "karras")
    own = tk.comfy.KSamplerAdvanced("8", "1", 3.0, "heun", "karras")
    region = tk.comfy.RegionalPrompt(torch.ones(1, 32, 32), own, 3, 0.25, "slerp")
    asked = (True, 11, 4, 0, 4, 2, False, False, torch.zeros(1, 4, 8, 8), base, [region], "DISABLE")
    with pytest.warns(UserWarning, match="RegionalSamplerAdvanced"):
        by_hand = tk.comfy.regional_sampler_advanced(digits_model, *asked)
    xr.testing.assert_identical(made, by_hand)


def test_what_others_made_is_listed_with_what_it_holds():
    workflow = read("mixer.json")
    lora, mixing = workflow.untranslated
    assert (lora.node, lora.type, lora.title) == ("28", "LoraLoader", "fast")
    assert lora.holds == {"lora_name": "few_steps.safetensors", "strength_model": 0.5, "strength_clip": 1}
    assert lora.calls == ("9", "30", "32") and "without this LoRA" in lora.why
    assert mixing.calls == ("32",) and mixing.holds["value 5"] == "sgm_uniform"
    assert list(workflow.gaps) == ["latent_29"] and "node 29" in workflow.gaps["latent_29"]
    assert at(workflow, "32").needs == ("latent_29",) and at(workflow, "33").needs == ("latent_29",)
    code = workflow.to_code()
    assert "if latent_29 is not None:\n    latent_31 = " in code and "few_steps.safetensors" in code
    assert at(workflow, "30").function == "tk.comfy.batch_unsampler_iterative_mixer"


def test_a_gap_is_filled(digits_model):
    workflow = read("mixer.json")
    made = workflow.run(digits_model, latent_29={"samples": torch.zeros(5, 4, 8, 8)}, steps_32=2)
    assert made["sampled_32"].sizes["step"] == 3 and made["latent_31"]["batch_index"] == [4]
    assert "sampled_32" not in workflow.run(digits_model)
    with pytest.raises(ValueError, match="steps_32"):
        workflow.run(digits_model, steps_23=3)


def test_a_subgraph_is_opened():
    workflow = read("subgraph.json")
    call = at(workflow, "5:31")
    assert call.function == "tk.comfy.ksampler"
    # the prompt and the seed are those of the outside, the rest that of the inside
    assert (
        workflow.parameters() | {"prompt": "9", "seed": 77, "negative_prompt": "2", "cfg": 2.5}
        == workflow.parameters()
    )
    raw = tree("subgraph.json")
    raw["nodes"][1]["widgets_values"] = ["8"]  # files without the values of inner widgets
    assert tk.comfy.read_workflow(raw).parameters()["prompt"] == "8"
    assert tk.comfy.read_workflow(raw).parameters()["seed"] == 0
    raw["nodes"][1]["widgets_values"] = ["8", 5]  # neither
    again = tk.comfy.read_workflow(raw)
    assert again.parameters()["prompt"] == "1" and "2 values" in again.untranslated[0].why
    raw["definitions"]["subgraphs"][0]["nodes"].append({"id": 99, "type": raw["nodes"][1]["type"]})
    assert any("within itself" in entry.why for entry in tk.comfy.read_workflow(raw).untranslated)


def test_a_group_is_opened():
    raw = tree("unsample.json")
    inner = [node for node in raw["nodes"] if node["id"] in (20, 27)]
    group = {
        "nodes": [json.loads(json.dumps(node)) for node in inner],
        "links": [[0, 0, 1, 3, 20, "LATENT"]],
        "external": [],
    }
    for node in group["nodes"]:
        for slot in node["inputs"]:
            slot["link"] = None
    raw["nodes"] = [node for node in raw["nodes"] if node["id"] not in (20, 27)]
    kinds = [("pixels", "IMAGE", 3), ("vae", "VAE", 5), ("model", "MODEL", 8)]
    kinds += [("positive", "CONDITIONING", 9), ("negative", "CONDITIONING", 10)]
    raw["nodes"].append({"id": 50, "type": "workflow>up", "widgets_values": [4, 0, 1, "euler", "simple"],
                         "inputs": [{"name": n, "type": t, "link": k} for n, t, k in kinds],
                         "outputs": [{"name": "LATENT", "type": "LATENT", "links": [15]}]})  # fmt: skip
    raw["links"] = [[k, 50 if o == 27 else o, *rest] for k, o, *rest in raw["links"]]
    raw["extra"] = {"groupNodes": {"up": group}}
    workflow = tk.comfy.read_workflow(raw)
    up = at(workflow, "50:1")
    assert up.function == "tk.comfy.unsampler" and workflow.parameters()["steps_50_1"] == 4
    assert (
        repr(up.parameters["latent_image"]) == "latent"
        and repr(up.parameters["negative"]) == "negative_prompt"
    )
    assert "unsampled" in repr(at(workflow, "12").parameters["latent_image"])


def test_flux_as_it_is_drawn():
    workflow = read("flux_api.json")
    call = at(workflow, "13")
    assert call.function == "tk.comfy.sampler_custom" and call.parameters["cfg"] == 1.0
    assert "negative" not in call.parameters and repr(call.parameters["positive"]) == "prompt"
    assert repr(call.parameters["sigmas"]) == "sigmas" and repr(call.parameters["noise_seed"]) == "seed"
    told = {entry.node: entry.why for entry in workflow.untranslated}
    assert set(told) == {"10", "11"} and "text encoders" in told["11"] and "autoencoder" in told["10"]
    assert workflow.parameters()["guidance"] == 3.5 and workflow.remarks == ()
    assert "model = tk.load(model_id, guidance=guidance)" in workflow.to_code()


def test_two_checkpoints():
    given = prompt(end=1)
    given["20"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "refiner.safetensors"}}
    given["21"] = {"class_type": "CLIPTextEncodeSDXL", "inputs": {
        "clip": ["20", 1], "width": 1024, "height": 1024, "crop_w": 0, "crop_h": 0, "target_width": 512,
        "target_height": 512, "text_g": "a", "text_l": "b"}}  # fmt: skip
    given["22"] = {"class_type": "KSamplerAdvanced", "inputs": {
        "model": ["20", 0], "positive": ["21", 0], "latent_image": ["5", 0], "add_noise": "disable",
        "start_at_step": 3, "steps": 4}}  # fmt: skip
    workflow = tk.comfy.read_workflow(given)
    assert workflow.parameters()["model_id_1"] == "digits"
    assert workflow.parameters()["model_id_20"] == "refiner.safetensors"
    assert repr(at(workflow, "22").parameters["model"]) == "model_20"
    assert repr(at(workflow, "6").parameters["model"]) == "model_1"
    assert workflow.parameters()["prompt_21"] == "a"
    whys = [entry.why for entry in workflow.remarks]
    assert any("text_g" in why for why in whys) and any("[1024, 1024]" in why for why in whys)
    given["20"]["inputs"]["ckpt_name"] = "digits"  # the same one is loaded once
    assert [call.function for call in tk.comfy.read_workflow(given)].count("tk.load") == 1


def test_the_order_of_the_file_does_not_matter():
    given = prompt()
    turned = dict(reversed([(key, given[key]) for key in ("1", "2", "3", "5", "6", "4")]))
    assert next(iter(turned)) == "4"  # what asks for the model comes before it is loaded
    workflow, other = tk.comfy.read_workflow(given), tk.comfy.read_workflow(turned)
    assert other.parameters() == workflow.parameters() and sorted(map(repr, other)) == sorted(
        map(repr, workflow)
    )
    assert other.calls[0].function == "tk.load"
    given["1"] = {"class_type": "SomeLoader", "inputs": {"name": "a.gguf"}}
    workflow = tk.comfy.read_workflow(given)
    assert workflow.parameters()["model_id"] is None and "no checkpoint is named" in workflow.remarks[0].why
    assert workflow.untranslated[0].holds == {"name": "a.gguf"}


def test_easy_use_goes_by_its_pipe():
    workflow = read("easy_api.json")
    call = at(workflow, "4")
    assert call.function == "tk.comfy.easy_unsampler"
    assert [repr(call.parameters[f"optional_{n}"]) for n in ("model", "positive", "negative", "latent")] == [
        "model", "prompt", "negative_prompt", "latent"]  # fmt: skip
    assert "unsampled" in repr(at(workflow, "6").parameters["latent_image"])
    raw = tree("easy_api.json")
    raw["1"]["inputs"] = {"value 1": 3}
    raw["4"]["inputs"] |= {"model": ["8", 0], "pipe": None}
    raw["8"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "digits"}}
    workflow = tk.comfy.read_workflow(raw)
    assert (
        "changed often" in workflow.untranslated[0].why
        and at(workflow, "4").function == "tk.comfy.easy_unsampler"
    )


def test_bypassed_muted_and_primitive_nodes():
    workflow = read("inpaint.json")
    told = {entry.node: entry.why for entry in workflow.aside}
    assert "bypassed" in told["2"] and told["11"] == "muted"
    assert workflow.parameters()["prompt"] == "6" and workflow.parameters()["seed"] == 123
    assert workflow.untranslated == ()
    raw = tree("inpaint.json")
    for node in raw["nodes"]:
        if node["id"] in (3, 6):
            node["mode"] = 2
    workflow = tk.comfy.read_workflow(raw)
    assert set(workflow.gaps) == {"positive_8", "samples_7"}
    assert at(workflow, "8").needs == ("positive_8", "samples_7")
    assert "muted" in workflow.gaps["positive_8"]


def test_set_and_get_nodes():
    raw = drawn("KSampler", [1, "fixed", 4, 2, "euler", "simple", 1])
    raw["nodes"] += [
        {"id": 20, "type": "SetNode", "widgets_values": ["m"], "outputs": [{"type": "*"}],
         "inputs": [{"name": "MODEL", "type": "MODEL", "link": 8}]},
        {"id": 21, "type": "GetNode", "widgets_values": ["m"], "outputs": [{"type": "MODEL"}]},
    ]  # fmt: skip
    raw["links"][0] = [1, 21, 0, 9, 0, "MODEL"]
    raw["links"].append([8, 1, 0, 20, 0, "MODEL"])
    workflow = tk.comfy.read_workflow(raw)
    assert repr(at(workflow, "9").parameters["model"]) == "model" and workflow.gaps == {}
    raw["nodes"][-1]["widgets_values"] = ["other"]
    assert "no SetNode" in next(iter(tk.comfy.read_workflow(raw).gaps.values()))


# --- values without names -------------------------------------------------------------------------

UNSAMPLER = {"steps": 9, "end_at_step": 2, "cfg": 1.5, "sampler_name": "euler", "scheduler": "karras"}
BATCH = {"sampler_name": "euler", "scheduler": "karras", "steps": 9, "start_at_step": 1, "end_at_step": 8}
KSAMPLER = {"seed": 1, "steps": 9, "cfg": 2, "sampler_name": "euler", "scheduler": "karras", "denoise": 0.5}
KNOWN = [
    ("BNK_Unsampler", [9, 2, 1.5, "euler", "karras"], UNSAMPLER),
    ("BNK_Unsampler", [9, 2, 1.5, "euler", "karras", "enable"], {**UNSAMPLER, "normalize": "enable"}),
    ("Unsampler", [9, 2, 1.5, "euler", "karras"], UNSAMPLER),
    ("BNK_Unsampler", {**UNSAMPLER, "normalize": "disable"}, {**UNSAMPLER, "normalize": "disable"}),
    ("Batch Unsampler", ["euler", "karras", 9, 1, 8], BATCH),
    ("Batch Unsampler", ["euler", "karras", 9, 1, 8, True], {**BATCH, "normalize": True}),
    ("Batch Unsampler", [9, 2, 3, 1.5, "euler", "karras", "enable"],
     {"step_increment": 3, "normalize": "enable", **UNSAMPLER}),
    ("KSampler", [1, "fixed", 9, 2, "euler", "karras", 0.5], KSAMPLER),
    ("KSampler", [1, True, 9, 2, "euler", "karras", 0.5], KSAMPLER),
    ("KSampler", [1, 9, 2, "euler", "karras", 0.5], KSAMPLER),
    ("KSamplerAdvanced", ["enable", 1, "randomize", 9, 2, "euler", "karras", 1, 8, "enable"],
     {"add_noise": "enable", "noise_seed": 1, "steps": 9, "cfg": 2, "sampler_name": "euler",
      "scheduler": "karras", "start_at_step": 1, "end_at_step": 8, "return_with_leftover_noise": "enable"}),
]  # fmt: skip


REGIONAL = [42, 0, "ignore", 15, 2, 1.0, 10, True, "ratio between", "AUTO", 0.3]


@pytest.mark.parametrize("values", [REGIONAL, [42, "fixed", *REGIONAL[1:]], [42, 15, 1.0, 10], REGIONAL[:8]])
def test_lists_of_the_regional_sampler(values):
    raw = tree("regional.json")
    next(node for node in raw["nodes"] if node["id"] == 2)["widgets_values"] = values
    workflow = tk.comfy.read_workflow(raw)
    assert (workflow.parameters()["seed"], workflow.parameters()["steps"]) == (42, 15)
    assert at(workflow, "2").parameters["regions"][0].parameters["grow"] == 0.625


@pytest.mark.parametrize("kind, values, wanted", KNOWN)
def test_values_by_place(kind, values, wanted):
    workflow = tk.comfy.read_workflow(drawn(kind, values))
    call, parameters = at(workflow, "9"), workflow.parameters()
    got = {name: parameters.get(repr(value), value) for name, value in call.parameters.items()}
    assert {name: got[name] for name in wanted} == wanted
    assert set(got) - set(wanted) <= {"model", "positive", "latent_image"}
    demofusion = "step_increment" in wanted
    assert (call.function == "tk.comfy.batch_unsampler_demofusion") == demofusion


def test_names_of_other_packs_are_said():
    workflow = tk.comfy.read_workflow(prompt(sampler_name="res_2s", scheduler="bong"))
    sampler, scheduler = (entry.why for entry in workflow.remarks)
    assert "sampler_name 'res_2s' is not here" in sampler and "scheduler 'bong' is not here" in scheduler
    assert workflow.parameters()["sampler_name"] == "res_2s"


def test_an_input_wins_over_its_widget():
    raw = drawn("BNK_Unsampler", [9, 2, 1.5, "euler", "karras"], [("steps", "INT", 4)])
    raw["nodes"].append(
        {"id": 5, "type": "PrimitiveInt", "widgets_values": [12, "fixed"], "outputs": [{"type": "INT"}]}
    )
    raw["links"].append([4, 5, 0, 9, 3, "INT"])
    assert tk.comfy.read_workflow(raw).parameters()["steps"] == 12


@pytest.mark.parametrize(
    "kind, values",
    [
        ("BNK_Unsampler", [9, 2, 1.5]),
        ("BNK_Unsampler", [9, 2, 1.5, "euler", "karras", "enable", 7]),
        ("BNK_Unsampler", ["euler", "karras", 9, 2, 1.5]),
        ("BNK_Unsampler", [9, 2, float("nan"), "euler", "karras"]),
        ("KSampler", [1, "fixed", 9, 2, "euler", "karras"]),
        ("RegionalSamplerAdvanced", [True, 1]),
    ],
)
def test_values_of_no_known_version_are_refused_by_name(kind, values):
    with pytest.raises(ValueError, match=f"{kind} .node 9.: its {len(values)} values") as caught:
        tk.comfy.read_workflow(drawn(kind, values))
    assert "known: " in str(caught.value) and "Try: " in str(caught.value)
    raw = drawn("KSampler", [1, "fixed", 9, 2, "euler", "karras", 1])
    raw["nodes"].append({"id": 40, "type": kind, "widgets_values": values, "inputs": []})
    (entry,) = tk.comfy.read_workflow(raw).untranslated  # beside others that are read
    assert entry.node == "40" and entry.type == kind and entry.holds["value 1"] == values[0]


def test_the_first_and_the_newest_regional_sampler():
    raw = tree("regional.json")
    node = next(node for node in raw["nodes"] if node["id"] == 2)
    node["widgets_values"] = [7, "fixed", 3, "increment", 8, 2, 0.5, 16, True, "ratio between", "AUTO", 0.3]
    workflow = tk.comfy.read_workflow(raw)
    (region,) = at(workflow, "2").parameters["regions"]
    assert region.parameters["strength"] == 0.75 and region.parameters["grow"] == 1.0
    assert workflow.parameters()["steps"] == 8 and workflow.parameters()["denoise"] == 0.5
    assert any("second seed (increment)" in entry.why for entry in workflow.remarks)


# --- where it lies --------------------------------------------------------------------------------


def png(path, **chunks):
    info = PngImagePlugin.PngInfo()
    for k, (name, text) in enumerate(chunks.items()):
        if k == 0:
            info.add_text(name, text, zip=True)  # zTXt
        else:
            info.add_itxt(name, text)
    Image.new("RGB", (4, 4)).save(path, pnginfo=info)
    return path


def test_a_picture_carries_it(tmp_path):
    ui, api = (json.dumps(tree(name), ensure_ascii=False) for name in ("unsample.json", "unsample_api.json"))
    want = read("unsample.json").to_code().splitlines()[1:]
    both = tk.comfy.read_workflow(png(tmp_path / "a.png", prompt=api, workflow=ui))
    assert both.name == "a.png" and both.to_code().splitlines()[1:] == want
    assert (
        tk.comfy.read_workflow(str(png(tmp_path / "b.png", workflow=ui))).to_code().splitlines()[1:] == want
    )
    nan = api.replace('["0f"]', "[NaN]")  # as the server writes it
    assert tk.comfy.read_workflow(png(tmp_path / "c.png", prompt=nan)).parameters() == both.parameters()
    exif = Image.Exif()
    exif[271], exif[272] = f"workflow:{ui}", f"prompt:{api}"
    Image.new("RGB", (4, 4)).save(tmp_path / "d.webp", exif=exif)
    assert tk.comfy.read_workflow(tmp_path / "d.webp").to_code().splitlines()[1:] == want


def test_wrapped_and_parsed():
    ui, api = tree("unsample.json"), tree("unsample_api.json")
    want = read("unsample.json").parameters()
    for given in (api, {"prompt": api}, {"prompt": json.dumps(api), "workflow": ui}, {"workflow": ui},
                  {"client_id": "x", "extra_data": {"extra_pnginfo": {"workflow": ui}}}):  # fmt: skip
        assert tk.comfy.read_workflow(given).parameters() == want
    api["27"].pop("_meta")
    assert at(tk.comfy.read_workflow({"prompt": api, "workflow": ui}), "27").title == "up"


def test_what_is_no_workflow(tmp_path):
    def raises(content, *said, name="a.json", kind=ValueError):
        file = tmp_path / name
        if content is not None:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(kind) as caught:
            tk.comfy.read_workflow(file)
        assert all(text in str(caught.value) for text in (*said, "Try: ", name)), caught.value

    text = (FILES / "unsample.json").read_text()
    raises(None, "no such file", name="gone.json", kind=FileNotFoundError)
    raises(text[: len(text) // 2], "was cut off")
    raises(text.replace('"links": [', '"links": [,', 1), "is damaged")
    raises("", "an empty file")
    raises(b"\xff\xfe\x00\x01", "neither JSON")
    raises('{"a": 1, "b": 2}', "no workflow of ComfyUI", "['a', 'b']")
    raises("[1, 2]", "no workflow of ComfyUI", "list")
    raises("[" * 200_000, "nested too deep")
    raises('{"nodes": [], "links": []}', "its nodes are none")
    raises('{"nodes": [{"id": 1, "type": "LoadAudio"}]}', "no sampler that this package knows", "LoadAudio")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    raises(None, "carries no workflow", name="b.png")
    png(tmp_path / "c.png", parameters="a cat\nSteps: 20")
    raises(None, "AUTOMATIC1111", name="c.png")
    png(tmp_path / "d.png", prompt='{"1": {"class_type": ')
    raises(None, "chunk `prompt`", "was cut off", name="d.png")
    raises((tmp_path / "b.png").read_bytes()[:40], "cannot be read", name="e.png")
    with pytest.raises(ValueError, match="a folder"):
        tk.comfy.read_workflow(tmp_path)
    with pytest.raises(TypeError, match="a path, or a parsed workflow"):
        tk.comfy.read_workflow(3)


# --- hostile --------------------------------------------------------------------------------------

TEXTS = ['"""', "'''", "a\nb", "\\", "'\"\\\n", "{x}", "\u2028 \x00 \x0c", "日本語 🙂", "x" * 500, " " * 300,
         "a b " * 90, "'); import os; os.abort() #", "\ud800", "\r\n# not a comment"]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_texts_stay_texts(text):
    given = prompt()
    given["2"]["inputs"]["text"] = given["1"]["inputs"]["ckpt_name"] = text
    given["5"]["_meta"] = {"title": text}
    given["7"] = {"class_type": f"Odd {text}", "inputs": {"model": ["1", 0], "text": text}}
    given["5"]["inputs"] |= {"model": ["7", 0], "latent_image": ["8", 0]}
    given["8"] = {"class_type": f"Odd {text}", "inputs": {}}
    workflow = tk.comfy.read_workflow(given)
    body = ast.parse(workflow.to_code().encode("utf-8", "replace").decode()).body
    values = assignments(body)
    assert ast.literal_eval(values["prompt"]) == text == workflow.parameters()["prompt"]
    assert ast.literal_eval(values["model_id"]) == text
    kinds = {type(node) for node in body}
    assert kinds <= {ast.Assign, ast.Import, ast.If}  # nothing else came in
    assert (
        sum(isinstance(node, ast.If) for node in body) == 1 and ast.literal_eval(values["latent_8"]) is None
    )
    assert max(map(len, workflow.to_code().splitlines())) <= 700


def test_repr_and_html_are_escaped():
    given = prompt()
    given["5"]["_meta"] = {"title": "<script>alert(1)</script>"}
    given["2"]["inputs"]["text"] = "<b>3</b>"
    workflow = tk.comfy.read_workflow(given)
    html = workflow._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html and html.count("<tr>") == len(workflow) + 1
    assert repr(workflow).startswith(
        "Workflow('dict', 4 calls, 0 nodes not translated)\n  model = tk.load(model_id)"
    )
    assert [call.node for call in workflow] == ["1", "4", "5", "6"]


def test_broken_links():
    workflow = tk.comfy.read_workflow(prompt(positive=["77", 0], latent_image=["1", 0]))
    assert set(workflow.gaps) == {"positive_5", "latent_1"}
    assert "node 77, which is not in the file" in workflow.gaps["positive_5"]
    assert "gives a MODEL where a LATENT is wanted" in workflow.gaps["latent_1"]
    assert "no such output" in tk.comfy.read_workflow(prompt(positive=["2", 4])).gaps["condition_2_4"]
    raw = tree("unsample.json")
    raw["links"] = [link for link in raw["links"] if link[0] != 11]
    assert "its link 11 is not in the file" in next(iter(tk.comfy.read_workflow(raw).gaps.values()))
    raw = tree("unsample.json")
    raw["links"] += [None, [1], {"id": 3}, ["x"] * 6]
    assert len(tk.comfy.read_workflow(raw)) == len(read("unsample.json"))


def test_circles():
    given = prompt()
    given["8"] = {"class_type": "LatentAdd", "inputs": {"samples1": ["9", 0], "samples2": ["4", 0]}}
    given["9"] = {"class_type": "LatentMultiply", "inputs": {"samples": ["8", 0], "multiplier": 2.0}}
    given["5"]["inputs"]["latent_image"] = ["9", 0]
    workflow = tk.comfy.read_workflow(given)
    assert {entry.node for entry in workflow.untranslated} == {"8", "9"}
    assert all("circle" in entry.why for entry in workflow.untranslated)
    assert at(workflow, "5").needs == ("latent_9",)
    raw = drawn("KSampler", [1, "fixed", 4, 2, "euler", "simple", 1])
    raw["nodes"] += [{"id": k, "type": "Reroute", "inputs": [{"name": "", "type": "*", "link": k}],
                      "outputs": [{"type": "*"}]} for k in (20, 21)]  # fmt: skip
    raw["links"] = [
        *raw["links"][1:],
        [1, 20, 0, 9, 0, "MODEL"],
        [20, 21, 0, 20, 0, "*"],
        [21, 20, 0, 21, 0, "*"],
    ]
    assert "round in a circle" in next(iter(tk.comfy.read_workflow(raw).gaps.values()))


def test_long_chains_take_no_recursion():
    given = prompt(model=["m1999", 0], latent_image=["l1999", 0])
    for k in range(2000):
        below = ["1", 0] if k == 0 else [f"m{k - 1}", 0]
        given[f"m{k}"] = {"class_type": "FreeU_V2", "inputs": {"model": below, "b1": 1.1}}
        below = ["4", 0] if k == 0 else [f"l{k - 1}", 0]
        given[f"l{k}"] = {"class_type": "LatentMultiply", "inputs": {"samples": below, "multiplier": 1.0}}
    workflow = tk.comfy.read_workflow(given)
    assert len(workflow.untranslated) == 2000 and len(workflow) == 2004
    assert repr(at(workflow, "5").parameters["model"]) == "model"


def test_odd_entries():
    given = prompt(seed={"a": 1}, extra=None)
    given |= {"x": 3, "y": {"class_type": 5}, "": {"class_type": "Note?", "inputs": []}}
    workflow = tk.comfy.read_workflow(given)
    assert ast.parse(workflow.to_code())
    assert {"x", "y"} <= {entry.node for entry in workflow.aside}
    assert workflow.untranslated[0].type == "Note?"
    raw = drawn("KSampler", [1, "fixed", 4, 2, "euler", "simple", 1], mode="x", title=3)
    raw["nodes"] += [None, 3, {"id": [1]}, {"type": None, "inputs": "a", "outputs": 1, "widgets_values": 4}]
    raw |= {"extra": [], "definitions": {"subgraphs": [None, {"id": 1}]}, "groups": None}
    assert len(tk.comfy.read_workflow(raw)) == 3
    raw["nodes"].append(json.loads(json.dumps(raw["nodes"][3])))  # an id twice
    assert any("id is that of another" in entry.why for entry in tk.comfy.read_workflow(raw).aside)


def damaged(raw, chance):
    """A copy of a tree with some of its parts taken out, or replaced."""
    odd = (
        None,
        True,
        -1,
        10**30,
        1.5,
        float("nan"),
        "",
        "x",
        [],
        {},
        [1],
        ["1", 0],
        [0, 0],
        {"a": 1},
        "\n'\"",
    )
    raw = json.loads(json.dumps(raw))
    for _ in range(chance.randint(1, 6)):
        place = raw
        while True:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            if not keys:
                break
            key = chance.choice(keys)
            if isinstance(place[key], (dict, list)) and chance.random() < 0.85:
                place = place[key]
            else:
                place[key] = chance.choice(odd)
                break
    return raw


def test_damaged_files():
    chance, whole, read_anyway = random.Random(0), [tree(name) for name in ALL], 0
    for _ in range(300):
        raw = damaged(chance.choice(whole), chance)
        try:
            workflow = tk.comfy.read_workflow(raw)
        except (ValueError, TypeError) as error:
            assert "Try: " in str(error)
            continue
        read_anyway += 1
        assert ast.parse(workflow.to_code()) and repr(workflow) and workflow._repr_html_()
    assert read_anyway > 200


@pytest.mark.parametrize("kind", ["LATENT", "MODEL", "CONDITIONING", "IMAGE", "VALUE"])
def test_unknown_nodes_of_every_kind(kind):
    given = prompt()
    given["20"] = {
        "class_type": "SomethingNew",
        "inputs": {"strength": 0.5, "model": ["1", 0], "positive": ["2", 0]},
    }
    link = {"LATENT": "latent_image", "MODEL": "model", "CONDITIONING": "positive", "VALUE": "steps"}.get(
        kind
    )
    if kind == "IMAGE":
        given["4"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["20", 0], "vae": ["1", 2]}}
    else:
        given["5"]["inputs"][link] = ["20", 0]
    workflow = tk.comfy.read_workflow(given)
    (entry,) = workflow.untranslated
    assert entry.type == "SomethingNew" and entry.holds == {"strength": 0.5} and entry.calls == ("5",)
    passed = kind in ("MODEL", "CONDITIONING")  # taken as it came in, and said
    assert bool(workflow.gaps) != passed
    if passed:
        assert repr(at(workflow, "5").parameters["positive"]) == "prompt"
