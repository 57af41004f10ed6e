"""Any classifier of timm (the extra `timm`) as a network of ours, with published weights or without."""

import difflib
from collections.abc import Mapping
from typing import Any

from torch import nn

from models.pretrained import library
from models.vision.pretrained import Classifier, no_depth

Config = dict[str, Any]  # what published weights were trained on: input_size [3, H, W], mean and std by channel


class Timm(Classifier):
    """A classifier of timm with as many outputs as there are classes.

    Args:
        schema: of the data.
        name: as timm.list_models has it, such as resnet18 or resnet18.a1_in1k.
        pretrained: whether it begins with published weights, which are downloaded, or the file of such weights.
        input_size: that pictures are resized to; None for the weights' own, or that of the training pictures.
        flip_at_test: see `VisionNetwork`.
        stochastic_depth: probability that a row skips the last layer, which falls towards the first; None for none.
        config: of a checkpoint: that of the weights which it began with, and which it needs no more.

    Attributes:
        config: that of its published weights; None without.
    """

    def __init__(
        self,
        schema: Mapping[str, Any],
        *,
        name: str,
        pretrained: bool | str,
        input_size: int | None,
        flip_at_test: bool,
        stochastic_depth: float | None,
        config: Config | None,
    ) -> None:
        options: dict[str, Any] = {"num_classes": len(schema["classes"])}
        own = config_of(name)
        if stochastic_depth is not None:
            options["drop_path_rate"] = stochastic_depth
        if own["fixed_input_size"] and input_size:
            options["img_size"] = input_size
        body = made(name, pretrained if config is None else False, options)
        if stochastic_depth and not any(type(layer).__name__ == "DropPath" for layer in body.modules()):
            raise ValueError(no_depth(name, stochastic_depth))
        own_size = own["input_size"][1] if pretrained or own["fixed_input_size"] else None
        has_weights = bool(pretrained)
        super().__init__(schema, body, has_weights=has_weights, size=input_size or own_size, flip_at_test=flip_at_test)
        self.config = (config or own) if has_weights else None
        if self.config:
            self.pixels.normalize(self.config["mean"], self.config["std"])


def config_of(name: str) -> Config:
    """What timm knows of the pictures of a model. Raises ValueError naming what there is where it has none such."""
    timm = library("timm", extra="timm")
    if not timm.is_model(name):
        known = timm.list_models()
        near = difflib.get_close_matches(name, known, 3) or known[:8]
        raise ValueError(f"name must be a classifier of timm, such as {', '.join(near)}: {name!r}")
    known = timm.get_pretrained_cfg(name, allow_unregistered=False) or timm.models.PretrainedCfg()
    return {
        "input_size": list(known.input_size),
        "mean": list(known.mean),
        "std": list(known.std),
        "fixed_input_size": bool(known.fixed_input_size),
    }


def made(name: str, pretrained: bool | str, options: Mapping[str, Any]) -> nn.Module:
    """A model of timm. Raises ValueError where it does not take the options, or its weights cannot be had."""
    timm = library("timm", extra="timm")
    if isinstance(pretrained, str):
        options = {**options, "pretrained_cfg_overlay": {"file": pretrained}}
    try:
        body: nn.Module = timm.create_model(name, pretrained=bool(pretrained), **options)
    except TypeError as error:
        if "drop_path_rate" in options and "drop_path_rate" in str(error):
            raise ValueError(no_depth(name, options["drop_path_rate"])) from error
        raise
    except Exception as error:  # of the network, the hub, the file or its content: whatever they like
        if not pretrained:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the weights of {name} cannot be had (pretrained={pretrained!r}): {reason}") from error
    return body
