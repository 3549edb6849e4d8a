"""Pipelines from folders, files and the hub: safetensors only, and what lies here without a network."""

import inspect
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path as FilePath
from typing import Any

from ..errors import bad, unknown

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
PICKLE = "a pickle can run code when it is read: only .safetensors are. Convert it where you trust it"
REFUSED = ("trust_remote_code", "custom_pipeline", "custom_revision")
# options that diffusers reads by; all others are parts of the pipeline
READ_BY = ("dtype", "low_cpu_mem_usage", "use_safetensors", "variant", "revision", "cache_dir", "token",
           "proxies", "local_files_only", "force_download", "device_map", "max_memory", "offload_folder",
           "offload_state_dict", "quantization_config", "disable_mmap", "original_config")  # fmt: skip
# where the classes of a pipeline come from, beside diffusers.pipelines
HOMES = (None, "diffusers", "transformers")
CHECKERS = ("safety_checker", "feature_extractor", "image_encoder")
LINE = 'tk.load(), tk.load("photographs"), tk.load("path/to/a/pipeline"), or tk.load(pipe)'
# what the hub's client raises -> the line to type
HUB_LINES = {
    "GatedRepoError": 'hf auth login, once its licence is accepted on the hub, then tk.load("{}")',
    "RepositoryNotFoundError": 'tk.load("owner/name") as the hub has it; if private, hf auth login first',
    "RevisionNotFoundError": 'tk.load("{}", revision="main")',
}
CONVERT = 'pipe.save_pretrained("folder", safe_serialization=True), then tk.load("folder")'


def read(source: str | PathLike[str], dtype: Any, options: Mapping[str, Any], families: Mapping) -> Any:
    """The diffusers pipeline of a folder, a ``.safetensors`` file or a hub id, its networks in `dtype`.

    Raises ValueError for what is none of these, TypeError for a family that is not in `families`, OSError
    with the reason where its files cannot be had.
    """
    import diffusers

    _check_options(source, options)
    place = FilePath(source)
    sparing = diffusers.utils.is_accelerate_available()  # weights once in memory, not twice
    options = {"dtype": dtype, "low_cpu_mem_usage": sparing, **options}
    with _quiet():
        if place.suffix.lower() in PICKLES:
            raise bad("source", str(source), PICKLE, CONVERT)
        if place.is_file():
            return _single(diffusers, place, options, families).to(dtype)
        if not place.exists() and not HUB_ID.fullmatch(str(source)):
            raise bad("source", str(source), "neither a folder that exists nor a hub id owner/name", LINE)
        return _pretrained(diffusers, source, options, families).to(dtype)


def _check_options(source: Any, options: Mapping) -> None:
    """Refuses what would run code, and what is called otherwise here."""
    for name in REFUSED:
        if name in options:
            raise bad(name, options[name], "no code of a repository is run", f'tk.load("{source}")')
    if not options.get("use_safetensors", True):
        raise bad("use_safetensors", options["use_safetensors"], PICKLE, CONVERT)
    if "torch_dtype" in options:
        line = f'tk.load("{source}", dtype={options["torch_dtype"]})'
        raise bad("torch_dtype", options["torch_dtype"], "it is called dtype here", line, TypeError)


def _pretrained(diffusers: Any, source: str | PathLike[str], options: dict, families: Mapping) -> Any:
    """From a folder, or a hub id: its copy on this machine first."""
    index, here = _index(diffusers, source, options)
    _check_family(index, families, source)
    _check_names(diffusers, index, options)
    options = {"use_safetensors": True, **options}
    # what runs nothing here, and what was saved as absent, which diffusers wants to be told again
    absent = [name for name, each in index.items() if each == [None, None]]
    left_out = {name: None for name in [*CHECKERS, *absent] if name in index and name not in options}
    if "requires_safety_checker" in index or "safety_checker" in index:
        left_out["requires_safety_checker"] = False
    return _had(_local_first(diffusers.DiffusionPipeline.from_pretrained, source, here), source,
                {**left_out, **options})  # fmt: skip


def _index(diffusers: Any, source: str | PathLike[str], options: Mapping) -> tuple[dict, bool]:
    """What `model_index.json` says, and whether the pipeline is read without the network."""
    folder = FilePath(source)
    if folder.exists() and not (folder / "model_index.json").is_file():
        why = "this folder holds no model_index.json of a diffusers pipeline"
        raise bad("source", str(source), why, LINE)
    asked = {k: v for k, v in options.items() if k in ("cache_dir", "revision", "token", "proxies")}
    config = diffusers.DiffusionPipeline.load_config
    index, here = None, True
    try:
        index = config(str(source), local_files_only=True, **asked)
    except OSError as exc:
        if folder.exists():
            why = f"its model_index.json cannot be read ({_short(exc)})"
            raise bad("source", str(source), why, LINE) from exc
        here = False
    if not here and options.get("local_files_only"):
        why = "it is not among the models on this machine, and local_files_only=True"
        raise bad("source", str(source), why, f'tk.load("{source}"), with a network', OSError)
    index = index if here else _had(config, source, asked)
    if not isinstance(index, Mapping) or "_class_name" not in index:
        raise bad("source", str(source), "its model_index.json names no pipeline", LINE)
    return index, here


def _check_family(index: Mapping, families: Mapping, source: Any) -> None:
    """Refuses a pipeline by its index, before its weights are read."""
    from diffusers import pipelines

    parts = {name: each for name, each in index.items() if isinstance(each, (list, tuple)) and len(each) == 2}
    for name, (home, _) in parts.items():
        if name == "_class_name" or not (home in HOMES or hasattr(pipelines, home)):
            why = f"its {name} is code of its own, and no code of a repository is run"
            raise bad("source", str(source), why, LINE)
    held = [each for _, each in parts.values()]
    # DiT's first folders say Transformer2DModel, which diffusers knows to be a DiT
    if not any(name in families or name == "Transformer2DModel" for name in held):
        raise unsupported(str(index.get("_class_name")), families)


