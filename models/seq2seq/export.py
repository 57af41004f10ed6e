"""The encoder-decoder as three graphs, cut and named as in Hugging Face's Optimum, and ONNX Runtime writing by them.

`encoder_model` reads a source; `decoder_model` takes the first step and makes the keys and values of the source;
`decoder_with_past_model` takes each further step. Where tokens can be copied, both decoders also take the source. The
rows of a further step may be several to a sentence, its beams, one after another, if the network `shares_source`.

Shapes: R rows, S source tokens, P target tokens decoded so far, T next ones, W width, H heads, D size of a head.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.graph import Graph
from models.seq2seq.network import KeyValue, Memory, Seq2SeqNetwork
from models.transformer import attended

Tensors = dict[str, Tensor]
Run = Callable[[Tensors], Tensors]  # a graph: tensors by input name to tensors by output name

ENCODER, FIRST, NEXT = "encoder_model", "decoder_model", "decoder_with_past_model"
ROWS, SOURCE, TARGET, BEAMS = 3, 7, 5, 2  # of the examples


class Encoder(nn.Module):
    """Token ids [R, S] to hidden states [R, S, W]."""

    def __init__(self, network: Seq2SeqNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Read a source; the mask is 1 at its tokens, and 0 at the padding after them."""
        return self.network.encode(input_ids, attention_mask).hidden


