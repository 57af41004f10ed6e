"""Networks for texts: a transformer and a bag of n-grams. Each takes token ids [B, L] and returns logits [B, C].

Shapes: B rows, L tokens, S words at most L, W width, C classes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional

from models.dropout import RowDropout
from models.pruning import Slice, Units
from models.text.naive_bayes import log_ratios
from models.text.words import Words
from models.transformer import AttentionPooling, EncoderBlock, attended, rotation

POOLS = 4  # heads of the pooling, which pruning leaves alone


class TextNetwork(nn.Module):
    """A network over token ids, padded with the schema's `pad_id` at the end of a row; `blocks` are its large parts."""

    blocks: nn.ModuleList

    def __init__(self, schema: Mapping[str, Any]) -> None:
        super().__init__()
        tokenizer = schema["tokenizer"]
        self.vocab_size, self.pad_id = int(tokenizer["vocab_size"]), int(tokenizer["pad_id"])
        unknown = tokenizer.get("unk_id")
        self.unknown_id = self.pad_id if unknown is None else int(unknown)

    def score(self, tokens: Tensor) -> Tensor:
        """Logits [B, C] of the tokenizer's own ids [B, L]."""
        raise NotImplementedError

    def units(self) -> list[Units]:
        """What structured pruning may take out."""
        raise NotImplementedError

    def lengthened(self, tokens: Tensor) -> Tensor:
        """The tokens; where all texts are empty, one of padding each."""
        if torch.compiler.is_exporting() or tokens.shape[1]:
            return tokens
        return tokens.new_full((len(tokens), 1), self.pad_id)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, C] of any int64 ids [B, L]: those that the tokenizer has not count as unknown."""
        is_known = (tokens >= 0) & (tokens < self.vocab_size)
        # The class's own method: FSDP2 makes `self.score` a second entry, which must not be entered from the first.
        logits: Tensor = type(self).score(self, torch.where(is_known, tokens, self.unknown_id))
        return logits


class Transformer(TextNetwork):
    """A pre-norm encoder with rotary positions, pooled by attention.

    Args:
        schema: of the data.
        width: of a token's vector.
        num_blocks: encoder blocks.
        num_heads: attention heads of each.
        dropout: of what each block adds, and of the pooled vector.
        token_dropout: share of whole tokens whose vectors are dropped in training.
        head_size: of each head; None for width / num_heads.
        feed_size: of the feed-forward layers; None for 2 * width.
    """

    def __init__(
        self,
        schema: Mapping[str, Any],
        *,
        width: int,
        num_blocks: int,
        num_heads: int,
        dropout: float,
        token_dropout: float,
        head_size: int | None = None,
        feed_size: int | None = None,
    ) -> None:
        super().__init__(schema)
        size = head_size or width // num_heads
        if (head_size is None and width % num_heads) or size % 2 or width % POOLS:
            raise ValueError(
                f"width must be a multiple of {POOLS} and of 2 * num_heads, got width={width} and "
                f"num_heads={num_heads}: change either"
            )
        self.head_size = size
        self.embedding = nn.Embedding(self.vocab_size, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.token_dropout, self.dropout = RowDropout(token_dropout), RowDropout(dropout)
        sizes = {"head_size": size, "feed_size": feed_size or 2 * width}
        self.blocks = nn.ModuleList(EncoderBlock(width, num_heads, dropout=dropout, **sizes) for _ in range(num_blocks))
        for block in self.blocks:
            for last in (block.out, block.feed_out):  # what a block adds starts small, the more so in a deep network
                nn.init.normal_(last.weight, std=(2 * num_blocks * last.in_features) ** -0.5)  # type: ignore[arg-type, operator, union-attr]
        self.norm = nn.RMSNorm(width)
        self.pooling = AttentionPooling(width, POOLS)
        self.head = prior_head(schema, width)

    def score(self, tokens: Tensor) -> Tensor:
        """Logits [B, C]."""
        tokens = self.lengthened(tokens)
        mask = attended(tokens != self.pad_id)
        hidden = self.embedding(tokens)
        if self.training:
            hidden = hidden * self.token_dropout(torch.ones_like(hidden[:, :, :1]))
        turns = rotation(tokens.shape[1], self.head_size, hidden)
        for block in self.blocks:
            hidden = block(hidden, mask, turns)
        logits: Tensor = self.head(self.dropout(self.pooling(self.norm(hidden), mask)))
        return logits

    def units(self) -> list[Units]:
        """Attention heads and feed-forward units of each block."""
        return [units for index, block in enumerate(self.blocks) for units in block.units(f"blocks.{index}")]  # type: ignore[operator]


class Ngram(TextNetwork):
    """A bag of words and their n-grams, hashed, in the manner of fastText (Joulin et al., 2016, arXiv 1607.01759).

    A word's hash is that of its lower-cased characters, however the tokenizer has cut it. The vectors of all n-grams
    of words, of the words' stems and of the tokens themselves are added up, divided by the root of their number, and
    mapped to the classes. Vectors begin at zero, so that what training has not seen says nothing, or with `begin` at
    naive Bayes. An RMSNorm of the sum was no better on AG News (0.877 beside 0.882 on 3,043 validation rows, one seed).

    Args:
        schema: of the data.
        width: of an n-gram's vector.
        num_buckets: hash buckets of all n-grams together.
        longest: words of the longest n-gram.
        dropout: of the sum of the vectors.
        token_dropout: share of n-grams that are dropped in training.
    """

    has_begun: Tensor

    def __init__(
        self,
        schema: Mapping[str, Any],
        *,
        width: int,
        num_buckets: int,
        longest: int,
        dropout: float,
        token_dropout: float,
    ) -> None:
        super().__init__(schema)
        self.words = Words(schema, num_buckets=num_buckets, longest=longest)
        self.embedding = nn.Embedding(num_buckets + self.vocab_size, width)
        nn.init.zeros_(self.embedding.weight)
        self.token_dropout, self.dropout = RowDropout(token_dropout), RowDropout(dropout)
        self.head = prior_head(schema, width)
        nn.init.orthogonal_(self.head.weight)
        self.register_buffer("has_begun", torch.tensor(False))
        self.blocks = nn.ModuleList()

    def score(self, tokens: Tensor) -> Tensor:
        """Logits [B, C]."""
        places, is_there = self.features(self.lengthened(tokens))
        weight = self.token_dropout(is_there.to(self.embedding.weight.dtype))
        weight = weight / weight.sum(dim=1, keepdim=True).clamp_min(1.0).sqrt()
        if torch.compiler.is_exporting():
            bag = (self.embedding(places) * weight.unsqueeze(2)).sum(dim=1)
        else:
            bag = functional.embedding_bag(places, self.embedding.weight, per_sample_weights=weight, mode="sum")
        logits: Tensor = self.head(self.dropout(bag))
        return logits

    def features(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the places of a row's features among the vectors, int64 [B, N], and which of those hold one."""
        is_token = tokens != self.pad_id
        places, is_there = self.words(tokens, is_token)
        places = torch.cat([places, tokens + self.words.num_buckets], dim=1)
        return places, torch.cat([is_there, is_token], dim=1)

    @torch.no_grad()
    def begin(self, counts: Tensor, scale: float) -> None:
        """Let the vectors give the logits of naive Bayes times a scale, as far as they have a number for each class.

        Args:
            counts: of the features by class in the training rows, [features, C].
            scale: of the log ratios.
        """
        head, vectors = self.head.weight, self.embedding.weight
        whole = head.full_tensor() if isinstance(head, DTensor) else head
        begun = scale * log_ratios(counts) @ whole  # the head's rows are orthonormal: it undoes the product
        if isinstance(vectors, DTensor):
            begun = distribute_tensor(begun, vectors.device_mesh, vectors.placements)
        vectors.copy_(begun)
        self.has_begun.fill_(True)

    def units(self) -> list[Units]:
        """The numbers of an n-gram's vector."""
        return [Units("width", self.head.in_features, (Slice("embedding.weight", 1), Slice("head.weight", 1)))]


def prior_head(schema: Mapping[str, Any], width: int) -> nn.Linear:
    """A linear layer to the classes that begins with their shares of the training rows: no step is spent on those."""
    head = nn.Linear(width, len(schema["classes"]))
    nn.init.zeros_(head.weight)
    counts = torch.tensor(schema["counts"], dtype=torch.float64) + 1
    if schema["multi_label"]:
        num_rows = torch.tensor(schema.get("num_rows") or counts.sum(), dtype=torch.float64) + 2
        prior = torch.logit(counts / torch.maximum(num_rows, counts + 1))
    else:
        prior = torch.log(counts / counts.sum())
    with torch.no_grad():
        head.bias.copy_(prior)
    return head
