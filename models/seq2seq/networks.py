"""A transformer encoder-decoder over token ids that can copy from its source.

Shapes: B rows, R rows of the decoder (B, or B times the beams), S source tokens, T target tokens, P target tokens
decoded so far, W width, H heads, D size of a head, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.dropout import RowDropout
from models.pruning import Slice, Units
from models.seq2seq.likelihood import said_and_even
from models.seq2seq.network import KeyValue, Memory, Seq2SeqNetwork
from models.transformer import EncoderBlock, Rotation, attended, attention, rotated, rotation


def by_sentence(values: Tensor, num_sentences: int) -> Tensor:
    """Values of the decoder's rows [R, T, W] as [B, R / B * T, W]: the beams of a sentence look at one source."""
    # The exporter asks for -1, which of no rows could be anything.
    size = -1 if torch.compiler.is_exporting() else len(values) // max(1, num_sentences) * values.shape[1]
    return values.reshape(num_sentences, size, values.shape[2])


class DecoderBlock(nn.Module):
    """Pre-norm causal self-attention with rotary positions, attention to the source, and GEGLU."""

    def __init__(self, width: int, num_heads: int, *, head_size: int, feed_size: int, dropout: float) -> None:
        super().__init__()
        inner = num_heads * head_size
        self.num_heads, self.head_size, self.dropout = num_heads, head_size, RowDropout(dropout)
        self.attention_norm, self.cross_norm, self.feed_norm = (nn.RMSNorm(width) for _ in range(3))
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        self.query = nn.Linear(width, inner, bias=False)
        self.cross_out = nn.Linear(inner, width, bias=False)
        self.feed_in = nn.Linear(width, 2 * feed_size, bias=False)
        self.feed_out = nn.Linear(feed_size, width, bias=False)

    def forward(
        self, hidden: Tensor, cross: KeyValue, mask: Tensor, turns: Rotation, past: KeyValue | None
    ) -> tuple[Tensor, KeyValue]:
        """Transform [R, T, W]; return it and the keys and values of all tokens up to now, [R, H, P + T, D].

        Without `past` the T tokens are the first ones, and none sees a later one; with it, T is 1.
        """
        qkv = self.qkv(self.attention_norm(hidden)).unflatten(2, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = rotated(query, turns), rotated(key, turns)
        if past is None:
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
            mixed = attention(query, key, value)
        hidden = hidden + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        hidden = hidden + self.dropout(self._from_source(self.cross_norm(hidden), cross, mask))
        gate, feed = self.feed_in(self.feed_norm(hidden)).chunk(2, dim=2)
        return hidden + self.dropout(self.feed_out(functional.gelu(gate) * feed)), (key, value)

    def _from_source(self, hidden: Tensor, cross: KeyValue, mask: Tensor) -> Tensor:
        """Attend to the source, [R, T, W]. The beams of a row are queries of one attention: nothing is repeated."""
        rows, length = hidden.shape[:2]
        query = by_sentence(self.query(hidden), len(mask))
        query = query.view(*query.shape[:2], self.num_heads, self.head_size).transpose(1, 2)
        mixed = attention(query, *cross, mask)
        output: Tensor = self.cross_out(mixed.transpose(1, 2).reshape(rows, length, -1))
        return output

    def units(self, name: str, key_value: str) -> list[Units]:
        """Heads, of both attentions, and feed-forward units of the block of this name; `key_value` is a layer's."""
        size = self.head_size
        heads = (
            Slice(f"{name}.qkv.weight", 0, outer=3, inner=size),
            Slice(f"{name}.out.weight", 1, inner=size),
            Slice(f"{name}.query.weight", 0, inner=size),
            Slice(f"{key_value}.weight", 0, outer=2, inner=size),
            Slice(f"{name}.cross_out.weight", 1, inner=size),
        )
        gated = (Slice(f"{name}.feed_in.weight", 0, outer=2), Slice(f"{name}.feed_out.weight", 1))
        return [
            Units("num_heads", self.num_heads, heads, also={"head_size": size}),
            Units("feed_size", self.feed_out.in_features, gated),
        ]


class Copying(nn.Module):
    """Pointer-generator (See et al., 2017, arXiv 1704.04368): each next token is generated, or copied from the source.

    Args:
        width: of the hidden states.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, 1)
        nn.init.constant_(self.gate.bias, -2.0)  # begins by generating

    def forward(self, hidden: Tensor, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logs of generating and of copying, [R, T, 1] each, and where from, [R, T, S]."""
        grouped = by_sentence(self.query(hidden), len(memory.mask))
        weight = grouped @ memory.hidden.transpose(1, 2) * hidden.shape[2] ** -0.5
        weight = weight.masked_fill(~memory.mask[:, 0], float("-inf")).float().softmax(dim=2)
        gate = self.gate(hidden).float()
        places = weight.view(*hidden.shape[:2], weight.shape[2])
        return functional.logsigmoid(-gate), functional.logsigmoid(gate), places


class EncoderDecoder(Seq2SeqNetwork):
    """A pre-norm encoder and decoder; source, target and output share one embedding (Press & Wolf, arXiv 1608.05859).

    Args:
        schema: of the data.
        width: of a token's vector.
        num_encoder_blocks: blocks that read the source.
        num_decoder_blocks: blocks that write the target.
        num_heads: attention heads of each.
        dropout: of the vectors that go in and of what each block adds.
        copy: whether tokens of the source can be copied.
        head_size: of each head; None for width / num_heads.
        feed_size: of the feed-forward layers; None for 2 * width.
    """

    shares_source = True

    def __init__(
        self,
        schema: Mapping[str, Any],
        *,
        width: int,
        num_encoder_blocks: int,
        num_decoder_blocks: int,
        num_heads: int,
        dropout: float,
        copy: bool,
        head_size: int | None = None,
        feed_size: int | None = None,
    ) -> None:
        super().__init__(schema)
        size = head_size or width // num_heads
        if (head_size is None and width % num_heads) or size % 2:
            raise ValueError(
                f"width must be a multiple of 2 * num_heads, got width={width} and num_heads={num_heads}: change either"
            )
        self.width, self.num_heads, self.head_size = width, num_heads, size
        self.num_decoder_blocks, self.can_copy = num_decoder_blocks, copy
        self.embedding = nn.Embedding(self.vocab_size, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.dropout = RowDropout(dropout)
        sizes: dict[str, Any] = {"head_size": size, "feed_size": feed_size or 2 * width, "dropout": dropout}
        self.encoder_blocks = nn.ModuleList(EncoderBlock(width, num_heads, **sizes) for _ in range(num_encoder_blocks))
        self.decoder_blocks = nn.ModuleList(DecoderBlock(width, num_heads, **sizes) for _ in range(num_decoder_blocks))
        # Not in the blocks: they are needed before a block is, and FSDP2 gathers a block when it is called.
        pairs = (nn.Linear(width, 2 * num_heads * size, bias=False) for _ in range(num_decoder_blocks))
        self.key_values = nn.ModuleList(pairs)
        for weight in self._last_weights():  # what a block adds starts small, the more so in a deep network
            nn.init.normal_(weight, std=(4 * num_decoder_blocks * weight.shape[1]) ** -0.5)
        self.encoder_norm, self.norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.copying = Copying(width) if copy else None

    @property
    def blocks(self) -> list[nn.Module]:
        """Its large parts, which FSDP2 gathers one at a time."""
        return [*self.encoder_blocks, *self.decoder_blocks]

    def _last_weights(self) -> Iterator[Tensor]:
        for name, parameter in chain(self.encoder_blocks.named_parameters(), self.decoder_blocks.named_parameters()):
            if name.endswith(("out.weight",)):
                yield parameter

    def encode(self, source: Tensor, is_token: Tensor | None = None) -> Memory:
        """Read token ids [B, S], padded at the end of a row; those that the tokenizer has not count as unknown.

        `is_token`, [B, S], is above 0 at the tokens; None for those that are no padding.
        """
        source = self.lengthened(source)
        is_token = (source != self.pad_id).long() if is_token is None else is_token
        source = self.known(source)
        mask = attended(is_token > 0)
        hidden = self.dropout(self.embedding(source) * self.width**0.5)
        turns = rotation(source.shape[1], self.head_size, hidden)
        for block in self.encoder_blocks:
            hidden = block(hidden, mask, turns)
        return self._memory(source, self.encoder_norm(hidden), mask)

    def remember(self, source: Tensor | None, hidden: Tensor, is_token: Tensor) -> Memory:
        """The memory of what `encode` has read: its `hidden` states, and the token ids, which copying needs."""
        return self._memory(None if source is None else self.known(source), hidden, attended(is_token > 0))

    def _memory(self, source: Tensor | None, hidden: Tensor, mask: Tensor) -> Memory:
        return Memory(source, hidden, tuple(self._key_value(layer(hidden)) for layer in self.key_values), mask)

    def _key_value(self, made: Tensor) -> KeyValue:
        key, value = made.view(*made.shape[:2], 2, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return key, value

    def decode(
        self, tokens: Tensor, memory: Memory, past: tuple[KeyValue, ...] | None = None
    ) -> tuple[Tensor, tuple[KeyValue, ...]]:
        """Return hidden states [R, T, W] of the tokens [R, T], and what the next step wants as `past`."""
        before = 0 if past is None else past[0][0].shape[2]
        hidden = self.dropout(self.embedding(tokens) * self.width**0.5)
        cosine, sine = rotation(before + tokens.shape[1], self.head_size, hidden)
        turns, present = (cosine[before:], sine[before:]), []
        for index, block in enumerate(self.decoder_blocks):
            hidden, kept = block(hidden, memory.cross[index], memory.mask, turns, None if past is None else past[index])
            present.append(kept)
        return self.norm(hidden), tuple(present)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of generating each token, [R, T, V]."""
        return functional.linear(hidden, self.embedding.weight)

    def log_probabilities(self, hidden: Tensor, memory: Memory) -> Tensor:
        """Logs of the probabilities of the next token, float32 [R, T, V]."""
        generated = self.logits(hidden).float().log_softmax(dim=2)
        if self.copying is None:
            return generated
        log_generate, log_copy, places = self.copying(hidden, memory)
        assert memory.source is not None
        index = memory.source.unsqueeze(1).expand(-1, len(places) // len(memory.source), -1).flatten(0, 1)
        copied = generated.new_zeros(generated.shape)
        copied = copied.scatter_add(2, index.unsqueeze(1).expand(-1, places.shape[1], -1), places)
        copied = copied.clamp_min(1e-30).log()
        return torch.logaddexp(generated + log_generate, copied + log_copy)

    def score(self, source: Tensor, target: Tensor, *, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return the smoothed loss and the negative log-likelihood, summed over a row's tokens: [B] each.

        Args:
            source: token ids [B, S].
            target: token ids [B, T], from the start to the end token.
            smoothing: share of the target that is spread over the vocabulary.
        """
        memory = self.encode(source)
        hidden, _ = self.decode(target[:, :-1], memory)
        wanted = target[:, 1:]
        is_token = (wanted != self.pad_id).float()
        flat = said_and_even(self.logits(hidden).float().flatten(0, 1), wanted.flatten())
        said, even = (values.view_as(wanted) for values in flat)
        if self.copying is not None:
            log_generate, log_copy, places = self.copying(hidden, memory)
            assert memory.source is not None
            is_there = memory.source.unsqueeze(1) == wanted.unsqueeze(2)
            copied = (places * is_there).sum(dim=2).clamp_min(1e-30).log()
            said = torch.logaddexp(said + log_generate.squeeze(2), copied + log_copy.squeeze(2))
        likelihood = -(said * is_token).sum(dim=1)
        return (1 - smoothing) * likelihood - smoothing * (even * is_token).sum(dim=1), likelihood

    def units(self) -> list[Units]:
        """Attention heads and feed-forward units of each block."""
        found = []
        for index, block in enumerate(self.encoder_blocks):
            found += block.units(f"encoder_blocks.{index}")  # type: ignore[operator]
        for index, block in enumerate(self.decoder_blocks):
            found += block.units(f"decoder_blocks.{index}", f"key_values.{index}")  # type: ignore[operator]
        return found
