"""The encoder-decoder as one ONNX graph that writes by itself: its three graphs put together, and an ONNX Loop.

It writes what `decoding.search` writes with one beam. The keys and values of the output go from turn to turn and grow;
those of the source are made once, ahead of the loop.

Shapes: R rows, S source tokens, L output tokens, V vocabulary.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from models.seq2seq.decoding import Search
from models.seq2seq.export import ENCODER, FIRST, NEXT

NAME, INPUT, OUTPUT = "greedy_model", "input_ids", "output_ids"
TURN, GOING, TOKEN, ENDED, WRITTEN = "turn", "is_going", "token", "has_ended", "written"  # of the loop

Names = Mapping[str, str]


def greedy_model(files: Mapping[str, Path], how: Search, tokenizer: Mapping[str, Any]) -> ModelProto:
    """Put the three graphs together: token ids int64 [R, S] to token ids int64 [R, L].

    A row ends with the end token, and padding follows; L is the longest row's, at most `max_length` + 1.

    Args:
        files: the graphs of `export.graphs_of`, by name.
        how: whose lengths are kept; the number of beams counts as 1.
        tokenizer: the schema's.

    Raises:
        ValueError: no n-gram may occur twice, of which the graph knows nothing.
    """
    if how["no_repeat_ngram"]:
        raise ValueError(
            f"a graph that writes greedily has no rule against repeated n-grams, and the model has no_repeat_ngram="
            f"{how['no_repeat_ngram']}: train with model.no_repeat_ngram=0, or search by the three graphs"
        )
    graphs = {name: onnx.load(files[name]) for name in (ENCODER, FIRST, NEXT)}
    made = Making(how, tokenizer)
    memory = made.read(graphs[ENCODER])
    output = made.write(graphs[FIRST], graphs[NEXT], memory)
    ids = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", size])
        for name, size in ((INPUT, "source"), (OUTPUT, "output"))
    ]
    nodes = [*made.weights.nodes, *made.nodes, helper.make_node("Identity", [output], [OUTPUT], name=OUTPUT)]
    graph = helper.make_graph(nodes, NAME, ids[:1], ids[1:], initializer=list(made.weights.tensors))
    encoder = graphs[ENCODER]
    return helper.make_model(graph, opset_imports=encoder.opset_import, ir_version=encoder.ir_version)


class Weights:
    """Initializers, each of them once: the graphs share an embedding, and its transpose makes the logits."""

    def __init__(self) -> None:
        self.tensors: list[TensorProto] = []
        self.nodes: list[NodeProto] = []
        self.names: dict[tuple[Any, ...], str] = {}

    def add(self, name: str, values: NDArray[Any]) -> str:
        """Return the name of what has these values; where nothing has, of a new initializer."""
        key = _identity(values)
        if key not in self.names:
            turned = self.names.get(_identity(values.T)) if values.ndim == 2 else None
            if turned is None:
                self.tensors.append(numpy_helper.from_array(values, name))
            else:  # a session does this once, when it opens the graph
                self.nodes.append(helper.make_node("Transpose", [turned], [name], name=name, perm=[1, 0]))
            self.names[key] = name
        return self.names[key]


def _identity(values: NDArray[Any]) -> tuple[Any, ...]:
    return values.dtype.str, values.shape, values.tobytes()


class Making:
    """A graph in the making.

    Args:
        how: the search's lengths.
        tokenizer: the schema's.
    """

    def __init__(self, how: Search, tokenizer: Mapping[str, Any]) -> None:
        self.weights, self.nodes, self.how = Weights(), list[NodeProto](), how
        ids = {name: np.array(tokenizer[f"{name}_id"]) for name in ("pad", "cls", "eos")}
        self.pad, self.start, self.end = (self.constant(f"{name}_id", value) for name, value in ids.items())
        never = np.zeros(tokenizer["vocab_size"], np.float32)
        never[ids["pad"]] = -np.inf
        early = never.copy()
        early[ids["eos"]] = -np.inf
        self.banned, self.banned_early = self.constant("banned", never), self.constant("banned_early", early)

    def constant(self, name: str, value: Any) -> str:
        """The name of a constant; whole numbers are int64."""
        return self.weights.add(f"greedy/{name}", np.asarray(value))

    def add(self, kind: str, inputs: Iterable[str], output: str, **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        name = f"greedy/{output}"  # no name of a graph that is inlined
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def inline(self, model: ModelProto, name: str, given: Names) -> dict[str, str]:
        """Add a graph's nodes, fed with what is named in `given`; return the names of its outputs."""
        names = {value.name: given[value.name] for value in model.graph.input}
        for tensor in model.graph.initializer:
            names[tensor.name] = self.weights.add(f"{name}/{tensor.name}", numpy_helper.to_array(tensor))
        for node in model.graph.node:
            copy = NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{name}/{node.output[0]}"
            names |= {output: f"{name}/{output}" for output in node.output}
            copy.input[:] = [names[one] if one else "" for one in node.input]
            copy.output[:] = [names[one] if one else "" for one in node.output]
            self.nodes.append(copy)
        return {value.name: names[value.name] for value in model.graph.output}

    def read(self, encoder: ModelProto) -> dict[str, str]:
        """Read the source; return what the decoders take of it."""
        # A source without any token is one of padding: attention to nothing is no number.
        one = self.constant("one", [1])
        length = self.add("Shape", [INPUT], "source_length", start=1)
        lacking = self.add("Max", [self.add("Sub", [one, length], "shorter"), self.constant("zero", [0])], "lacking")
        pads = self.add("Concat", [self.constant("no_pads", [0, 0, 0]), lacking], "pads", axis=0)
        ids = self.add("Pad", [INPUT, pads, self.pad], "source")
        is_pad = self.add("Equal", [ids, self.pad], "is_padding")
        mask = self.add("Cast", [self.add("Not", [is_pad], "is_token")], "mask", to=TensorProto.INT64)
        hidden = self.inline(encoder, "encoder", {"input_ids": ids, "attention_mask": mask})
        taken = {"encoder_hidden_states": hidden["last_hidden_state"]}
        return taken | {"encoder_input_ids": ids, "encoder_attention_mask": mask}

    def write(self, first: ModelProto, further: ModelProto, memory: Names) -> str:
        """Take the first step and loop over the others; return the name of the tokens."""
        rows = self.add("Shape", [memory["encoder_input_ids"]], "num_rows", start=0, end=1)
        shape = self.add("Concat", [rows, self.constant("one", [1])], "column_shape", axis=0)
        starts = self.add("Expand", [self.start, shape], "starts")
        found = self.inline(first, "first", {**memory, "input_ids": starts})
        banned = self.banned_early if self.how["min_length"] else self.banned
        token, ended = self.choose(found.pop("logits"), self.constant("nothing_ended", [[False]]), banned, "first")
        present = {name.replace("present", "past_key_values"): made for name, made in found.items()}
        written, ended = self.loop(further, memory, present, token, ended)
        last = self.add("Where", [ended, self.pad, self.end], "ends")
        is_going = self.add("Reshape", [self.is_going(ended, "all"), self.constant("one", [1])], "is_any_unended")
        number = self.add("Cast", [is_going], "num_ends", to=TensorProto.INT64)
        zero, one = self.constant("zero", [0]), self.constant("one", [1])
        return self.add("Concat", [written, self.add("Slice", [last, zero, number, one], "end")], "whole", axis=1)

    def choose(self, logits: str, ended: str, banned: str, name: str) -> tuple[str, str]:
        """Take the likeliest tokens, and padding in rows that have ended; return them and which rows have now."""
        scores = self.add("Add", [logits, banned], f"{name}/scores")
        best = self.add("ArgMax", [scores], f"{name}/best", axis=2, keepdims=0)
        token = self.add("Where", [ended, self.pad, best], f"{name}/token")
        is_end = self.add("Equal", [token, self.end], f"{name}/is_end")
        return token, self.add("Or", [ended, is_end], f"{name}/has_ended")

    def is_going(self, ended: str, name: str) -> str:
        """Whether any row has not ended."""
        running = self.add("Cast", [self.add("Not", [ended], f"{name}/running")], f"{name}/runs", to=TensorProto.INT64)
        number = self.add("ReduceSum", [running], f"{name}/num_running", keepdims=0)
        return self.add("Cast", [number], f"{name}/is_going", to=TensorProto.BOOL)

    def loop(self, further: ModelProto, memory: Names, present: Names, token: str, ended: str) -> tuple[str, str]:
        """Add the loop over the further steps; return the names of what is written and of which rows have ended."""
        own = {name: made for name, made in present.items() if ".decoder." in name}  # the others stay as they are
        is_going = self.is_going(ended, "first")
        before, self.nodes = self.nodes, []
        results = self.turn(further, {**memory, **present, **{name: name for name in own}}, list(own))
        ahead, within = _parted(self.nodes, {TURN, GOING, TOKEN, ENDED, WRITTEN, *own})
        self.nodes = [*before, *ahead]
        inputs = _carried(further, list(own))
        outputs = [helper.make_value_info(name, one.type) for name, one in zip(results, inputs[1:], strict=True)]
        body = helper.make_graph(within, "turn", inputs, outputs)
        turns = self.constant("most_turns", self.how["max_length"] - 1)
        begun = [turns, is_going, token, ended, token, *own.values()]
        made = [f"last/{name}" for name in (TOKEN, ENDED, WRITTEN, *own)]
        self.nodes.append(helper.make_node("Loop", begun, made, name="loop", body=body))
        return made[2], made[1]

    def turn(self, further: ModelProto, given: Names, own: list[str]) -> list[str]:
        """Add what a turn of the loop does; return the names of whether there is another, and of what that one takes.

        In the n-th turn, counted from 0, the (n + 2)-nd token is written.
        """
        found = self.inline(further, "next", {**given, "input_ids": TOKEN})
        is_early = self.add("Less", [TURN, self.constant("turns_early", self.how["min_length"] - 1)], "is_early")
        banned = self.add("Where", [is_early, self.banned_early, self.banned], "banned_now")
        token, ended = self.choose(found["logits"], ENDED, banned, "next")
        written = self.add("Concat", [WRITTEN, token], "next/written", axis=1)
        grown = [found[name.replace("past_key_values", "present")] for name in own]
        return [self.is_going(ended, "next"), token, ended, written, *grown]


