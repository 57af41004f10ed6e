"""Networks for tables: TabM, MLP and FT-Transformer. Each takes raw columns and returns logits [B, K] of K members.

Each computes in two parts: `encoding(numeric, timestamp)`, in which nothing is learned, so that several training steps
can share one call of it, and `score(encoded, categorical)`. `forward` is one after the other.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.dropout import RowDropout
from models.preprocessing import CategoryEmbedding, CategoryFeatures, StaticEncoding, columns_by_kind
from models.pruning import Slice, Units

# Shapes: B rows, F numeric columns, C categorical columns, T timestamp columns, S static features, K members, W width.


class TableNetwork(nn.Module):
    """A network in two parts; `blocks` are its large ones."""

    blocks: nn.ModuleList

    def __init__(self, schema: Mapping[str, Any]) -> None:
        super().__init__()
        self.encoding = StaticEncoding(schema)

    def score(self, encoded: Tensor, categorical: Tensor) -> Tensor:
        """Logits [B, K] of static features [B, S] and category codes [B, C]."""
        raise NotImplementedError

    def units(self) -> list[Units]:
        """What structured pruning may take out."""
        raise NotImplementedError

    def forward(self, numeric: Tensor, categorical: Tensor, timestamp: Tensor) -> Tensor:
        """Logits [B, K] of raw columns [B, F], [B, C] and [B, T]."""
        # The class's own method: FSDP2 makes `self.score` a second entry, which must not be entered from the first.
        logits: Tensor = type(self).score(self, self.encoding(numeric, timestamp), categorical)
        return logits


class TabM(TableNetwork):
    """An ensemble of MLPs that share their weight matrices (https://arxiv.org/abs/2410.24210).

    Each layer is y = s * (W (r * x)) + b with W shared and the vectors r, s, b of each member its own; the r of the
    first start as random signs, which sets the members apart. They see one shared linear embedding of the columns.
    """

    def __init__(
        self,
        schema: Mapping[str, Any],
        *,
        embedding_size: int,
        width: int,
        num_blocks: int,
        num_members: int,
        dropout: float,
        category_size: int,
    ) -> None:
        super().__init__(schema)
        sizes = {"embedding_size": embedding_size, "width": width, "num_blocks": num_blocks, "num_members": num_members}
        check_positive(**sizes, category_size=category_size)
        self.features = CategoryFeatures(schema, num_static=self.encoding.size, category_size=category_size)
        self.embedding = nn.Linear(self.features.size, embedding_size)
        first = MemberLinear(embedding_size, width, num_members)
        self.blocks = nn.ModuleList([first, *(MemberLinear(width, width, num_members) for _ in range(num_blocks - 1))])
        self.head = MemberLinear(width, 1, num_members)
        with torch.no_grad():
            first.input_scale.copy_(torch.randint(0, 2, (num_members, embedding_size)) * 2.0 - 1.0)
            self.head.bias.fill_(prior_logit(schema))
        self.num_members, self.dropout = num_members, RowDropout(dropout)

    def score(self, encoded: Tensor, categorical: Tensor) -> Tensor:
        """Logits [B, K]."""
        embedded = self.dropout(self.embedding(self.features(encoded, categorical)))
        if torch.compiler.is_exporting():
            hidden = embedded.unsqueeze(1).expand(-1, self.num_members, -1)  # [B, K, W], see MemberLinear
        else:
            hidden = embedded.expand(self.num_members, -1, -1)  # [K, B, W]
        for block in self.blocks:
            hidden = functional.relu(block(hidden))
        logits: Tensor = self.head(hidden).squeeze(2)
        return logits if torch.compiler.is_exporting() else logits.T

    def units(self) -> list[Units]:
        """The shared embedding's units and each layer's."""
        names = [*(f"blocks.{index}" for index in range(len(self.blocks))), "head"]
        used = [(Slice(f"{name}.weight", 0), Slice(f"{name}.input_scale", 1)) for name in names]
        embedding = (Slice("embedding.weight", 0), Slice("embedding.bias", 0))
        made = [tuple(Slice(f"{name}.{part}", 1) for part in ("weight", "output_scale", "bias")) for name in names[:-1]]
        width = self.head.weight.shape[0]
        return [
            Units("embedding_size", self.embedding.out_features, (*embedding, *used[0])),
            *(Units("width", width, (*own, *following)) for own, following in zip(made, used[1:], strict=True)),
        ]


class MemberLinear(nn.Module):
    """A linear layer [K, B, inputs] to [K, B, outputs]: one matrix for all members, scales and bias of each one's own.

    The scales are multiplied into the matrix, which has fewer elements than a batch: one batched product and no pass
    over the activations, which made a training step twice as fast on a CPU.
    """

    def __init__(self, num_inputs: int, num_outputs: int, num_members: int) -> None:
        super().__init__()
        bound = num_inputs**-0.5
        self.weight = nn.Parameter(torch.empty(num_inputs, num_outputs).uniform_(-bound, bound))
        self.input_scale = nn.Parameter(torch.ones(num_members, num_inputs))
        self.output_scale = nn.Parameter(torch.ones(num_members, num_outputs))
        self.bias = nn.Parameter(torch.empty(num_members, num_outputs).uniform_(-bound, bound))

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply to [K, B, inputs]; while exporting to [B, K, inputs].

        A graph holds one matrix instead of K, and one that int8 can hold. ONNX Runtime multiplies a row's scales of all
        members at once, but those of one member row by row.
        """
        if torch.compiler.is_exporting():
            return (hidden * self.input_scale) @ self.weight * self.output_scale + self.bias
        weight = self.weight * self.input_scale.unsqueeze(2) * self.output_scale.unsqueeze(1)
        return torch.baddbmm(self.bias.unsqueeze(1), hidden, weight)


class MLP(TableNetwork):
    """A plain multilayer perceptron on the same encoded columns: logits [B, 1]."""

    def __init__(
        self, schema: Mapping[str, Any], *, width: int, num_blocks: int, dropout: float, category_size: int
    ) -> None:
        super().__init__(schema)
        check_positive(width=width, num_blocks=num_blocks, category_size=category_size)
        self.features = CategoryFeatures(schema, num_static=self.encoding.size, category_size=category_size)
        sizes = [self.features.size] + [width] * num_blocks
        self.blocks = nn.ModuleList(nn.Linear(size, width) for size in sizes[:-1])
        self.head = nn.Linear(width, 1)
        nn.init.constant_(self.head.bias, prior_logit(schema))
        self.dropout = RowDropout(dropout)

    def score(self, encoded: Tensor, categorical: Tensor) -> Tensor:
        """Logits [B, 1]."""
        hidden = self.features(encoded, categorical)
        for block in self.blocks:
            hidden = self.dropout(functional.relu(block(hidden)))
        logits: Tensor = self.head(hidden)
        return logits

    def units(self) -> list[Units]:
        """Each layer's."""
        names = [*(f"blocks.{index}" for index in range(len(self.blocks))), "head"]
        made = [(Slice(f"{name}.weight", 0), Slice(f"{name}.bias", 0)) for name in names[:-1]]
        used = [Slice(f"{name}.weight", 1) for name in names[1:]]
        return [Units("width", self.head.in_features, (*own, next_)) for own, next_ in zip(made, used, strict=True)]


class FTTransformer(TableNetwork):
    """A transformer over one token per column and a class token (https://arxiv.org/abs/2106.11959): logits [B, 1]."""

    def __init__(
        self,
        schema: Mapping[str, Any],
        *,
        width: int,
        num_blocks: int,
        num_heads: int,
        dropout: float,
        head_size: int | None = None,
        feed_size: int | None = None,
    ) -> None:
        super().__init__(schema)
        check_positive(width=width, num_blocks=num_blocks, num_heads=num_heads)
        if head_size is None and width % num_heads:
            raise ValueError(f"width must be a multiple of num_heads, got {width} and {num_heads}: change either")
        self.tokens = ColumnTokens(schema, self.encoding, width=width)
        sizes = {"head_size": head_size or width // num_heads, "feed_size": feed_size or 2 * width}
        self.blocks = nn.ModuleList(
            TransformerBlock(width, num_heads, dropout=dropout, **sizes) for _ in range(num_blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)
        nn.init.constant_(self.head.bias, prior_logit(schema))

    def score(self, encoded: Tensor, categorical: Tensor) -> Tensor:
        """Logits [B, 1]."""
        hidden = self.tokens(encoded, categorical)
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(functional.relu(self.norm(hidden[:, 0])))
        return logits

    def units(self) -> list[Units]:
        """Attention heads and feed-forward units of each block."""
        return [units for index, block in enumerate(self.blocks) for units in block.units(f"blocks.{index}")]  # type: ignore[operator]


class ColumnTokens(nn.Module):
    """Columns to tokens [B, 1 + F + T + C, W], a class token first: linear maps of their features, or embeddings."""

    def __init__(self, schema: Mapping[str, Any], encoding: StaticEncoding, *, width: int) -> None:
        super().__init__()
        categorical = columns_by_kind(schema)[1]
        self.class_token = nn.Parameter(torch.empty(width).uniform_(-1, 1) * width**-0.5)
        self.static = ColumnwiseLinear(encoding.owner, encoding.num_columns, width) if encoding.size else None
        self.categorical = CategoryEmbedding(categorical, size=width) if categorical else None

    def forward(self, encoded: Tensor, categorical: Tensor) -> Tensor:
        """Tokens of static features [B, S] and categorical [B, C]."""
        parts = [self.class_token.expand(encoded.shape[0], 1, -1)]
        if self.static:
            parts.append(self.static(encoded))
        if self.categorical:
            parts.append(self.categorical(categorical))
        return torch.cat(parts, dim=1)


class ColumnwiseLinear(nn.Module):
    """Each column's own features to its own token, [B, D] to [B, columns, W]; `owner` [D] is each feature's column."""

    index: Tensor

    def __init__(self, owner: Tensor, num_columns: int, width: int) -> None:
        super().__init__()
        features = [torch.nonzero(owner == column).flatten() for column in range(num_columns)]
        longest = max(len(own) for own in features)
        # Padded to a rectangle; the padding points at a zero appended to the features.
        index = torch.stack([functional.pad(own, (0, longest - len(own)), value=len(owner)) for own in features])
        self.register_buffer("index", index, persistent=False)
        self.weight = nn.Parameter(torch.empty(num_columns, longest, width).uniform_(-1, 1) * width**-0.5)
        self.bias = nn.Parameter(torch.empty(num_columns, width).uniform_(-1, 1) * width**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, D] to [B, columns, W]."""
        padded = functional.pad(features, (0, 1)).index_select(1, self.index.flatten())
        padded = padded.view(-1, *self.index.shape)  # [B, columns, longest]
        return torch.einsum("bcl,clw->bcw", padded, self.weight) + self.bias


class TransformerBlock(nn.Module):
    """Pre-norm attention and ReGLU feed-forward, as in FT-Transformer."""

    def __init__(self, width: int, num_heads: int, *, head_size: int, feed_size: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.head_size, self.dropout = num_heads, head_size, RowDropout(dropout)
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * num_heads * head_size), nn.Linear(num_heads * head_size, width)
        self.feed_in, self.feed_out = nn.Linear(width, 2 * feed_size), nn.Linear(feed_size, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Transform [B, tokens, W]."""
        qkv = self.qkv(self.attention_norm(hidden)).unflatten(2, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        hidden = hidden + self.dropout(self.out(mixed))
        gate, feed = self.feed_in(self.feed_norm(hidden)).chunk(2, dim=2)
        feed = self.feed_out(functional.relu(gate) * feed)
        output: Tensor = hidden + self.dropout(feed)
        return output

    def units(self, name: str) -> list[Units]:
        """Heads and feed-forward units of the block of this name."""
        heads = tuple(Slice(f"{name}.qkv.{part}", 0, outer=3, inner=self.head_size) for part in ("weight", "bias"))
        gated = tuple(Slice(f"{name}.feed_in.{part}", 0, outer=2) for part in ("weight", "bias"))
        mixed = Slice(f"{name}.out.weight", 1, inner=self.head_size)
        return [
            Units("num_heads", self.num_heads, (*heads, mixed), also={"head_size": self.head_size}),
            Units("feed_size", self.feed_out.in_features, (*gated, Slice(f"{name}.feed_out.weight", 1))),
        ]


def prior_logit(schema: Mapping[str, Any]) -> float:
    """Log-odds of the training rows' positive rate: where the output starts, so that no step is spent on finding it."""
    rate = min(max(float(schema["target"]["rate"]), 1e-6), 1 - 1e-6)
    return float(torch.logit(torch.tensor(rate, dtype=torch.float64)))


def check_positive(**sizes: int) -> None:
    """Raise ValueError for the first size below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
