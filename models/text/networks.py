"""Networks for texts: a transformer and a bag of n-grams. Each takes token ids [B, L] and returns logits [B, C].

Shapes: B rows, L tokens, S words at most L, W width, C classes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.dropout import RowDropout
from models.pruning import Slice, Units
from models.text.linear import Opinion
from models.text.naive_bayes import informativeness
from models.text.words import STEMS, Words
from models.transformer import AttentionPooling, EncoderBlock, attended, rotation

POOLS = 4  # heads of the pooling, which pruning leaves alone
MOST_LINEAR = 2**28  # numbers of the logistic regression: a gigabyte


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
    """A bag of n-grams of words and characters, hashed, in the manner of fastText (Joulin et al., arXiv 1607.01759).

    A word's hash is that of its lower-cased characters, however the tokenizer has cut it. The vectors of all n-grams
    of words, of the words' stems, of their characters' n-grams and of the tokens themselves are added up, divided by
    the root of their number, and mapped to the classes. Vectors begin at zero, so that what training has not seen says
    nothing.

    What is counted before training weighs each vector by what its feature tells of the classes. And when the network
    predicts, the logits of a logistic regression of all features but characters are added to its own
    (`models.text.linear`). Training does not see them: two opinions that were formed apart err apart, and their sum is
    better than either.

    Args:
        schema: of the data.
        width: of an n-gram's vector.
        num_buckets: hash buckets of all n-grams together.
        longest: words of the longest n-gram.
        dropout: of the sum of the vectors.
        token_dropout: share of n-grams that are dropped in training.
        linear: times the logits of the regression is what is added; 0 for nothing, and all weights 1.
    """

    has_begun: Tensor
    table: Tensor
    bias: Tensor
    rarity: Tensor
    told: Tensor

    def __init__(
        self,
        schema: Mapping[str, Any],
        *,
        width: int,
        num_buckets: int,
        longest: int,
        dropout: float,
        token_dropout: float,
        linear: float,
    ) -> None:
        super().__init__(schema)
        self.words = Words(schema, num_buckets=num_buckets, longest=longest)
        self.num_features, num_classes = num_buckets + self.vocab_size, len(schema["classes"])
        if linear and self.num_features * num_classes > MOST_LINEAR:
            raise ValueError(
                f"linear keeps a number for each class of each bucket, at most {MOST_LINEAR:,}; got "
                f"num_buckets={num_buckets} and {num_classes} classes: set linear=0 or take fewer buckets"
            )
        self.embedding = nn.Embedding(self.num_features, width)
        nn.init.zeros_(self.embedding.weight)
        self.token_dropout, self.dropout = RowDropout(token_dropout), RowDropout(dropout)
        self.head = prior_head(schema, width)
        nn.init.orthogonal_(self.head.weight)
        self.linear, size = linear, self.num_features if linear else 0
        self.register_buffer("table", torch.zeros(size, num_classes))
        self.register_buffer("bias", torch.zeros(num_classes if linear else 0))
        self.register_buffer("rarity", torch.ones(size))
        self.register_buffer("told", torch.ones(size))
        self.register_buffer("has_begun", torch.tensor(False))
        self.blocks = nn.ModuleList()

    def score(self, tokens: Tensor) -> Tensor:
        """Logits [B, C]; in training those of the vectors alone."""
        tokens = self.lengthened(tokens)
        places, is_there = self.features(tokens)
        present = is_there.to(self.embedding.weight.dtype)
        weight = self.token_dropout(present * self.told[places] if self.linear else present)
        logits: Tensor = self.head(self.dropout(bag(self.embedding.weight, places, tempered(weight))))
        return logits + self.linear * self._regression(tokens) if self.linear and not self.training else logits

    def _regression(self, tokens: Tensor) -> Tensor:
        """The logits [B, C] of the logistic regression."""
        places, is_there = self.words_only(tokens)
        rarity = is_there * self.rarity[places]
        weight = rarity / (rarity * self.rarity[places]).sum(dim=1, keepdim=True).clamp_min(1e-9).sqrt()
        return bag(self.table, places, weight) + self.bias

    def features(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the places of a row's features among the vectors, int64 [B, N], and which of those hold one.

        First those of words, then the tokens, then those of characters.
        """
        is_token = tokens != self.pad_id
        words, is_word = self.words(tokens, is_token)
        characters, is_character = self.words.characters(tokens, is_token)
        places = torch.cat([words, tokens + self.words.num_buckets, characters], dim=1)
        return places, torch.cat([is_word, is_token, is_character], dim=1)

    def words_only(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The same without those of characters."""
        places, is_there = self.features(tokens)
        num_words = tokens.shape[1] * (self.words.longest + len(STEMS) + 1)
        return places[:, :num_words], is_there[:, :num_words]

    @torch.no_grad()
    def begin(self, counts: Tensor, opinion: Opinion) -> None:
        """Take features counted by class in the training rows, [features, C], and what the regression says of them."""
        self.told.copy_(informativeness(counts))
        self.table.copy_(opinion.table)
        self.bias.copy_(opinion.bias)
        self.rarity.copy_(opinion.rarity)
        self.has_begun.fill_(True)

    def units(self) -> list[Units]:
        """The numbers of an n-gram's vector."""
        return [Units("width", self.head.in_features, (Slice("embedding.weight", 1), Slice("head.weight", 1)))]


def tempered(weight: Tensor) -> Tensor:
    """Weights [B, N] divided by the root of their sum: more features say more, though not as much more."""
    return weight / weight.sum(dim=1, keepdim=True).clamp_min(1.0).sqrt()


def bag(table: Tensor, places: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums [B, W] of a table's rows [features, W], by their places and weights [B, N]."""
    if torch.compiler.is_exporting():
        return (functional.embedding(places, table) * weight.unsqueeze(2)).sum(dim=1)
    counts = weight != 0  # most places hold nothing, or what was dropped: looking those up too takes most of a step
    ends = counts.sum(dim=1).cumsum(dim=0)
    starts = functional.pad(ends, (1, 0))[:-1]
    return functional.embedding_bag(places[counts], table, starts, per_sample_weights=weight[counts], mode="sum")


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
