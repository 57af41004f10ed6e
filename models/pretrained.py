"""What all pretrained models of `transformers` share (the extra `hf`): configs, tokenizers, LoRA."""

import importlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer
from torch import nn

log = logging.getLogger(__name__)

Config = dict[str, Any]
AnyModule = TypeVar("AnyModule", bound=nn.Module)


def library(name: str, *, extra: str = "hf") -> Any:
    """Return an optional package, which an extra of ours brings. Raises ValueError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"a pretrained model needs {name}, which is not installed: pip install 'fullcycle[{extra}]'"
        ) from error


def quiet() -> Any:
    """Return `transformers`, which from then on shows no progress and names no weights that are left out."""
    transformers = library("transformers")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


@contextmanager
def naming(rule: str, name: str) -> Iterator[None]:
    """Make whatever loading a model of this name raises a ValueError: files that are damaged raise what they like."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not Path(name).is_dir():
            reason = "there is no such folder"
        elif isinstance(error, RuntimeError):  # which refers to a table of shapes that was on the screen
            reason = "its weights do not fit its config.json"
        raise ValueError(f"{rule}; {name!r} is none ({reason})") from error


def weights_of(auto: Any, name: str, config: Any) -> nn.Module:
    """The model of a name, in float32, and a warning where some of its weights are not there and begin at random."""
    model, found = auto.from_pretrained(name, config=config, dtype=torch.float32, output_loading_info=True)
    missing = sorted(key for key in found["missing_keys"] if "pooler" not in key)  # which is taken away
    if missing:
        told = f"{len(missing):,} of {len(model.state_dict()):,} weights, such as {missing[0]}"
        log.warning("%s lacks %s: they begin at random", name, told)
    loaded: nn.Module = model
    return loaded


def plain(config: Any) -> Config:
    """A config of `transformers` as plain values."""
    values: Config = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in values.items() if not key.startswith("_")}


def config_of(values: Config) -> Any:
    """The config that `plain` gave values of; needs no hub and no folder."""
    return library("transformers").AutoConfig.for_model(**deepcopy(values))


def check_tokenizer(name: str, schema: Mapping[str, Any], *, option: str) -> None:
    """Raise ValueError where texts are not tokenized as those of the model of this name; `option` is what named it."""
    path = tokenizer_file(name)
    if path is None:
        return
    theirs = Tokenizer.from_file(str(path)).get_vocab()
    ours = Tokenizer.from_str(schema["tokenizer"]["json"]).get_vocab()
    if theirs.items() - ours.items():
        raise ValueError(f"data.tokenizer must be that of the {option} {name!r}: data.tokenizer={path}")


def tokenizer_file(name: str) -> Path | None:
    """Return the tokenizer.json of a name on the hub or of a folder; None where it has none."""
    try:
        found = library("transformers").utils.cached_file(name, "tokenizer.json")
    except OSError:
        return None
    return None if found is None else Path(found)


def layers_of(encoder: nn.Module) -> str:
    """The name of the list of a stack's layers, the largest of its lists."""
    lists = {name: module for name, module in encoder.named_modules() if isinstance(module, nn.ModuleList)}
    if not lists:
        raise ValueError(f"encoder must have a list of layers; {type(encoder).__name__} has none")
    sizes = ((sum(weight.numel() for weight in layers.parameters()), name) for name, layers in lists.items())
    largest: str = max(sizes)[1]
    return largest


def add_lora(model: nn.Module, rank: int, *, leave: nn.Module | None = None) -> None:
    """Freeze a model but for low-rank updates of its matrices (Hu et al., 2021, arXiv 2106.09685), through peft.

    `leave` is a matrix without such an update. Raises ValueError for a rank that no matrix has.
    """
    peft = library("peft")
    matrices = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if rank > (most := max(min(module.weight.shape) for module in matrices.values())):
        raise ValueError(f"lora_rank must be at most {most}, the full rank of the model's matrices; got {rank}")
    names = [name for name, module in matrices.items() if module is not leave]
    options = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names)
    peft.inject_adapter_in_model(options, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def merged(network: AnyModule) -> AnyModule:
    """Return a copy whose low-rank updates are part of its matrices."""
    copied = deepcopy(network)
    for name, layer in list(copied.named_modules()):
        if hasattr(layer, "get_base_layer"):
            layer.merge()
            copied.set_submodule(name, layer.get_base_layer())
    return copied