def _check_names(diffusers: Any, index: Mapping, options: Mapping) -> None:
    """Refuses an option that is none of diffusers', nor a part of this pipeline: diffusers passes over it."""
    family = getattr(diffusers, index["_class_name"], None)
    parts = [name for name in index if not name.startswith("_")]
    parts += [] if family is None else inspect.signature(family.__init__).parameters
    for name in options:
        if name not in parts and name not in READ_BY:
            names = sorted({*parts, *READ_BY} - {"self"})
            raise unknown("option", name, names, "tk.load(source, {}=...)")


def unsupported(given: str, families: Mapping) -> Exception:
    """The error for a pipeline with another denoiser."""
    why = f"not a pipeline this version runs: its denoiser is none of {', '.join(families)}"
    return bad("source", given, why, LINE, TypeError)


def _single(diffusers: Any, file: FilePath, options: dict, families: Mapping) -> Any:
    """A checkpoint in one file, by diffusers' own loader; its config is a folder or hub id of the family."""
    line = f'tk.load("{file}", config="folder/of/the/same/family")'
    if file.suffix != ".safetensors":
        raise bad("source", str(file), "a folder, or a .safetensors file", LINE)
    config = options.pop("config", None)
    if config is not None and not (FilePath(config).is_dir() or HUB_ID.fullmatch(str(config))):
        raise bad("config", str(config), "neither a folder that exists nor a hub id owner/name", line)
    config = config or _usual_config(diffusers, file, line)
    try:
        index, here = _index(diffusers, config, options)
    except OSError as exc:
        why = f"it goes with the configs of {config}, and these cannot be had: {_short(exc.__cause__ or exc)}"
        raise bad("source", str(file), why, line, OSError) from exc
    _check_family(index, families, config)
    _check_names(diffusers, index, options)
    family = getattr(diffusers, index["_class_name"])
    asked = {"torch_dtype": options.pop("dtype"), **options, "config": str(config)}
    asked.pop("low_cpu_mem_usage", None)
    # what is not in the file may be handed over, and is best taken from a folder that has it
    reader = _local_first(family.from_single_file, config, here)
    return _had(reader, file, asked, f"{line[:-1]}, text_encoder=pipe.text_encoder)")


def _usual_config(diffusers: Any, file: FilePath, line: str) -> str:
    """The hub id that a checkpoint's names and shapes are those of, as diffusers knows them."""
    import torch
    from diffusers.loaders import single_file_utils
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as held:
            shapes = {name: held.get_slice(name).get_shape() for name in held.keys()}  # noqa: SIM118
    except SafetensorError as exc:
        raise bad("source", str(file), f"no safetensors file, or one cut short ({exc})", line) from exc
    empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return single_file_utils.fetch_diffusers_config(empty)["pretrained_model_name_or_path"]


def _local_first(reader: Any, home: Any, here: bool) -> Any:
    """A reader of what is here; the rest of a download that was begun and not ended comes from the hub."""

    def read(source: str, local_files_only: bool = False, **options: Any) -> Any:
        if here and not local_files_only and not FilePath(home).exists():
            with suppress(OSError):
                return reader(source, local_files_only=True, **options)
            return reader(source, **options)
        return reader(source, local_files_only=here, **options)

    return read


def _had(read: Any, source: Any, options: Mapping, line: str | None = None) -> Any:
    """What diffusers reads, or the reason why not and the line to type."""
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    try:
        return read(str(source), **options)
    except (ValueError, RuntimeError, SingleFileComponentError) as exc:
        raise bad("source", str(source), _short(exc), line or LINE) from exc
    except OSError as exc:
        # diffusers raises its own guess over what the hub said
        told = exc.__cause__ or exc.__context__
        hub = type(told).__name__ if type(told).__module__.startswith("huggingface_hub") else ""
        why = _short(told if hub else exc)
        if hub in HUB_LINES:
            line = HUB_LINES[hub].format(source)
        elif "Unable to load weights" in why:
            line = f'tk.load("{source}"), once that file is copied again: it is cut short, or spoiled'
        elif "safetensors" in why or ".bin" in why:
            folder = FilePath(source)
            variants = {part.name.split(".")[-2] for part in folder.rglob("*.*.safetensors")} - {""}
            named = [name for name in variants if not name.startswith("model-")]
            line = f'tk.load("{source}", variant="{named[0]}")' if named else CONVERT
        line = line or f'tk.load("{source}"), with a network'
        raise bad("source", str(source), why, line, OSError) from exc


def _short(exc: BaseException) -> str:
    """An error's first sentences, in one line."""
    text = " ".join(str(exc).split())
    return text if len(text) <= 400 else text[:397] + "..."


@contextmanager
def _quiet() -> Iterator[None]:
    """Both libraries remark on many a folder, and draw bars for a short load; errors stay."""
    import diffusers
    import transformers

    homes = (diffusers.utils.logging, transformers.utils.logging)
    before = [(home.get_verbosity(), home.is_progress_bar_enabled()) for home in homes]
    for home in homes:
        home.set_verbosity_error()
        home.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # diffusers asks the hub's client, each time, for something that this has given up
            warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")
            yield
    finally:
        for home, (level, bars) in zip(homes, before, strict=True):
            home.set_verbosity(level)
            if bars:
                home.enable_progress_bar()