class FirstStep(nn.Module):
    """The tokens that an output starts with to log-probabilities [R, T, V] and all keys and values."""

    def __init__(self, network: Seq2SeqNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        input_ids: Tensor,
        encoder_attention_mask: Tensor,
        encoder_hidden_states: Tensor,
        encoder_input_ids: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Take the first step; the source's own ids are what is copied."""
        memory = self.network.remember(encoder_input_ids, encoder_hidden_states, encoder_attention_mask)
        hidden, present = self.network.decode(input_ids, memory)
        both = zip(present, memory.cross, strict=True)
        return self.network.log_probabilities(hidden, memory), *(part for own, cross in both for part in (*own, *cross))


class NextStep(nn.Module):
    """One further token to log-probabilities [R, 1, V] and the keys and values of the output, which has grown by it."""

    def __init__(self, network: Seq2SeqNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        input_ids: Tensor,
        encoder_attention_mask: Tensor,
        past_key_values: dict[str, Tensor],
        encoder_hidden_states: Tensor | None = None,
        encoder_input_ids: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Take a step; `past_key_values` are four of each block: of the output, then of the source."""
        parts = list(past_key_values.values())
        fours = [parts[place : place + 4] for place in range(0, len(parts), 4)]
        past: tuple[KeyValue, ...] = tuple((own, other) for own, other, _, _ in fours)
        cross = tuple((key, value) for _, _, key, value in fours)
        mask = attended(encoder_attention_mask > 0)
        memory = Memory(encoder_input_ids, encoder_hidden_states, cross, mask)  # type: ignore[arg-type]
        hidden, present = self.network.decode(input_ids, memory, past)
        return self.network.log_probabilities(hidden, memory), *(part for own in present for part in own)


def graphs_of(network: Seq2SeqNetwork, schema: Mapping[str, Any]) -> list[Graph]:
    """The three graphs, of any number of rows and tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, int(schema["tokenizer"]["vocab_size"]), (ROWS, SOURCE), generator=generator)
    mask = torch.ones(ROWS, SOURCE, dtype=torch.int64)
    mask[1, SOURCE // 2 :] = 0
    encoder = Graph(
        name=ENCODER,
        module=Encoder(network).eval(),
        inputs={"input_ids": ids, "attention_mask": mask},
        outputs=("last_hidden_state",),
        dynamic=dict.fromkeys(("input_ids", "attention_mask"), {0: "rows", 1: "source"}),
    )
    hidden = torch.randn(ROWS, SOURCE, network.width, generator=generator)
    copied = {"encoder_input_ids": ids} if network.can_copy else {}
    read = {"encoder_attention_mask": mask, "encoder_hidden_states": hidden, **copied}
    return [encoder, _first_step(network, ids, read), _next_step(network, ids, read, generator)]


def _first_step(network: Seq2SeqNetwork, ids: Tensor, read: Mapping[str, Tensor]) -> Graph:
    return Graph(
        name=FIRST,
        module=FirstStep(network).eval(),
        inputs={"input_ids": ids[:, :TARGET].contiguous(), **read},  # the exporter keeps strides
        outputs=("logits", *(f"present.{kind}" for kind in _kinds(network))),
        dynamic={"input_ids": {0: "rows", 1: "target"}, **dict.fromkeys(read, {0: "rows", 1: "source"})},
        tolerance=1e-3,
        is_first=False,
    )


def _next_step(network: Seq2SeqNetwork, ids: Tensor, read: Mapping[str, Tensor], generator: torch.Generator) -> Graph:
    beams, of_source = (BEAMS, "sentences") if network.shares_source else (1, "rows")
    shapes = {"decoder": (ROWS * beams, network.num_heads, TARGET), "encoder": (ROWS, network.num_heads, SOURCE)}
    vary = {"decoder": {0: "rows", 2: "past"}, "encoder": {0: of_source, 2: "source"}}
    kinds = {f"past_key_values.{kind}": kind.split(".")[1] for kind in _kinds(network)}
    past = {name: torch.randn(*shapes[of], network.head_size, generator=generator) for name, of in kinds.items()}
    mask, *copied = read.items() if network.can_copy else list(read.items())[:1]
    inputs: dict[str, Any] = {"input_ids": ids[:, :1].repeat_interleave(beams, dim=0), mask[0]: mask[1]}
    return Graph(
        name=NEXT,
        module=NextStep(network).eval(),
        inputs=inputs | {"past_key_values": past, **dict(copied)},  # in the order of `forward`
        outputs=("logits", *(f"present.{kind}" for kind in _kinds(network) if ".decoder." in kind)),
        dynamic={
            "input_ids": {0: "rows"},
            **{name: vary[of] for name, of in kinds.items()},
            **{name: {0: of_source, 1: "source"} for name, _ in (mask, *copied)},
        },
        tolerance=1e-3,
        is_first=False,
    )


def _kinds(network: Seq2SeqNetwork) -> list[str]:
    """Keys and values of each block, of the output and of the source."""
    blocks = range(network.num_decoder_blocks)
    return [f"{index}.{of}.{part}" for index in blocks for of in ("decoder", "encoder") for part in ("key", "value")]


def graph_inputs(
    network: Seq2SeqNetwork, source: Tensor, tokens: Tensor, schema: Mapping[str, Any]
) -> dict[str, dict[str, Tensor]]:
    """What each graph takes when outputs begin with these tokens [R, T], the last of which is the further step's."""
    known = schema["tokenizer"]
    ids = torch.cat([tokens.new_full((len(tokens), 1), known["cls_id"]), tokens], dim=1)
    mask = (source != known["pad_id"]).long()
    hidden = Encoder(network)(source, mask)
    given = {"encoder_attention_mask": mask, "encoder_hidden_states": hidden, "encoder_input_ids": source}
    _, *present = FirstStep(network)(ids[:, :-1], mask, hidden, source)
    graphs = graphs_of(network, schema)
    kinds = [name for name in graphs[1].outputs if name != "logits"]
    past = {name.replace("present", "past_key_values"): part for name, part in zip(kinds, present, strict=True)}
    made = {
        ENCODER: {"input_ids": source, "attention_mask": mask},
        FIRST: given | {"input_ids": ids[:, :-1]},
        NEXT: given | past | {"input_ids": ids[:, -1:]},
    }
    return {offered.name: {name: made[offered.name][name] for name in offered.flat} for offered in graphs}


class GraphStepper:
    """The three graphs as a `decoding.Stepper`: the same search writes by them as by torch.

    Args:
        graphs: each takes tensors on the CPU by input name, whatever else is among them, and gives them by output name.
        pad_id: token id of padding.
        shares_source: of the network that was exported.
    """

    def __init__(self, graphs: Mapping[str, Run], pad_id: int, *, shares_source: bool) -> None:
        self.graphs, self.pad_id, self.shares_source = graphs, pad_id, shares_source

    def start(self, source: Tensor) -> Tensors:
        """Read token ids [B, S]."""
        ids = source.cpu() if source.shape[1] else torch.full((len(source), 1), self.pad_id)
        mask = (ids != self.pad_id).long()
        hidden = self.graphs[ENCODER]({"input_ids": ids, "attention_mask": mask})["last_hidden_state"]
        return {"encoder_input_ids": ids, "encoder_attention_mask": mask, "encoder_hidden_states": hidden}

    def step(self, tokens: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        """Take the last tokens [R, 1]; return log-probabilities [R, V] and the new state."""
        graph = self.graphs[FIRST if len(state) == 3 else NEXT]
        found = graph({**state, "input_ids": tokens.cpu()})
        logits = found.pop("logits")[:, -1].to(tokens.device)
        return logits, state | {name.replace("present", "past_key_values"): values for name, values in found.items()}

    def reorder(self, state: Tensors, rows: Tensor, sentences: Tensor | None) -> Tensors:
        """Keep rows and sentences, or rows that each have a copy of its source, which beams need not exchange."""
        own, index = {name: values for name, values in state.items() if ".decoder." in name}, rows.cpu()
        source = {name: values for name, values in state.items() if name not in own}
        if self.shares_source:
            kept = None if sentences is None else sentences.cpu()
        else:
            kept = index if sentences is not None or len(index) != len(state["encoder_input_ids"]) else None
        if kept is not None:
            source = {name: values.index_select(0, kept) for name, values in source.items()}
        return source | {name: values.index_select(0, index) for name, values in own.items()}
