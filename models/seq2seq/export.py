"""The encoder-decoder as three graphs, cut and named as in Hugging Face's Optimum, and ONNX Runtime writing by them.

`encoder_model` reads a source; `decoder_model` takes the first step and makes the keys and values of the source;
`decoder_with_past_model` takes each further step. Where tokens can be copied, both decoders also take the source.

Shapes: R rows, S source tokens, P target tokens decoded so far, T next ones, W width, H heads, D size of a head.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.graph import Graph
from models.seq2seq.network import KeyValue, Memory, Seq2SeqNetwork
from models.transformer import attended

Arrays = dict[str, NDArray[Any]]
Run = Callable[[Arrays], Arrays]  # a graph: arrays by input name to arrays by output name

ENCODER, FIRST, NEXT = "encoder_model", "decoder_model", "decoder_with_past_model"
ROWS, SOURCE, TARGET = 3, 7, 5  # of the examples


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
    hidden = torch.randn(ROWS, SOURCE, network.width, generator=generator)
    blocks = range(network.num_decoder_blocks)
    kinds = [f"{index}.{of}.{part}" for index in blocks for of in ("decoder", "encoder") for part in ("key", "value")]
    size = (network.num_heads, network.head_size)
    past = {
        f"past_key_values.{kind}": torch.randn(
            ROWS, size[0], TARGET if ".decoder." in kind else SOURCE, size[1], generator=generator
        )
        for kind in kinds
    }
    from_source = {0: "rows", 1: "source"}
    copied = {"encoder_input_ids": ids} if network.can_copy else {}
    encoder = Graph(
        name=ENCODER,
        module=Encoder(network).eval(),
        inputs={"input_ids": ids, "attention_mask": mask},
        outputs=("last_hidden_state",),
        dynamic={"input_ids": from_source, "attention_mask": from_source},
    )
    first = Graph(
        name=FIRST,
        module=FirstStep(network).eval(),
        inputs={
            "input_ids": ids[:, :TARGET].contiguous(),  # the exporter keeps strides
            "encoder_attention_mask": mask,
            "encoder_hidden_states": hidden,
            **copied,
        },
        outputs=("logits", *(f"present.{kind}" for kind in kinds)),
        dynamic={
            "input_ids": {0: "rows", 1: "target"},
            **dict.fromkeys(("encoder_attention_mask", "encoder_hidden_states", *copied), from_source),
        },
        tolerance=1e-3,
        is_first=False,
    )
    further = Graph(
        name=NEXT,
        module=NextStep(network).eval(),
        inputs={
            "input_ids": ids[:, :1].contiguous(),
            "encoder_attention_mask": mask,
            "past_key_values": past,
            **({"encoder_hidden_states": hidden} | copied if copied else {}),
        },
        outputs=("logits", *(f"present.{kind}" for kind in kinds if ".decoder." in kind)),
        dynamic={
            "input_ids": {0: "rows"},
            **{
                f"past_key_values.{kind}": {0: "rows", 2: "past" if ".decoder." in kind else "source"} for kind in kinds
            },
            **dict.fromkeys(
                ("encoder_attention_mask", *(("encoder_hidden_states", "encoder_input_ids") if copied else ())),
                from_source,
            ),
        },
        tolerance=1e-3,
        is_first=False,
    )
    return [encoder, first, further]


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
        graphs: each takes arrays by input name, whatever else is among them, and gives arrays by output name.
        pad_id: token id of padding.
    """

    def __init__(self, graphs: Mapping[str, Run], pad_id: int) -> None:
        self.graphs, self.pad_id = graphs, pad_id

    def start(self, source: Tensor) -> Arrays:
        """Read token ids [B, S]."""
        ids = source.cpu().numpy() if source.shape[1] else np.full((len(source), 1), self.pad_id)
        mask = (ids != self.pad_id).astype(np.int64)
        hidden = self.graphs[ENCODER]({"input_ids": ids, "attention_mask": mask})["last_hidden_state"]
        return {"encoder_input_ids": ids, "encoder_attention_mask": mask, "encoder_hidden_states": hidden}

    def step(self, tokens: Tensor, state: Arrays) -> tuple[Tensor, Arrays]:
        """Take the last tokens [R, 1]; return log-probabilities [R, V] and the new state."""
        graph = self.graphs[FIRST if len(state) == 3 else NEXT]
        found = graph({**state, "input_ids": tokens.cpu().numpy()})
        logits = torch.from_numpy(found.pop("logits")[:, -1]).to(tokens.device)
        return logits, state | {name.replace("present", "past_key_values"): values for name, values in found.items()}

    def reorder(self, state: Arrays, rows: Tensor, sentences: Tensor | None) -> Arrays:
        """Keep rows; each has its own copy of its source, which beams of one sentence need not exchange."""
        index = rows.cpu().numpy()
        if sentences is not None or len(index) != len(state["encoder_input_ids"]):
            return {name: values.take(index, axis=0) for name, values in state.items()}
        if (index == np.arange(len(index))).all():
            return state
        own = {name: values.take(index, axis=0) for name, values in state.items() if ".decoder." in name}
        return state | own
