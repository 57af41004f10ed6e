"""Sequence to sequence: loss, decoding and metrics of an encoder-decoder, as a LightningModule.

Shapes: B rows, S source tokens, T target tokens, L output tokens.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Unpack

import numpy as np
import torch
import torch.distributed
from annotated_types import Ge, Lt
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning import LightningModule
from tokenizers import Tokenizer
from torch import Tensor

from models import pruning
from models.graph import Graph
from models.optim import Recipe, Steps, adamw, is_distributed
from models.seq2seq import metrics, report
from models.seq2seq.decoding import Search, TorchStepper, joined, search
from models.seq2seq.export import GraphStepper, graph_inputs, graphs_of
from models.seq2seq.greedy import greedy_model
from models.seq2seq.metrics import Written
from models.seq2seq.network import Seq2SeqNetwork
from models.sharding import shard_networks, whole

Schema = Mapping[str, Any]

MOST_SCORES = 2**27  # log-probabilities that are held at once: half a gigabyte, and some times that of what they make
STEPS = 4  # of an output, after which the decoders of exported graphs are compared and timed


class Training(Recipe, Search):
    """How an encoder-decoder is trained and how it writes, whatever its architecture.

    Attributes:
        label_smoothing: share of the target that is spread over the vocabulary.
    """

    label_smoothing: Annotated[float, Ge(0), Lt(1)]


class Seq2SeqModule(LightningModule):
    """Trains a network of source tokens to target tokens; writes by beam search, while it is fitted greedily.

    Args:
        schema: what the data module knows of the data (tokenizer, lengths).
        network: the trained network.
        training: see `Training`.
    """

    metric_range = 100.0  # of BLEU, chrF and ROUGE

    def __init__(self, schema: Schema, network: Seq2SeqNetwork, **training: Unpack[Training]) -> None:
        super().__init__()
        if training["min_length"] > training["max_length"]:
            raise ValueError(
                f"min_length must be at most max_length, got {training['min_length']} and {training['max_length']}: "
                "change either"
            )
        self.automatic_optimization = False
        self.schema, self.training_options = schema, training
        self.network = network
        self.average = None if training["ema_decay"] is None else deepcopy(network).requires_grad_(False)
        self.tokenizer = Tokenizer.from_str(schema["tokenizer"]["json"])
        self.outputs: list[report.Row] = []
        self.rows: list[report.Row] = []
        self.scored: Written | None = None
        if training["compile"]:
            self.network.score = torch.compile(network.score, dynamic=True)  # type: ignore[method-assign]

    @property
    def scorer(self) -> Seq2SeqNetwork:
        """The network that predicts: the averaged weights where there are such."""
        return self.network if self.average is None else self.average

    def forward(self, source: Tensor) -> Tensor:
        """Return the tokens that it writes, int64 [B, L], the padding at the end of a row.

        Args:
            source: int64 [B, S], each row padded at its end with the schema's `pad_id`, however far.
        """
        tokens: Tensor = self.written(source)
        return tokens

    def written(self, source: Tensor, *, stepper: Any = None, **how: Any) -> Tensor:
        """Search the output for token ids [B, S]; `how` takes the place of options of `Search`.

        Many rows and a large vocabulary are searched in parts, which changes nothing but the memory.
        """
        options: Any = self.training_options
        asked: Any = {name: options[name] for name in Search.__annotations__} | how
        known = self.schema["tokenizer"]
        ids = {"start_id": known["cls_id"], "end_id": known["eos_id"], "pad_id": known["pad_id"]}
        stepper = stepper or TorchStepper(self.scorer)
        parts = torch.split(source, self._num_rows(asked["beams"]))
        return joined([search(stepper, part, asked, **ids) for part in parts], known["pad_id"])

    def _num_rows(self, num_each: int) -> int:
        """How many rows of so many scores over the vocabulary are taken at once."""
        return max(1, MOST_SCORES // (num_each * int(self.schema["tokenizer"]["vocab_size"])))

    def texts(self, tokens: Tensor) -> list[str]:
        """What token ids [B, L] say."""
        return self.tokenizer.decode_batch(tokens.tolist(), skip_special_tokens=True)

    @torch.inference_mode()
    def predict_columns(self, batch: Mapping[str, Tensor], *, decision: str) -> dict[str, NDArray[Any]]:
        """Return what to add to a table: the text that was written, [B].

        Args:
            batch: the inputs of `forward` by name.
            decision: there is none to take here; asking for another than the default is an error.
        """
        if decision != "cost":
            raise ValueError(f"decision={decision!r} needs thresholds, and a text has none: leave it out")
        return {"prediction": np.array(self.texts(self(batch["source"])), dtype=object)}

    def export_graphs(self) -> list[Graph]:
        """Return what is exported: the encoder, the decoder's first step, and its further steps."""
        return graphs_of(self.scorer, self.schema)

    @torch.inference_mode()
    def graph_inputs(self, batch: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Return what each graph takes for sources [B, S]: the decoders, a few tokens on."""
        tokens = self.written(batch["source"], beams=1, max_length=STEPS)
        return graph_inputs(self.scorer, batch["source"], tokens, self.schema)

    def stand_in(self, graphs: Mapping[str, Any]) -> Any:
        """Return a `forward` that writes by exported graphs, called by name with tensors by input name."""
        pad_id, shares_source = self.schema["tokenizer"]["pad_id"], self.scorer.shares_source
        stepper = GraphStepper(graphs, pad_id, shares_source=shares_source)
        return lambda source: self.written(source, stepper=stepper)

    def greedy(self, source: Tensor) -> Tensor:
        """Return the tokens that it writes with one beam for token ids [B, S], as `forward` does."""
        return self.written(source, beams=1)

    def greedy_graph(self, files: Mapping[str, Path]) -> Any:
        """Return one onnx.ModelProto that does what `greedy` does, made of the exported graphs by name.

        Raises:
            ValueError: a rule of the search is none that a graph keeps.
        """
        options: Any = self.training_options
        return greedy_model(files, options, self.schema["tokenizer"])

    def pruned(
        self, ratio: float, *, how: pruning.Importance, batches: Iterable[Mapping[str, Tensor]]
    ) -> tuple[dict[str, int], dict[str, Tensor]]:
        """Return the constructor's arguments and the state dict of a smaller model; `batches` are training rows."""

        def loss(network: Any, batch: Mapping[str, Any]) -> Tensor:
            mean: Tensor = network.score(batch["source"], batch["target"])[0].sum() / batch["global_tokens"]
            return mean

        return pruning.pruned(self, ratio, how=how, batches=batches, loss=loss)

    # Training

    def configure_model(self) -> None:
        """Shard the networks where the strategy asks for it."""
        shard_networks(self)

    def loss_of(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean loss over the tokens of one mini-batch, a scalar."""
        smoothing = self.training_options["label_smoothing"]
        smoothed, _ = self.network.score(batch["source"], batch["target"], smoothing=smoothing)
        # `Steps` weighs ranks by their rows; this is a mean over tokens, of which each rank has another number.
        share = batch["global_rows"] / max(1, len(smoothed)) / batch["global_tokens"]
        loss: Tensor = smoothed.sum() * share
        return loss

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

    def training_step(self, batches: list[dict[str, Any]], batch_idx: int) -> dict[str, Tensor]:
        """Take one optimizer step per mini-batch; return their losses [steps] for the callbacks."""
        return {"loss": self.steps.take(batches, self.loss_of)}

    # Evaluation

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Write one batch, greedily while the model is fitted; metrics are made of the whole set afterwards."""
        self._keep(batch, {"beams": 1} if self.trainer.state.fn == "fit" else {})

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Write one batch by `forward`; metrics are made of the whole set at the end of the epoch."""
        self._keep(batch, None)

    def _keep(self, batch: Mapping[str, Any], how: Mapping[str, Any] | None) -> None:
        source = batch["source"]
        if not len(source):  # of a global batch with fewer rows than there are ranks
            with whole(self.scorer):
                return
        with whole(self.scorer):  # ranks write rows of other lengths: they must not wait for each other's weights
            nll = self._nll(source, batch["target"])  # first: FSDP2 wants the root before its blocks
            tokens = self(source) if how is None else self.written(source, **how)
            if getattr(self.forward, "__func__", None) is not Seq2SeqModule.forward:  # graphs write, not torch
                nll = torch.full_like(nll, torch.nan)
        pad = self.schema["tokenizer"]["pad_id"]
        told = zip(
            batch["row"].tolist(),
            batch["source_text"],
            batch["reference"],
            self.texts(tokens),
            nll.tolist(),
            ((batch["target"] != pad).sum(dim=1) - 1).tolist(),
            (source != pad).sum(dim=1).tolist(),
            strict=True,
        )
        self.outputs += [report.Row(*values) for values in told]

    def _nll(self, source: Tensor, target: Tensor) -> Tensor:
        """Negative log-likelihood of targets [B, T], summed over their tokens, [B]; in parts as in `written`."""
        size = self._num_rows(target.shape[1])
        pairs = zip(torch.split(source, size), torch.split(target, size), strict=True)
        return torch.cat([self.scorer.score(*pair)[1] for pair in pairs])

    def on_validation_epoch_end(self) -> None:
        """Log `val/...`; show some outputs in TensorBoard."""
        rows, _ = self._finish("val")
        if self.logger is not None and self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self.logger.experiment.add_text("val/samples", report.samples(rows), self.global_step)  # type: ignore[attr-defined]

    def on_test_epoch_end(self) -> None:
        """Log `test/...`; keep the outputs for plots and intervals."""
        self.rows, self.scored = self._finish("test")

    def _finish(self, split: str) -> tuple[list[report.Row], Written]:
        rows = _gathered(self.outputs)
        found = report.written_of(rows, self.schema["languages"]["target"])
        values = metrics.metrics_of(found, [row.output for row in rows], [row.reference for row in rows])
        self.log_dict(
            {f"{split}/{name}": value for name, value in values.items()},
            rank_zero_only=True,
            logger=False,  # Telemetry writes them at the optimizer step
        )
        return rows, found

    # What a run tells of itself after the test

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Return 95 % bootstrap intervals of the last test's metrics."""
        return {} if self.scored is None else metrics.bootstrap_intervals(self.scored)

    def metric_of(self, rows: Written, name: str) -> float:
        """Return one metric of written rows; cheap where a bootstrap asks for it."""
        return metrics.metric_of(rows, name)

    def card(self) -> dict[str, Any]:
        """Return what a model card should say of this model and its last test."""
        return {
            "predicts": report.predicts(self.schema, self.training_options),
            "inputs": report.inputs(self.schema),
            "thresholds": {},
            "slices": {} if self.scored is None else report.slices(self.scored),
            "limits": report.limits(self.schema),
        }

    def figures(self, datamodule: Any) -> dict[str, Figure]:
        """Return plots of the last test, by file name."""
        return {} if self.scored is None else report.figures(self.scored)

    def write_summaries(self, writer: Any, step: int) -> None:
        """Write outputs of the last test to TensorBoard, and how BLEU was counted."""
        if self.scored is not None:
            writer.add_text("test/samples", report.samples(self.rows), step)
            signature = metrics.signature(self.schema["languages"]["target"])
            writer.add_text("test/bleu_signature", signature, step)

    def test_baseline(self, baseline: Any, datamodule: Any) -> dict[str, float]:
        """Fit a baseline on the training texts; return its test metrics, made as the network's.

        Raises:
            ValueError: it writes no texts.
        """
        if not hasattr(baseline, "write"):
            raise ValueError(f"a baseline must write texts; {type(baseline).__name__} does not")
        texts = datamodule.texts
        if not len(texts["test"]["target"]):
            return {}
        baseline.fit(texts["train"]["source"], texts["train"]["target"])
        outputs, references = baseline.write(texts["test"]["source"]), list(texts["test"]["target"])
        counts, rouge = metrics.statistics(outputs, references, self.schema["languages"]["target"])
        nothing = np.full(len(outputs), np.nan)
        return metrics.metrics_of(Written(counts, rouge, nothing, nothing, nothing), outputs, references)


def _gathered(outputs: list[report.Row]) -> list[report.Row]:
    """The rows of all ranks in the order of the data, and an empty list."""
    own = list(outputs)
    outputs.clear()
    if is_distributed():
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, own)
        own = [row for part in parts for row in part]
    return sorted(own, key=lambda row: row.number)
