"""Semantic segmentation: loss and metrics of networks over pictures, as a LightningModule.

Shapes: B rows, H x W pixels, C classes.
"""

import io
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any, Unpack

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning import LightningModule
from torch import Tensor

from models import pruning
from models.graph import Graph
from models.optim import Recipe, Steps, adamw
from models.outputs import gathered
from models.segmentation import baselines, metrics, report
from models.segmentation.export import graph_of
from models.segmentation.losses import Loss, loss_of
from models.segmentation.metrics import Segmented
from models.segmentation.networks import SegmentationNetwork
from models.sharding import shard_networks

Schema = Mapping[str, Any]

PREDICT_PIXELS = 2_000_000  # more at a time fill memory with activations and are no faster


class Training(Recipe):
    """How a segmentation network is trained, whatever its architecture.

    Attributes:
        loss: what is minimized; several are added up.
    """

    loss: Loss


class SegmentationModule(LightningModule):
    """Trains a network of pictures to logits [B, C, H, W]; predicts the class of each pixel.

    Args:
        schema: what the data module knows of the data (classes, size, statistics of pixels).
        network: the trained network.
        training: see `Training`.
    """

    class_weights: Tensor

    def __init__(self, schema: Schema, network: SegmentationNetwork, **training: Unpack[Training]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.schema, self.training_options = schema, training
        self.classes: list[str] = list(schema["classes"])
        self.network = network
        self.average = None if training["ema_decay"] is None else deepcopy(network).requires_grad_(False)
        weights = schema.get("class_weights") or [1.0] * len(self.classes)
        self.register_buffer("class_weights", torch.tensor(weights, dtype=torch.float32), persistent=False)
        self.outputs: list[dict[str, Tensor]] = []
        self.scored: Segmented | None = None
        if training["compile"]:
            self.network.score = torch.compile(network.score)  # type: ignore[method-assign]

    @property
    def scorer(self) -> SegmentationNetwork:
        """The network that predicts: the averaged weights where there are such."""
        return self.network if self.average is None else self.average

    def forward(self, image: Tensor) -> Tensor:
        """Return the class of each pixel, int64 [B, H, W].

        Args:
            image: uint8 [B, H, W, 3], of any size.
        """
        logits: Tensor = self.scorer(image)
        return logits.argmax(dim=1)

    @torch.inference_mode()
    def predict_columns(self, batch: Mapping[str, Tensor], *, decision: str) -> dict[str, NDArray[Any]]:
        """Return what to add to a table: each class's share of the pixels, and the class map as a grey PNG, [B] each.

        Args:
            batch: the inputs of `forward` by name.
            decision: there is one here, the most probable class; asking for another is an error.
        """
        if decision != "cost":
            raise ValueError(f"decision={decision!r} needs thresholds, which pixels' classes have not: leave it out")
        images = batch["image"]
        rows = max(1, PREDICT_PIXELS // max(1, images.shape[1] * images.shape[2]))
        found = torch.cat([self(part) for part in torch.split(images, rows)])
        shares = {
            f"share_{name}": (found == number).float().mean(dim=(1, 2)).cpu().numpy()
            for number, name in enumerate(self.classes)
        }
        masks = np.empty(len(found), dtype=object)
        for place, mask in enumerate(found.to(torch.uint8).cpu().numpy()):
            masks[place] = _png(mask)
        return {**shares, "mask": masks}

    def export_graphs(self) -> list[Graph]:
        """Return what is exported: one graph, bytes of pixels to the class of each pixel and its probability."""
        return [graph_of(self.scorer.folded(), self.schema)]

    def pruned(
        self, ratio: float, *, how: pruning.Importance, batches: Iterable[Mapping[str, Tensor]]
    ) -> tuple[dict[str, int], dict[str, Tensor]]:
        """Return the constructor's arguments and the state dict of a smaller model; `batches` are training rows."""

        def loss(network: torch.nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
            return self._loss(network(batch["image"]), batch)

        return pruning.pruned(self, ratio, how=how, batches=batches, loss=loss)

    # Training

    def configure_model(self) -> None:
        """Shard the networks where the strategy asks for it; their `blocks` decide how finely."""
        shard_networks(self)

    def loss_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss over the rows of one mini-batch, a scalar."""
        return self._loss(self.network.score(batch["image"]), batch)

    def _loss(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        # The mean over pictures of means over pixels: ranks whose masks ignore more add up to one process's.
        loss = loss_of(self.training_options["loss"], logits.float(), batch["target"], self.class_weights)
        return loss.mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW, fused, over the trained network."""
        return adamw(self.network, self.training_options)

    def on_train_start(self) -> None:
        """Bind the optimizer, the schedule and the average into one loop over mini-batches."""
        self.steps = Steps.of(self, self.network, self.average, self.training_options)

    @property
    def seconds_communicating(self) -> float:
        """Time that this rank has spent in averaging gradients."""
        return self.steps.seconds_reducing

    def training_step(self, batches: list[dict[str, Tensor]], batch_idx: int) -> dict[str, Tensor]:
        """Take one optimizer step per mini-batch; return their losses [steps] for the callbacks."""
        return {"loss": self.steps.take(batches, self.loss_of)}

    # Evaluation

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Count the pixels of one batch; metrics are made of the whole set at the end of the epoch."""
        self._keep(batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Count the pixels of one batch; metrics are made of the whole set at the end of the epoch."""
        self._keep(batch)

    def _keep(self, batch: Mapping[str, Tensor]) -> None:
        self.outputs.append(counted(self(batch["image"]), batch["target"], batch["row"], len(self.classes)))

    def on_validation_epoch_end(self) -> None:
        """Log `val/...`."""
        self._log_metrics("val", Segmented.of(**gathered(self.outputs)))

    def on_test_epoch_end(self) -> None:
        """Log `test/...`; keep the counts for plots and intervals."""
        self.scored = Segmented.of(**gathered(self.outputs))
        self._log_metrics("test", self.scored)

    def _log_metrics(self, split: str, rows: Segmented) -> None:
        found = metrics.metrics_of(rows)
        values = {f"{split}/{name}": value for name, value in found.items() if not np.isnan(value)}
        self.log_dict(values, rank_zero_only=True, logger=False)  # Telemetry writes them at the optimizer step

    # What a run tells of itself after the test

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return 95 % bootstrap intervals, over pictures, of the last test's metrics."""
        return {} if self.scored is None else metrics.bootstrap_intervals(self.scored)

    def metric_of(self, rows: Segmented, name: str) -> float:
        """Return one metric; cheap where a bootstrap asks for it."""
        if name in metrics.BOOTSTRAPPED:
            return metrics.BOOTSTRAPPED[name](rows)
        return metrics.metrics_of(rows)[name]

    def card(self) -> dict[str, Any]:
        """Return what a model card should say of this model and its last test."""
        return {
            "predicts": report.predicts(self.schema),
            "inputs": report.inputs(self.schema),
            "thresholds": {},
            "slices": {} if self.scored is None else metrics.per_class(self.scored, self.classes),
            "limits": report.limits(self.schema),
        }

    def figures(self, datamodule: Any) -> dict[str, Figure]:
        """Return plots of the last test, and pictures with what was found in them, by file name."""
        if self.scored is None:
            return {}
        tensors, names = datamodule.tensors["test"], datamodule.names["test"]
        self.worst = report.worst_named(self.scored, names)
        return report.figures(self.scored, self.classes, tensors, self._found)

    @torch.inference_mode()
    def _found(self, images: Tensor) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self.eval()(images.to(self.device)).cpu().numpy()
        return found

    def write_summaries(self, writer: Any, step: int) -> None:
        """Write the last test's table of classes and its worst pictures to TensorBoard."""
        if self.scored is not None:
            report.write_tables(self.scored, self.classes, getattr(self, "worst", []), writer, step)

    def test_baseline(self, baseline: Any, datamodule: Any) -> dict[str, float]:
        """Fit a scikit-learn classifier of pixels on training pictures; return its test metrics, as the network's."""
        train, test = (datamodule.tensors[split] for split in ("train", "test"))
        if not len(test["target"]):
            return {}
        baselines.fit(baseline, train["image"], train["target"])
        parts = [
            counted(baselines.found(baseline, images), target, row, len(self.classes))
            for images, target, row in zip(*(test[name].split(256) for name in ("image", "target", "row")), strict=True)
        ]
        rows = {name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]}
        return metrics.metrics_of(Segmented.of(**rows))


def counted(found: Tensor, target: Tensor, row: Tensor, num_classes: int) -> dict[str, Tensor]:
    """The columns of `Segmented` for class maps [B, H, W]."""
    return {
        "confusion": metrics.confusions(found, target, num_classes),
        "boundary": metrics.boundaries(found, target, num_classes),
        "row": row,
    }


def _png(mask: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return file.getvalue()
