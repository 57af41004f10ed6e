"""Text classification: loss, calibration and metrics of networks over token ids, as a LightningModule.

Shapes: B rows, L tokens, C classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Annotated, Any, Literal, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning import LightningModule
from torch import Tensor

from models import class_plots, classification, pruning
from models.calibration import Temperature
from models.classification import THRESHOLD, Classified
from models.graph import Graph
from models.optim import Recipe, Steps, adamw
from models.outputs import gathered
from models.sharding import shard_networks
from models.text import baselines, report
from models.text.export import graph_of
from models.text.networks import TextNetwork

Schema = Mapping[str, Any]

PREDICT_TOKENS = 65_536  # more at a time fill memory with activations and are no faster


class Training(Recipe):
    """How a text network is trained, whatever its architecture.

    Attributes:
        label_smoothing: share of the target that is spread over all classes.
        calibration: how probabilities are calibrated on validation.
    """

    label_smoothing: Annotated[float, Ge(0), Lt(1)]
    calibration: Literal["none", "temperature"]


class TextModule(LightningModule):
    """Trains a network of token ids to logits [B, C]; predicts calibrated probabilities of the classes.

    The temperature is fitted on the validation rows at the end of each validation epoch, so that every checkpoint
    holds its own.

    Args:
        schema: what the data module knows of the data (classes, tokenizer).
        network: the trained network.
        training: see `Training`.
    """

    class_weights: Tensor

    def __init__(self, schema: Schema, network: TextNetwork, **training: Unpack[Training]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.schema, self.training_options = schema, training
        self.classes: list[str] = list(schema["classes"])
        self.is_multi_label = bool(schema["multi_label"])
        self.network = network
        self.average = None if training["ema_decay"] is None else deepcopy(network).requires_grad_(False)
        self.calibration = Temperature(training["calibration"])
        weights = schema.get("class_weights") or [1.0] * len(self.classes)
        self.register_buffer("class_weights", torch.tensor(weights, dtype=torch.float32), persistent=False)
        self.outputs: list[dict[str, Tensor]] = []
        self.scored: Classified | None = None
        if training["compile"]:
            self.network.score = torch.compile(network.score, dynamic=True)  # type: ignore[method-assign]

    @property
    def scorer(self) -> TextNetwork:
        """The network that predicts: the averaged weights where there are such."""
        return self.network if self.average is None else self.average

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the calibrated probabilities of the classes, [B, C].

        Args:
            tokens: int64 [B, L], each row padded at its end with the schema's `pad_id`, however far.
        """
        return self.probability(self.scorer(tokens).float())

    def probability(self, logits: Tensor, calibration: Temperature | None = None) -> Tensor:
        """Return calibrated probabilities of logits [B, C]; they add up to 1 where a row has one class."""
        logits = (calibration or self.calibration)(logits)
        return torch.sigmoid(logits) if self.is_multi_label else torch.softmax(logits, dim=1)

    @torch.inference_mode()
    def predict_columns(self, batch: Mapping[str, Tensor], *, decision: str) -> dict[str, NDArray[Any]]:
        """Return what to add to a table: the label, and its calibrated probability, [B] each.

        Where a row may have several classes, the label is those of at least a half joined by commas, and the score the
        highest probability.

        Args:
            batch: the inputs of `forward` by name.
            decision: there is one here, the most probable class; asking for another is an error.
        """
        if decision != "cost":
            raise ValueError(f"decision={decision!r} needs thresholds, which a text's classes have not: leave it out")
        score = self._probabilities(batch["tokens"])
        if self.is_multi_label:
            names = np.array(self.classes, dtype=object)
            label = np.array([",".join(names[row]) for row in score >= THRESHOLD], dtype=object)
        else:
            label = np.array(self.classes, dtype=object)[score.argmax(axis=1)]
        return {"label": label, "score": score.max(axis=1)}

    def _probabilities(self, tokens: Tensor) -> NDArray[np.float32]:
        """Score rows of any lengths, those of about one length together."""
        lengths = (tokens != self.schema["tokenizer"]["pad_id"]).sum(dim=1)
        order = lengths.argsort(descending=True)
        found, start = torch.empty(len(tokens), len(self.classes), device=tokens.device), 0
        while start < len(order):
            longest = max(1, int(lengths[order[start]]))
            rows = order[start : start + max(1, PREDICT_TOKENS // longest)]
            found[rows] = self(tokens[rows, :longest])
            start += len(rows)
        return found.cpu().numpy()

    def export_graphs(self) -> list[Graph]:
        """Return what is exported: one graph, token ids to calibrated probabilities and labels."""
        return [graph_of(self.scorer, self.calibration, self.schema)]

    def pruned(
        self, ratio: float, *, how: pruning.Importance, batches: Iterable[Mapping[str, Tensor]]
    ) -> tuple[dict[str, int], dict[str, Tensor]]:
        """Return the constructor's arguments and the state dict of a smaller model; `batches` are training rows."""

        def loss(network: torch.nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
            return self._loss(network(batch["tokens"]), batch["target"])

        return pruning.pruned(self, ratio, how=how, batches=batches, loss=loss)

    @staticmethod
    def ensemble(modules: "Sequence[TextModule]", weights: Sequence[float]) -> "TextModule":
        """Return the weighted mean of trained modules as one; validating it calibrates it.

        Raises:
            ValueError: they do not take the same inputs.
        """
        from models.text.ensemble import TextEnsemble  # which is a TextModule itself

        return TextEnsemble.of(modules, weights)

    # Training

    def configure_model(self) -> None:
        """Shard the networks where the strategy asks for it; `num_blocks` decides how finely."""
        shard_networks(self)

    def loss_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss over the rows of one mini-batch, a scalar."""
        return self._loss(self.network.score(batch["tokens"]), batch["target"])

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        smoothing = self.training_options["label_smoothing"]
        if self.is_multi_label:
            smooth = target * (1 - smoothing) + smoothing / 2
            loss = F.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
            return (loss * torch.where(target > 0, self.class_weights, 1.0)).sum(dim=1).mean()
        loss = F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)
        # A mean over rows, not over weights: ranks whose rows weigh differently add up to what one process has.
        return (loss * self.class_weights[target]).mean()

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
        """Score one batch, without calibration; metrics are made of the whole set at the end of the epoch."""
        self._keep(batch, self.scorer(batch["tokens"]))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Score one batch by `forward`; metrics are made of the whole set at the end of the epoch."""
        self._keep(batch, self(batch["tokens"]))

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
        self._log_metrics("test", self.scored)

    def calibrated(self, raw: Classified, calibration: Temperature | None = None) -> Classified:
        """Return logits as probabilities; None for the module's own calibration."""
        logits = torch.from_numpy(raw.score).to(self.device)
        return Classified(self.probability(logits, calibration).cpu().numpy(), raw.target, raw.row)

    def _log_metrics(self, split: str, rows: Classified) -> None:
        found = classification.metrics_of(rows)
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
        return classification.metrics_of(rows)[name]

    def card(self) -> dict[str, Any]:
        """Return what a model card should say of this model and its last test."""
        return {
            "predicts": report.predicts(self.schema),
            "inputs": report.inputs(self.schema),
            "thresholds": dict.fromkeys(self.classes, THRESHOLD) if self.is_multi_label else {},
            "slices": {} if self.scored is None else report.slices(self.scored, self.classes),
            "limits": report.limits(self.schema),
        }

    def figures(self, datamodule: Any) -> dict[str, Figure]:
        """Return plots of the last test, by file name; its worst mistakes are kept for `write_summaries`."""
        if self.scored is None:
            return {}
        self.mistakes = report.mistakes(self.scored, self.classes, datamodule.texts["test"])
        return class_plots.figures(self.scored, self.classes)

    def write_summaries(self, writer: Any, step: int) -> None:
        """Write the last test's table of classes and its worst mistakes to TensorBoard."""
        if self.scored is not None:
            class_plots.write_tables(self.scored, self.classes, getattr(self, "mistakes", []), writer, step)

    def test_baseline(self, baseline: Any, datamodule: Any) -> dict[str, float]:
        """Fit a scikit-learn classifier of texts on the training rows; return its test metrics, made as the network's.

        Its temperature is fitted to its own validation scores.
        """
        texts, tensors = datamodule.texts, datamodule.tensors
        parts = {split: (texts[split], tensors[split]["target"]) for split in ("train", "val", "test")}
        fitted = baselines.fit(baseline, *parts["train"])
        temperature = Temperature(self.training_options["calibration"]).to(self.device)
        if len(parts["val"][1]):
            raw = baselines.scored(fitted, *parts["val"], num_classes=len(self.classes))
            temperature.fit(raw.score, raw.target)
        if not len(parts["test"][1]):
            return {}
        raw = baselines.scored(fitted, *parts["test"], num_classes=len(self.classes))
        return classification.metrics_of(self.calibrated(raw, temperature))
