"""What a network offers that a `Seq2SeqModule` trains, that `decoding.search` writes by, and that is exported.

Shapes: B rows, R rows of the decoder (B, or B times the beams), S source tokens, T target tokens, P target tokens
decoded so far, W width, H heads, D size of a head, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.pruning import Units

KeyValue = tuple[Tensor, Tensor]  # [R, H, length, D] each


class Memory(NamedTuple):
    """A source as the decoder sees it.

    Attributes:
        source: token ids [B, S]; None where nothing is copied.
        hidden: what the encoder made of them, [B, S, W]; None in the graph of a further step that copies nothing.
        cross: keys and values of each block, [B, H, S, D] each.
        mask: which of them are tokens, [B, 1, 1, S].
    """

    source: Tensor | None
    hidden: Tensor
    cross: tuple[KeyValue, ...]
    mask: Tensor

    def rows(self, index: Tensor) -> "Memory":
        """The rows at these places."""
        source = None if self.source is None else self.source[index]
        cross = tuple((key[index], value[index]) for key, value in self.cross)
        return Memory(source, self.hidden[index], cross, self.mask[index])


class Seq2SeqNetwork(nn.Module):
    """An encoder and a decoder over the tokenizer's ids, padded at the end of a row.

    Attributes:
        width: W.
        num_heads: H of the decoder.
        head_size: D of the decoder.
        num_decoder_blocks: those that keep keys and values.
        can_copy: whether the source's own ids are needed beside what the encoder made of them.
        shares_source: whether the decoder's rows may be several to a row of the memory, its beams, one after another;
            else each needs its own copy.
    """

    width: int
    num_heads: int
    head_size: int
    num_decoder_blocks: int
    can_copy: bool
    shares_source: bool

    def __init__(self, schema: Mapping[str, Any]) -> None:
        super().__init__()
        tokenizer = schema["tokenizer"]
        self.vocab_size, self.pad_id = int(tokenizer["vocab_size"]), int(tokenizer["pad_id"])
        unknown = tokenizer.get("unk_id")
        self.unknown_id = self.pad_id if unknown is None else int(unknown)

    @property
    def blocks(self) -> list[nn.Module]:
        """Its large parts, which FSDP2 gathers one at a time."""
        raise NotImplementedError

    def score(self, source: Tensor, target: Tensor, *, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Return the smoothed loss and the negative log-likelihood, summed over a row's tokens: [B] each.

        Args:
            source: token ids [B, S].
            target: token ids [B, T], from the start to the end token.
            smoothing: share of the target that is spread over the vocabulary.
        """
        raise NotImplementedError

    def encode(self, source: Tensor, is_token: Tensor | None = None) -> Memory:
        """Read token ids [B, S], padded at the end of a row; those that the tokenizer has not count as unknown.

        `is_token`, [B, S], is above 0 at the tokens; None for those that are no padding.
        """
        raise NotImplementedError

    def remember(self, source: Tensor | None, hidden: Tensor, is_token: Tensor) -> Memory:
        """The memory of what `encode` has read: its `hidden` states, and the token ids where tokens are copied."""
        raise NotImplementedError

    def decode(
        self, tokens: Tensor, memory: Memory, past: tuple[KeyValue, ...] | None = None
    ) -> tuple[Tensor, tuple[KeyValue, ...]]:
        """Return what `log_probabilities` takes of the tokens [R, T], and what the next step wants as `past`.

        Without `past`, the tokens are the first ones, the start token before them; with it, T is 1.
        """
        raise NotImplementedError

    def log_probabilities(self, hidden: Tensor, memory: Memory) -> Tensor:
        """Logs of the probabilities of the next token, float32 [R, T, V]."""
        raise NotImplementedError

    def kept(self, memory: Memory, rows: Tensor, sentences: Tensor | None) -> Memory:
        """The memory of the decoder's rows [R'] and, unless None for all, the sentences [B'] that stay."""
        return memory if sentences is None else memory.rows(sentences)

    def units(self) -> list[Units]:
        """What structured pruning may take out."""
        raise NotImplementedError

    def known(self, tokens: Tensor) -> Tensor:
        """The tokens; those that the tokenizer has not count as unknown."""
        return torch.where((tokens >= 0) & (tokens < self.vocab_size), tokens, self.unknown_id)

    def lengthened(self, source: Tensor) -> Tensor:
        """The source; where all are empty, one token of padding each."""
        if torch.compiler.is_exporting() or source.shape[1]:
            return source
        return source.new_full((len(source), 1), self.pad_id)
