"""Fraud detection on tables: networks, loss, calibration, thresholds and metrics as LightningModules.

Shapes: B rows, F numeric and boolean columns, C categorical, T timestamps, K ensemble members.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Annotated, Any, Literal, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning import LightningModule
from torch import Tensor

from models import baselines, metrics, plots, pruning
from models.calibration import Calibration, Method
from models.fraud import report
from models.fraud.export import Detector, graph_of
from models.graph import Graph
from models.optim import Recipe, Steps, adamw
from models.outputs import gathered
from models.sharding import shard_networks
from models.tabular import TableNetwork

Schema = Mapping[str, Any]

INPUTS = ("numeric", "categorical", "timestamp")
PREDICT_ROWS = 8_192  # more at a time fill memory with activations and are no faster
ENCODE_ROWS = 8_192  # more at a time leave the cache

# First in every table.
HEADLINE = ("average_precision", "roc_auc", "card_precision_at_100", "recall_at_1pct", "cost_saved_share")


class Training(Recipe):
    """How a fraud network is trained, whatever its architecture.

    Attributes:
        loss: cross-entropy, focal (Lin et al., 2017) or logit-adjusted (Menon et al., 2021).
        focal_gamma: focusing exponent; only with `loss=focal`.
        positive_weight: weight of a positive row in the loss; 1 leaves it alone.
        calibration: how probabilities are calibrated on validation.
    """

    loss: Literal["bce", "focal", "logit_adjusted"]
    focal_gamma: Annotated[float, Ge(0)]
    positive_weight: Annotated[float, Gt(0)]
    calibration: Method


class FraudModule(LightningModule):
    """Trains a network of (numeric, categorical, timestamp) -> logits [B, K]; predicts a calibrated probability.

    Calibration and thresholds are fitted on the validation rows at the end of each validation epoch, so that every
    checkpoint holds its own.

    Args:
        schema: what the data module knows of the data (columns, target, costs).
        network: the trained network.
        training: see `Training`.
    """

    threshold_cost: Tensor
    threshold_budget: Tensor

    def __init__(self, schema: Schema, network: TableNetwork, **training: Unpack[Training]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.schema, self.training_options = schema, training
        self.network = network
        self.average = None if training["ema_decay"] is None else deepcopy(network).requires_grad_(False)
        self.calibration = Calibration(training["calibration"])
        self.register_buffer("threshold_cost", torch.tensor(0.5))
        self.register_buffer("threshold_budget", torch.tensor(0.5))
        rate = min(max(float(schema["target"]["rate"]), 1e-6), 1 - 1e-6)
        self.prior_logit = float(np.log(rate / (1 - rate)))
        self.outputs: list[dict[str, Tensor]] = []
        self.scored: metrics.Scored | None = None
        if training["compile"]:
            self.network.score = torch.compile(network.score)  # type: ignore[method-assign]

    @property
    def scorer(self) -> TableNetwork:
        """The network that predicts: the averaged weights where there are such."""
        return self.network if self.average is None else self.average

    def raw_probability(self, numeric: Tensor, categorical: Tensor, timestamp: Tensor) -> Tensor:
        """Return the members' mean probability before calibration, [B]."""
        logits: Tensor = self.scorer(numeric, categorical, timestamp)
        return torch.sigmoid(logits).mean(dim=1)

    def forward(self, numeric: Tensor, categorical: Tensor, timestamp: Tensor) -> Tensor:
        """Return the calibrated probability of the positive class, [B].

        Args:
            numeric: float32 [B, F] as in the table, NaN where missing.
            categorical: int64 [B, C] codes of the schema's categories, 0 for unknown or missing.
            timestamp: int64 [B, T] seconds since 1970 UTC.
        """
        probability: Tensor = self.calibration(self.raw_probability(numeric, categorical, timestamp))
        return probability

    @torch.inference_mode()
    def predict_columns(self, batch: Mapping[str, Tensor], *, decision: str) -> dict[str, NDArray[Any]]:
        """Return what to add to a table: the calibrated probability, and 1 where it reaches a threshold, [B] each.

        Args:
            batch: the inputs of `forward` by name.
            decision: the threshold: of least "cost", or of the alert "budget".
        """
        thresholds = {"cost": self.threshold_cost, "budget": self.threshold_budget}
        if decision not in thresholds:
            raise ValueError(f"decision must be one of {', '.join(thresholds)}; got {decision!r}")
        inputs = (torch.split(batch[name], PREDICT_ROWS) for name in INPUTS)
        score = torch.cat([self(*part) for part in zip(*inputs, strict=True)])
        is_alert = score >= thresholds[decision]
        return {"score": score.cpu().numpy(), "decision": is_alert.to(torch.int8).cpu().numpy()}

    def export_graphs(self) -> list[Graph]:
        """Return what is exported: one graph, raw columns to calibrated probability and decisions."""
        thresholds = torch.stack([self.threshold_cost, self.threshold_budget])
        return [graph_of(Detector(self.scorer, self.calibration, thresholds), self.schema)]

    def pruned(
        self, ratio: float, *, how: pruning.Importance, batches: Iterable[Mapping[str, Tensor]]
    ) -> tuple[dict[str, int], dict[str, Tensor]]:
        """Return the constructor's arguments and the state dict of a smaller model; `batches` are training rows."""

        def loss(network: torch.nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
            return self._loss(network(**_inputs(batch)), batch)

        return pruning.pruned(self, ratio, how=how, batches=batches, loss=loss)

    @staticmethod
    def ensemble(modules: "Sequence[FraudModule]", weights: Sequence[float]) -> "FraudModule":
        """Return the weighted mean of trained modules as one; validating it calibrates it and sets its thresholds.

        Raises:
            ValueError: they do not take the same inputs.
        """
        from models.fraud.ensemble import FraudEnsemble  # which is a FraudModule itself

        return FraudEnsemble.of(modules, weights)

    # Training

    def configure_model(self) -> None:
        """Shard the networks where the strategy asks for it; `num_blocks` decides how finely."""
        shard_networks(self)

    def loss_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean loss over rows and members of one mini-batch with its `encoded` features, a scalar."""
        return self._loss(self.network.score(batch["encoded"], batch["categorical"]), batch)

    def _loss(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        options = self.training_options
        target = batch["target"].unsqueeze(1).expand_as(logits)
        if options["loss"] == "logit_adjusted":
            logits = logits + self.prior_logit
        if options["loss"] == "bce" and options["positive_weight"] == 1 and not self.schema.get("weight"):
            return F.binary_cross_entropy_with_logits(logits, target)
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        if options["loss"] == "focal":
            loss = loss * (1 - torch.exp(-loss)) ** options["focal_gamma"]
        weight = batch["weight"].unsqueeze(1) * torch.where(target > 0, options["positive_weight"], 1.0)
        return (loss * weight).mean()

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
        return {"loss": self.steps.take(self._encoded(batches), self.loss_of)}

    def _encoded(self, batches: list[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """Add `encoded` to mini-batches: what is not learned is computed once for as many as fit `ENCODE_ROWS`."""
        group = max(1, ENCODE_ROWS // max(1, len(batches[0]["target"])))
        for start in range(0, len(batches), group):
            part = batches[start : start + group]
            columns = (torch.cat([batch[name] for batch in part]) for name in ("numeric", "timestamp"))
            with torch.no_grad():
                encoded = self.network.encoding(*columns)
            for batch, own in zip(part, encoded.split([len(batch["target"]) for batch in part]), strict=True):
                yield {**batch, "encoded": own}

    # Evaluation

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Score one batch, without calibration; metrics are made of the whole set at the end of the epoch."""
        self._keep(batch, self.raw_probability(**_inputs(batch)))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Score one batch by `forward`; metrics are made of the whole set at the end of the epoch."""
        self._keep(batch, self(**_inputs(batch)))

    def _keep(self, batch: Mapping[str, Tensor], score: Tensor) -> None:
        kept = {name: batch[name] for name in ("target", "weight", "amount", "day", "customer")}
        self.outputs.append({"score": score.float(), **kept})

    def on_validation_epoch_end(self) -> None:
        """Fit calibration and thresholds, then log `val/...`."""
        raw = self._gathered()
        if not self.trainer.sanity_checking:
            self.fit_decisions(raw)
        self._log_metrics("val", self._calibrated(raw))

    def on_test_epoch_end(self) -> None:
        """Log `test/...` at the thresholds of validation; keep the scores for plots and intervals."""
        self.scored = self._gathered()
        self._log_metrics("test", self.scored)

    def fit_decisions(self, raw: metrics.Scored) -> None:
        """Fit calibration, then the thresholds of least cost and of the alert budget, to raw validation scores."""
        self.calibration.fit(raw.score, raw.target, raw.weight)
        rows, cost = self._calibrated(raw), self.schema["cost"]
        self.threshold_cost.fill_(metrics.threshold_of_least_cost(rows, cost["false_positive"]))
        ranked = metrics.Ranked.of(rows.score, rows.target, rows.weight)
        self.threshold_budget.fill_(metrics.threshold_at_alert_share(ranked, cost["alert_budget"]))

    def metrics_of(self, rows: metrics.Scored) -> dict[str, float]:
        """Return every metric of calibrated scores: the ranking's, and the decisions' at both thresholds."""
        false_positive = self.schema["cost"]["false_positive"]
        by_cost = metrics.at_threshold(rows, float(self.threshold_cost), false_positive)
        by_budget = metrics.at_threshold(rows, float(self.threshold_budget), false_positive)
        found = {
            **metrics.ranking(rows),
            **by_cost,
            "precision_at_budget": by_budget["precision"],
            "recall_at_budget": by_budget["recall"],
        }
        return {name: found[name] for name in (*HEADLINE, *(name for name in found if name not in HEADLINE))}

    def _calibrated(self, raw: metrics.Scored) -> metrics.Scored:
        score = self.calibration(torch.from_numpy(raw.score).to(self.threshold_cost)).double().cpu().numpy()
        return metrics.Scored(score, raw.target, raw.weight, raw.amount, raw.day, raw.customer)

    def _gathered(self) -> metrics.Scored:
        """Return all ranks' outputs of the epoch, each row once; the order of rows differs between numbers of ranks."""
        columns = gathered(self.outputs)
        return metrics.Scored.of(columns["score"], columns)

    def _log_metrics(self, split: str, rows: metrics.Scored) -> None:
        values = {f"{split}/{name}": value for name, value in self.metrics_of(rows).items() if not np.isnan(value)}
        self.log_dict(values, rank_zero_only=True, logger=False)  # Telemetry writes them at the optimizer step

    # What a run tells of itself after the test

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return 95 % bootstrap intervals of the last test's ranking metrics."""
        return {} if self.scored is None else metrics.bootstrap_intervals(self.scored)

    def metric_of(self, rows: metrics.Scored, name: str) -> float:
        """Return one metric of calibrated scores; cheap where a bootstrap asks for it."""
        if name in metrics.BOOTSTRAPPED:
            return metrics.BOOTSTRAPPED[name](metrics.Ranked.of(rows.score, rows.target, rows.weight))
        return self.metrics_of(rows)[name]

    def card(self) -> dict[str, Any]:
        """Return what a model card should say of this model and its last test."""
        target = self.schema["target"]
        return {
            "predicts": f"the calibrated probability that {target['name']} is {target['positive']}, and whether it "
            "reaches each threshold",
            "inputs": report.inputs(self.schema),
            "thresholds": {"cost": float(self.threshold_cost), "budget": float(self.threshold_budget)},
            "slices": {} if self.scored is None else report.slices(self, self.scored),
            "limits": report.limits(self.schema),
        }

    def figures(self, datamodule: Any) -> dict[str, Figure]:
        """Return plots of the last test, by file name."""
        if self.scored is None:
            return {}
        return {
            **plots.detector_figures(
                self.scored, threshold=float(self.threshold_cost), false_positive=self.schema["cost"]["false_positive"]
            ),
            "importance": plots.importance(report.permutation_importance(self, datamodule.tensors["test"])),
        }

    def write_summaries(self, writer: Any, step: int) -> None:
        """Write the last test's precision-recall curve and table of thresholds to TensorBoard."""
        if self.scored is not None:
            report.write_summaries(self, self.scored, writer, step)

    def test_baseline(self, baseline: Any, datamodule: Any) -> dict[str, float]:
        """Fit a scikit-learn classifier on the training rows; return its test metrics, made as the network's are.

        Calibration and thresholds are fitted to its own validation scores.
        """
        tensors = datamodule.tensors
        baselines.fit(baseline, tensors["train"], weighted=bool(self.schema.get("weight")))
        options: Any = {**self.training_options, "ema_decay": None, "compile": False}
        judge = FraudModule(self.schema, self.network, **options)  # whose network is not asked
        if len(tensors["val"]["target"]):
            judge.fit_decisions(baselines.scored(baseline, tensors["val"]))
        return judge.metrics_of(judge._calibrated(baselines.scored(baseline, tensors["test"])))


def _inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: batch[name] for name in INPUTS}
