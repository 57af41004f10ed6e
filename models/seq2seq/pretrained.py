"""Encoder-decoders of `transformers` (the extra `hf`): loaded by name, or made again from a plain config.

Shapes: B rows, R rows of the decoder (B, or B times the beams), S source tokens, T target tokens, V vocabulary.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from inspect import signature
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from models.dropout import RowDropout
from models.pretrained import (
    Config,
    add_lora,
    config_of,
    layers_of,
    library,
    merged,
    naming,
    plain,
    quiet,
    weights_of,
)
from models.pruning import Units
from models.seq2seq.likelihood import said_and_even
from models.seq2seq.network import KeyValue, Memory, Seq2SeqNetwork
from models.transformer import attended

# What falls between layers, by the names of one family or another; and what falls inside of attention, by a random
# state of its own, or leaves out whole layers: not alike on any number of ranks.
DROPOUTS = ("dropout", "dropout_rate")
NO_DROPOUTS = ("attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop")


class Made(TypedDict):
    """What a checkpoint keeps of a pretrained model beside its weights.

    Attributes:
        config: of `transformers`, as plain values.
        prefix: token ids that its decoder starts with: its own start token, and where it has one the forced first
            token, as BART has.
    """

    config: Config
    prefix: list[int]


def load(name: str, *, dropout: float) -> tuple[nn.Module, Made]:
    """Return a pretrained encoder-decoder and what makes it again.

    Args:
        name: on the hub, or a local folder.
        dropout: between its layers.

    Raises:
        ValueError: there is none of this name, or it does not write.
    """
    transformers = quiet()
    rule = "pretrained must be the name of a sequence-to-sequence model on the Hugging Face hub or its local folder"
    with naming(rule, name):
        config = transformers.AutoConfig.from_pretrained(name)
        if not config.is_encoder_decoder:
            raise ValueError("it has no encoder and decoder")
        for key, value in [*((key, dropout) for key in DROPOUTS), *((key, 0.0) for key in NO_DROPOUTS)]:
            if hasattr(config, key):
                setattr(config, key, value)
        model = weights_of(transformers.AutoModelForSeq2SeqLM, name, config)
        prefix = _prefix(model)
    return model, {"config": plain(config), "prefix": prefix}


def remake(made: Made) -> nn.Module:
    """Return the model of what `load` gave, its weights as they were drawn; needs no hub and no folder."""
    auto = library("transformers").AutoModelForSeq2SeqLM
    model: nn.Module = auto.from_config(config_of(made["config"]), dtype=torch.float32)
    return model


def _prefix(model: Any) -> list[int]:
    known = model.generation_config
    start = known.bos_token_id if known.decoder_start_token_id is None else known.decoder_start_token_id
    if start is None:
        raise ValueError("its config says no decoder_start_token_id")
    return [int(start), *([] if known.forced_bos_token_id is None else [int(known.forced_bos_token_id)])]


class Alike(TorchFunctionMode):
    """Every dropout inside falls by row: many models call it as a function, where no module could be put instead."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function; dropout is that of the network's `RowDropout`, or none."""
        if func is functional.dropout:
            return self._dropped(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def __init__(self, dropout: RowDropout) -> None:
        super().__init__()
        self.dropout = dropout

    def _dropped(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        dropped: Tensor = self.dropout(input) if p > 0 and training else input
        return dropped


class PretrainedEncoderDecoder(Seq2SeqNetwork):
    """An encoder-decoder of `transformers`, which writes tokens of the tokenizer and no others.

    The start token of a target stands for the model's own: `decode` puts its prefix there. Its dropout between layers
    falls alike on any number of ranks; that inside of attention is left out.

    Args:
        schema: of the data.
        model: with a head over its vocabulary; changed in place.
        prefix: token ids that its decoder starts with.
        dropout: between layers.
        lora_rank: of low-rank updates of its matrices, which then are all that trains; 0 trains all weights.
    """

    can_copy = False
    shares_source = False

    def __init__(
        self, schema: Mapping[str, Any], model: nn.Module, *, prefix: list[int], dropout: float, lora_rank: int
    ) -> None:
        super().__init__(schema)
        config: Any = model.config
        check_sizes(model, self.vocab_size, schema, len(prefix))
        self.prefix, self.dropout = prefix, RowDropout(dropout)
        self.width = int(config.hidden_size)
        self.num_heads = int(getattr(config, "decoder_attention_heads", config.num_attention_heads))
        self.head_size = int(getattr(config, "d_kv", self.width // self.num_heads))
        for module in model.modules():
            if "Attention" in type(module).__name__ and isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0  # type: ignore[assignment]  # T5's is not told apart from that between layers
        # transformers 5.24 has renamed it, and will forget the old name.
        self.cache_name = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
        self.stacks = [f"model.{name}" for name in stacks_of(model)]
        if lora_rank:
            add_lora(model, lora_rank, leave=model.get_output_embeddings())  # type: ignore[operator]
        self.model = model.train()  # from_pretrained leaves it in eval mode, and Lightning leaves it as it is
        self.num_decoder_blocks = len(self.layers[1])

    @property
    def layers(self) -> list[nn.ModuleList]:
        """The layers of the encoder and of the decoder."""
        found = [self.get_submodule(name) for name in self.stacks]
        return [layers for layers in found if isinstance(layers, nn.ModuleList)]

    @property
    def blocks(self) -> list[nn.Module]:
        """Its large parts, which FSDP2 gathers one at a time."""
        return [block for layers in self.layers for block in layers]

    def encode(self, source: Tensor, is_token: Tensor | None = None) -> Memory:
        """Read token ids [B, S], padded at the end of a row; those that the tokenizer has not count as unknown."""
        source = self.lengthened(source)
        is_token = (source != self.pad_id).long() if is_token is None else is_token
        mask = attended(is_token > 0)
        encoder: Any = self.model.get_encoder()  # type: ignore[operator]
        hidden = encoder(input_ids=self.known(source), attention_mask=mask[:, 0, 0].long()).last_hidden_state
        return self.remember(None, hidden, is_token)

    def remember(self, source: Tensor | None, hidden: Tensor, is_token: Tensor) -> Memory:
        """The memory of what `encode` has read; a first step tells its keys and values, whatever they are made by."""
        mask = attended(is_token > 0)
        start = torch.full_like(is_token[:, :1], self.prefix[0])
        _, cache = self._step(start, Memory(None, hidden, (), mask), cached([]))
        return Memory(None, hidden, pairs_of(cache.cross_attention_cache), mask)

    def decode(
        self, tokens: Tensor, memory: Memory, past: tuple[KeyValue, ...] | None = None
    ) -> tuple[Tensor, tuple[KeyValue, ...]]:
        """Return logits [R, T, V] of the tokens [R, T], and what the next step wants as `past`."""
        length = tokens.shape[1]
        cache = cached(memory.cross, past or ())
        logits, cache = self._step(self._begun(tokens) if past is None else tokens, memory, cache)
        return logits[:, -length:], pairs_of(cache.self_attention_cache)

    def _begun(self, tokens: Tensor) -> Tensor:
        """The tokens [R, T] with the model's prefix for the start token, which comes first."""
        prefix = (torch.full_like(tokens[:, :1], token) for token in self.prefix)
        return torch.cat([*prefix, tokens[:, 1:]], dim=1)

    def _step(self, tokens: Tensor, memory: Memory, cache: Any) -> tuple[Tensor, Any]:
        mask = memory.mask[:, 0, 0].long()
        # Of a source whose keys and values are cached, no more than its length is looked at.
        hidden = mask.unsqueeze(2).float() if memory.hidden is None else memory.hidden
        made = self.model(
            encoder_outputs=(hidden,),
            attention_mask=mask,
            decoder_input_ids=tokens,
            use_cache=True,
            **{self.cache_name: cache},
        )
        return made.logits[..., : self.vocab_size], cache  # which has grown in place

    def log_probabilities(self, hidden: Tensor, memory: Memory) -> Tensor:
        """Logs of the probabilities of the next token, float32 [R, T, V], of logits."""
        return hidden.float().log_softmax(dim=2)

    def kept(self, memory: Memory, rows: Tensor, sentences: Tensor | None) -> Memory:
        """The memory of the decoder's rows [R'], each with its own copy of its source."""
        if sentences is None and len(rows) == len(memory.mask):
            return memory  # a row's beams change places with each other: they have one source
        return memory.rows(rows)

    def score(self, source: Tensor, target: Tensor, *, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return the smoothed loss and the negative log-likelihood, summed over a row's tokens: [B] each."""
        if len(source):
            with Alike(self.dropout) if self.training else nullcontext():
                return self._score(self.lengthened(source), target, smoothing)
        # A rank without rows computes one beside the others, that counts for nothing.
        was_training = self.training
        padding = source.new_full((1, 2), self.pad_id)
        smoothed, nll = self.eval()._score(padding, padding, smoothing)
        self.train(was_training)
        return smoothed[:0], nll[:0]

    def _score(self, source: Tensor, target: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
        wanted = target[:, 1:]
        logits = self.model(
            input_ids=self.known(source),
            attention_mask=attended(source != self.pad_id)[:, 0, 0].long(),
            decoder_input_ids=self._begun(target[:, :-1]),
            use_cache=False,
        ).logits[:, -wanted.shape[1] :, : self.vocab_size]
        is_token = (wanted != self.pad_id).float()
        flat = said_and_even(logits.float().flatten(0, 1), wanted.flatten())
        said, even = (-(values.view_as(wanted) * is_token).sum(dim=1) for values in flat)
        return (1 - smoothing) * said + smoothing * even, said

    def to_export(self) -> "PretrainedEncoderDecoder":
        """Return a copy for the exporter: low-rank updates merged, attention in plain operations."""
        copied = merged(self)
        copied.model.set_attn_implementation("eager")  # type: ignore[operator]  # the fused one cannot be taken apart
        return copied

    def units(self) -> list[Units]:
        """Raise ValueError: how its layers hang together is not known."""
        raise ValueError("a pretrained model cannot be pruned: leave prune.ratio out")

    def depth(self, parameter: str) -> int:
        """How many layers a parameter lies below the top of its own stack: 0 for the head, most for embeddings."""
        for name, layers in zip(self.stacks, self.layers, strict=True):
            number = re.match(rf"{re.escape(name)}\.(\d+)\.", parameter)
            if number:
                return len(layers) - int(number[1])
        return max(map(len, self.layers)) + 1 if re.search("embed|shared", parameter) else 0


def cached(cross: Iterable[KeyValue], past: Iterable[KeyValue] = ()) -> Any:
    """The cache of `transformers` that holds these keys and values of each layer, not copied."""
    library_of = library("transformers").cache_utils
    caches = library_of.DynamicCache(), library_of.DynamicCache()
    for cache, pairs in zip(caches, (past, cross), strict=True):
        for key, value in pairs:
            layer = library_of.DynamicLayer()
            layer.keys, layer.values, layer.is_initialized = key, value, True
            layer.dtype, layer.device = key.dtype, key.device
            cache.layers.append(layer)
    return library_of.EncoderDecoderCache(*caches)


def pairs_of(cache: Any) -> tuple[KeyValue, ...]:
    """The keys and values of each layer."""
    return tuple((layer.keys, layer.values) for layer in cache.layers)


def stacks_of(model: Any) -> list[str]:
    """The names of the lists of layers of a model's encoder and of its decoder."""
    names = {id(module): name for name, module in model.named_modules()}
    return [f"{names[id(stack)]}.{layers_of(stack)}" for stack in (model.get_encoder(), model.get_decoder())]


def check_sizes(model: Any, vocab_size: int, schema: Mapping[str, Any], num_first: int) -> None:
    """Raise ValueError where token ids or places are beyond the model's tables; `num_first` tokens start an output."""
    tables = (model.get_encoder(), model.get_decoder(), model)
    known = min(int(table.get_input_embeddings().num_embeddings) for table in tables)
    known = min(known, int(model.get_output_embeddings().out_features))
    if vocab_size > known:
        raise ValueError(
            f"data.tokenizer has {vocab_size:,} pieces, of which the model knows {known:,}: give its tokenizer.json"
        )
    most = getattr(model.config, "max_position_embeddings", None)
    if most is None:
        return
    for option, length, own in (
        ("source", schema["max_source_length"], 0),
        ("target", schema["max_target_length"], num_first),
    ):
        if length + own > most:
            raise ValueError(
                f"data.max_{option}_length must be at most {most - own}, the model's longest text; got {length}"
            )
