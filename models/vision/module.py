"""Image classification: loss, calibration and metrics of networks over pictures, as a LightningModule.

Shapes: B rows, H x W pixels, C classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Annotated, Any, Literal, Unpack

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning import LightningModule
from torch import Tensor
from torch.nn import functional

from models import class_plots, classification, pruning
from models.calibration import Temperature
from models.classification import Classified
from models.graph import Graph
from models.optim import Recipe, Steps, adamw
from models.outputs import gathered
from models.sharding import shard_networks
from models.vision import baselines, embedding, report
from models.vision.export import graph_of
from models.vision.networks import VisionNetwork, training_size

Schema = Mapping[str, Any]

PREDICT_ROWS = 512  # more at a time fill memory with activations and are no faster


class Training(Recipe):
    """How an image network is trained, whatever its architecture.

    Attributes:
        first_size: side of the pictures in the first epoch as a share of the full one, to which they grow.
        label_smoothing: share of the target that is spread over all classes.
        calibration: how probabilities are calibrated on validation.
    """

    first_size: Annotated[float, Gt(0), Le(1)]
    label_smoothing: Annotated[float, Ge(0), Lt(1)]
    calibration: Literal["none", "temperature"]


class VisionModule(LightningModule):
    """Trains a network of pictures to logits [B, C]; predicts calibrated probabilities of the classes.

    The temperature is fitted on the validation rows at the end of each validation epoch, so that every checkpoint
    holds its own.

    Args:
        schema: what the data module knows of the data (classes, size, statistics of pixels).
        network: the trained network.
        training: see `Training`.
    """

    class_weights: Tensor

    def __init__(self, schema: Schema, network: VisionNetwork, **training: Unpack[Training]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.schema, self.training_options = schema, training
        self.classes: list[str] = list(schema["classes"])
        self.network = network
        self.average = None if training["ema_decay"] is None else deepcopy(network).requires_grad_(False)
        self.calibration = Temperature(training["calibration"])
        weights = schema.get("class_weights") or [1.0] * len(self.classes)
        self.register_buffer("class_weights", torch.tensor(weights, dtype=torch.float32), persistent=False)
        self.outputs: list[dict[str, Tensor]] = []
        self.scored: Classified | None = None
        self.embedded: list[dict[str, Tensor]] = []
        self.places: dict[str, NDArray[Any]] | None = None  # of the last test, for the projector
        self.thumbnails: Any = None
        if training["compile"]:
            self.network.score = torch.compile(network.score)  # type: ignore[method-assign]

    @property
    def scorer(self) -> VisionNetwork:
        """The network that predicts: the averaged weights where there are such."""
        return self.network if self.average is None else self.average

    def forward(self, image: Tensor) -> Tensor:
        """Return the calibrated probabilities of the classes, [B, C].

        Args:
            image: uint8 [B, H, W, 3], of any size.
        """
        return self.probability(self.scorer(image).float())

    def probability(self, logits: Tensor, calibration: Temperature | None = None) -> Tensor:
        """Return calibrated probabilities of logits [B, C]; they add up to 1."""
        return torch.softmax((calibration or self.calibration)(logits), dim=1)

    @torch.inference_mode()
    def predict_columns(self, batch: Mapping[str, Tensor], *, decision: str) -> dict[str, NDArray[Any]]:
        """Return what to add to a table: the label, and its calibrated probability, [B] each.

        Args:
            batch: the inputs of `forward` by name.
            decision: there is one here, the most probable class; asking for another is an error.
        """
        if decision != "cost":
            raise ValueError(f"decision={decision!r} needs thresholds, which an image's classes have not: leave it out")
        parts = [self(images) for images in torch.split(batch["image"], PREDICT_ROWS)]
        score = torch.cat(parts).cpu().numpy()
        return {"label": np.array(self.classes, dtype=object)[score.argmax(axis=1)], "score": score.max(axis=1)}

    def export_graphs(self) -> list[Graph]:
        """Return what is exported: one graph, bytes of pixels to calibrated probabilities and labels."""
        return [graph_of(self.scorer.folded(), self.calibration, self.schema)]

    def pruned(
        self, ratio: float, *, how: pruning.Importance, batches: Iterable[Mapping[str, Tensor]]
    ) -> tuple[dict[str, int], dict[str, Tensor]]:
        """Return the constructor's arguments and the state dict of a smaller model; `batches` are training rows."""

        def loss(network: torch.nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
            return self._loss(network(batch["image"]), batch)

        return pruning.pruned(self, ratio, how=how, batches=batches, loss=loss)

    @staticmethod
    def ensemble(modules: "Sequence[VisionModule]", weights: Sequence[float]) -> "VisionModule":
        """Return the weighted mean of trained modules as one; validating it calibrates it.

        Raises:
            ValueError: they do not take the same inputs.
        """
        from models.vision.ensemble import VisionEnsemble  # which is a VisionModule itself

        return VisionEnsemble.of(modules, weights)

    # Training

    def configure_model(self) -> None:
        """Shard the networks where the strategy asks for it; their `blocks` decide how finely."""
        shard_networks(self)

    def loss_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss over the rows of one mini-batch, a scalar."""
        return self._loss(self.network.score(batch["image"]), batch)

    def _loss(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        loss = self._loss_of(logits, batch["target"])
        if "share" in batch:  # of a picture that is mixed with another
            loss = batch["share"] * loss + (1 - batch["share"]) * self._loss_of(logits, batch["other_target"])
        return loss.mean()

    def _loss_of(self, logits: Tensor, target: Tensor) -> Tensor:
        smoothing = self.training_options["label_smoothing"]
        loss = functional.cross_entropy(logits.float(), target, reduction="none", label_smoothing=smoothing)
        # Rows are weighed, and their mean is over rows: ranks whose rows weigh differently add up to one process's.
        return loss * self.class_weights[target]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW, fused, over the trained network."""
        return adamw(self.network, self.training_options)

    def on_train_start(self) -> None:
        """Bind the optimizer, the schedule and the average into one loop over mini-batches."""
        self.steps = Steps.of(self, self.network, self.average, self.training_options)
        if self.training_options["first_size"] < 1:
            self._try_smaller()

    def _try_smaller(self) -> None:
        """Raise ValueError where training cannot begin with smaller pictures."""
        first = self.training_options["first_size"]
        if (self.trainer.max_epochs or 0) < 1:
            raise ValueError(f"first_size below 1 needs trainer.max_epochs, over which pictures grow; got {first}")
        self.network.training_size = self._training_size(epoch=0)
        try:
            with torch.no_grad():
                self.network.score(torch.zeros(1, 8, 8, 3, dtype=torch.uint8, device=self.device))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"first_size must be 1 for this network, which does not take pictures of {self.network.training_size}; "
                f"got {first} ({(str(error).splitlines() or [type(error).__name__])[0]})"
            ) from error

    def _training_size(self, *, epoch: int) -> tuple[int, int] | None:
        """A function of the epoch, so that a resumed run goes on with the same."""
        first = self.training_options["first_size"]
        if first == 1:
            return None
        return training_size(
            self.network.pixels.size, first=first, epoch=epoch, num_epochs=self.trainer.max_epochs or 1
        )

    @property
    def seconds_communicating(self) -> float:
        """Time that this rank has spent in averaging gradients."""
        return self.steps.seconds_reducing

    def training_step(self, batches: list[dict[str, Tensor]], batch_idx: int) -> dict[str, Tensor]:
        """Take one optimizer step per mini-batch; return their losses [steps] for the callbacks."""
        self.network.training_size = self._training_size(epoch=self.current_epoch)
        return {"loss": self.steps.take(batches, self.loss_of)}

    # Evaluation

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Score one batch, without calibration; metrics are made of the whole set at the end of the epoch."""
        self._keep(batch, self.scorer(batch["image"]))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Score one batch by `forward`; metrics are made of the whole set at the end of the epoch."""
        with embedding.before_decision(self.scorer) as kept:
            score = self(batch["image"])
        self._keep(batch, score)
        if found := embedding.some(kept, batch["row"]):
            self.embedded.append(found)

    def _keep(self, batch: Mapping[str, Tensor], score: Tensor) -> None:
        self.outputs.append({"score": score.float(), "target": batch["target"], "row": batch["row"]})

    def on_validation_epoch_end(self) -> None:
        """Fit the temperature, then log `val/...`."""
        raw = Classified.of(**gathered(self.outputs))
        if not self.trainer.sanity_checking:
            self.calibration.fit(raw.score, raw.target)
        self._log_metrics("val", self.calibrated(raw))

    def on_test_epoch_end(self) -> None:
        """Log `test/...`; keep the scores for plots and intervals."""
        self.scored = Classified.of(**gathered(self.outputs))
        self.places = gathered(self.embedded) if self.embedded else None
        self._log_metrics("test", self.scored)

    def calibrated(self, raw: Classified, calibration: Temperature | None = None) -> Classified:
        """Return logits as probabilities; None for the module's own calibration."""
        logits = torch.from_numpy(raw.score).to(self.device)
        return Classified(self.probability(logits, calibration).cpu().numpy(), raw.target, raw.row)

    def _log_metrics(self, split: str, rows: Classified) -> None:
        found = report.metrics_of(rows)
        values = {f"{split}/{name}": value for name, value in found.items() if not np.isnan(value)}
        self.log_dict(values, rank_zero_only=True, logger=False)  # Telemetry writes them at the optimizer step

    # What a run tells of itself after the test

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return 95 % bootstrap intervals of the last test's metrics."""
        return {} if self.scored is None else classification.bootstrap_intervals(self.scored)

    def metric_of(self, rows: Classified, name: str) -> float:
        """Return one metric of calibrated scores; cheap where a bootstrap asks for it."""
        if name in classification.BOOTSTRAPPED:
            return classification.BOOTSTRAPPED[name](rows)
        return report.metrics_of(rows)[name]

    def card(self) -> dict[str, Any]:
        """Return what a model card should say of this model and its last test."""
        return {
            "predicts": report.predicts(self.schema),
            "inputs": report.inputs(self.schema),
            "thresholds": {},
            "slices": {} if self.scored is None else classification.per_class(self.scored, self.classes),
            "limits": report.limits(self.schema),
        }

    def figures(self, datamodule: Any) -> dict[str, Figure]:
        """Return plots and pictures of the last test, by file name."""
        if self.scored is None:
            return {}
        images, names = datamodule.tensors["test"]["image"], datamodule.names["test"]
        self.mistakes, self.thumbnails = report.mistakes(self.scored, self.classes, names), images
        return report.figures(self.scored, self.classes, images)

    def write_summaries(self, writer: Any, step: int) -> None:
        """Write the last test's table of classes, its worst mistakes and its projector to TensorBoard."""
        if self.scored is None:
            return
        class_plots.write_tables(self.scored, self.classes, getattr(self, "mistakes", []), writer, step)
        if self.places is not None and self.thumbnails is not None:
            labels = report.labels(self.scored, self.classes, self.places["row"])
            embedding.write(self.places, labels, self.thumbnails, writer, step)

    def test_baseline(self, baseline: Any, datamodule: Any) -> dict[str, float]:
        """Fit a scikit-learn classifier of pictures on the training rows; return its test metrics, as the network's.

        Its temperature is fitted to its own validation scores.
        """
        parts = {split: datamodule.tensors[split] for split in ("train", "val", "test")}
        fitted = baselines.fit(baseline, parts["train"]["image"], parts["train"]["target"])
        temperature = Temperature(self.training_options["calibration"]).to(self.device)
        scored = {
            split: baselines.scored(fitted, rows["image"], rows["target"], num_classes=len(self.classes))
            for split, rows in parts.items()
            if split != "train" and len(rows["target"])
        }
        if "val" in scored:
            temperature.fit(scored["val"].score, scored["val"].target)
        return report.metrics_of(self.calibrated(scored["test"], temperature)) if "test" in scored else {}
