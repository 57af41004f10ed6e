"""Object detection: loss and metrics of networks over pictures, as a LightningModule.

Shapes: B pictures, H x W pixels, D detections, M objects.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any, Unpack

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning import LightningModule
from torch import Tensor

from models import pruning
from models.detection import baselines, metrics, report
from models.detection.export import COLUMNS, graph_of, joined
from models.detection.masks import bytes_of
from models.detection.matching import Detected, Judged, judged
from models.detection.networks import DetectionNetwork
from models.graph import Graph
from models.optim import Recipe, Steps, adamw
from models.outputs import gathered
from models.sharding import shard_networks

Schema = Mapping[str, Any]

PREDICT_ROWS = 64  # more at a time fill memory with activations and are no faster
MASKED_ROWS = 8  # the same with masks
TRUTH = ("boxes", "target", "crowd", "size", "row")
MASKED = ("masks", "frames")  # what a batch also has where objects have masks


class DetectionModule(LightningModule):
    """Trains a network that finds objects in pictures.

    Args:
        schema: what the data module knows of the data (classes, size, statistics of pixels).
        network: the trained network.
        training: see `Recipe`.
    """

    def __init__(self, schema: Schema, network: DetectionNetwork, **training: Unpack[Recipe]) -> None:
        super().__init__()
        if schema.get("masks") and not network.has_masks:
            raise ValueError(
                "data.masks=true is for networks that learn masks, and this one finds boxes alone: leave it out, "
                "or take model=torchvision_detection model.architecture=maskrcnn_resnet50_fpn"
            )
        self.automatic_optimization = False
        self.schema, self.training_options = schema, training
        self.classes: list[str] = list(schema["classes"])
        self.network = network
        self.average = None if training["ema_decay"] is None else deepcopy(network).requires_grad_(False)
        self.outputs: list[dict[str, Tensor]] = []
        self.detected: Detected | None = None
        self.scored: Judged | None = None  # the same, judged
        self.by_class: list[float] = []
        if training["compile"]:
            self.network.score = torch.compile(network.score)  # type: ignore[method-assign]

    @property
    def scorer(self) -> DetectionNetwork:
        """The network that predicts: the averaged weights where there are such."""
        return self.network if self.average is None else self.average

    def forward(self, image: Tensor) -> Tensor:
        """Return detections [B, D, 6]: left, top, right, bottom in pixels, score, class; the surest first.

        Rows of score 0 and class -1 pad.

        Args:
            image: uint8 [B, H, W, 3], of any size.
        """
        found: Tensor = self.scorer(image)
        return found

    @torch.inference_mode()
    def predict_columns(self, batch: Mapping[str, Tensor], *, decision: str) -> dict[str, NDArray[Any]]:
        """Return what to add to a table: the objects of each picture, as JSON, boxes in pixels of the file.

        Args:
            batch: image as in `forward`, and size [B, 2], height and width of the files.
            decision: there is none here; asking for one is an error.
        """
        if decision != "cost":
            raise ValueError(f"decision={decision!r} needs thresholds, which detections have not: leave it out")
        num = MASKED_ROWS if self.network.has_masks else PREDICT_ROWS
        parts = [self(images) for images in torch.split(batch["image"], num)]
        found, sizes = torch.cat(parts).cpu().numpy(), batch["size"].cpu().numpy()
        scale = np.tile(sizes[:, ::-1] / np.array(batch["image"].shape[2:0:-1]), 2)
        return {"objects": np.array(report.as_json(found, scale, self.classes, sizes), dtype=object)}

    def export_graphs(self) -> list[Graph]:
        """Return what is exported: one graph, bytes of pixels to boxes, scores, labels and their count."""
        return [graph_of(self.scorer.folded(), self.schema)]

    def stand_in(self, graphs: Mapping[str, Any]) -> Any:
        """Return what can take the place of `forward`, answered by the exported graph."""
        (graph,) = graphs.values()
        return lambda image: joined(graph({"image": image.cpu()})).to(image.device)

    def pruned(
        self, ratio: float, *, how: pruning.Importance, batches: Iterable[Mapping[str, Tensor]]
    ) -> tuple[dict[str, int], dict[str, Tensor]]:
        """Return the constructor's arguments and the state dict of a smaller model; `batches` are training rows.

        Raises ValueError where the network cannot be pruned.
        """

        def loss(network: torch.nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
            assert isinstance(network, DetectionNetwork)
            return network.score(batch["image"], batch["boxes"], batch["target"], batch["crowd"])

        return pruning.pruned(self, ratio, how=how, batches=batches, loss=loss)

    # Training

    def configure_model(self) -> None:
        """Shard the networks where the strategy asks for it; their `blocks` decide how finely."""
        shard_networks(self)

    def loss_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss over the pictures of one mini-batch, a scalar."""
        masks = {name: batch[name] for name in MASKED} if self.network.has_masks else {}
        return self.network.score(batch["image"], batch["boxes"], batch["target"], batch["crowd"], **masks)

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
        """Find objects in one batch; metrics are made of the whole set at the end of the epoch."""
        self._keep(batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Find objects in one batch; metrics are made of the whole set at the end of the epoch."""
        self._keep(batch)

    def _keep(self, batch: Mapping[str, Tensor]) -> None:
        found = self(batch["image"]).float()
        kept = {"found": found[..., :COLUMNS], **{name: batch[name] for name in TRUTH}}
        if self.network.has_masks:
            kept |= {"cells": bytes_of(found[..., COLUMNS:]), **{name: batch[name] for name in MASKED}}
        self.outputs.append(kept)

    def on_validation_epoch_end(self) -> None:
        """Log `val/...`."""
        self._log_metrics("val", Detected(**gathered(self.outputs)))

    def on_test_epoch_end(self) -> None:
        """Log `test/...`; keep the detections for plots and intervals."""
        self.detected = Detected(**gathered(self.outputs))
        self.scored = judged(self.detected, len(self.classes))
        self._log_metrics("test", self.detected)

    def _log_metrics(self, split: str, rows: Detected) -> None:
        found, self.by_class = metrics.metrics_of(rows, self.schema["image_size"], len(self.classes))
        found |= metrics.mask_metrics_of(rows, self.schema["image_size"])
        values = {f"{split}/{name}": value for name, value in found.items()}
        self.log_dict(values, rank_zero_only=True, logger=False)  # Telemetry writes them at the optimizer step

    # What a run tells of itself after the test

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return 95 % bootstrap intervals of the last test's metrics."""
        return {} if self.scored is None else metrics.intervals(self.scored)

    def metric_of(self, rows: Judged, name: str) -> float:
        """Return one metric of judged detections, NaN where it is none of the main ones."""
        return metrics.quick(rows).get(name, float("nan"))

    def card(self) -> dict[str, Any]:
        """Return what a model card should say of this model and its last test."""
        return {
            "predicts": report.predicts(self.schema),
            "inputs": report.inputs(self.schema),
            "thresholds": {},
            "slices": {} if self.detected is None else report.slices(self.detected, self.classes, self.by_class),
            "limits": report.limits(self.schema),
        }

    def figures(self, datamodule: Any) -> dict[str, Figure]:
        """Return plots and pictures of the last test, by file name."""
        if self.detected is None or self.scored is None:
            return {}
        return report.figures(self.detected, self.scored, self.classes, datamodule.tensors["test"]["image"])

    def write_summaries(self, writer: Any, step: int) -> None:
        """Write the last test's table of classes to TensorBoard; pictures with boxes are among the figures."""
        if self.detected is not None:
            writer.add_text("test/classes", report.class_table(self.detected, self.classes, self.by_class), step)

    def test_baseline(self, baseline: Any, datamodule: Any) -> dict[str, float]:
        """Fit a baseline to the training pictures; return its test metrics, made as the network's are."""
        rows = datamodule.tensors["test"]
        if not len(rows["row"]):
            return {}
        found = baselines.detections(baseline.fit(datamodule.tensors["train"]), rows["image"])
        truth = {name: rows[name].cpu().numpy() for name in TRUTH}
        return metrics.metrics_of(Detected(found, **truth), self.schema["image_size"], len(self.classes))[0]