def _parted(nodes: list[NodeProto], varying: set[str]) -> tuple[list[NodeProto], list[NodeProto]]:
    """The nodes that make the same in each turn, which belong ahead of the loop, and the others."""
    ahead, within = list[NodeProto](), list[NodeProto]()
    for node in nodes:
        if varying.isdisjoint(node.input):
            ahead.append(node)
        else:
            varying.update(node.output)
            within.append(node)
    return ahead, within


def _carried(further: ModelProto, own: list[str]) -> list[ValueInfoProto]:
    """The inputs of the loop's body; sizes that grow or vary have no name, which would tie them to each other."""
    scalars = {TURN: TensorProto.INT64, GOING: TensorProto.BOOL}
    columns = {TOKEN: (TensorProto.INT64, 1), ENDED: (TensorProto.BOOL, 1), WRITTEN: (TensorProto.INT64, None)}
    caches = {value.name: value.type.tensor_type for value in further.graph.input}
    return [
        *(helper.make_tensor_value_info(name, kind, []) for name, kind in scalars.items()),
        *(helper.make_tensor_value_info(name, kind, [None, size]) for name, (kind, size) in columns.items()),
        *(
            helper.make_tensor_value_info(
                name, caches[name].elem_type, [size.dim_value or None for size in caches[name].shape.dim]
            )
            for name in own
        ),
    ]
