"""Layers of an encoder: pre-norm attention with rotary positions, GEGLU, RMSNorm, and attention pooling.

Shapes: B rows, L tokens, W width, H heads, D size of a head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.dropout import RowDropout
from models.pruning import Slice, Units

Rotation = tuple[Tensor, Tensor]


def rotation(length: int, size: int, like: Tensor) -> Rotation:
    """Cosines and sines [L, D / 2] of rotary positions (Su et al., 2021, arXiv 2104.09864)."""
    frequency = 10_000.0 ** (-torch.arange(0, size, 2, device=like.device, dtype=torch.float32) / size)
    angle = torch.arange(length, device=like.device, dtype=torch.float32).unsqueeze(1) * frequency
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def rotated(values: Tensor, by: Rotation) -> Tensor:
    """Turn the halves of [B, H, L, D] as pairs, each token by its position."""
    cosine, sine = by
    first, second = values.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def attended(is_token: Tensor) -> Tensor:
    """Which keys attention may look at, [B, 1, 1, L]: the tokens; in a row without any, all, since none is no mean."""
    return (is_token | ~is_token.any(dim=1, keepdim=True))[:, None, None, :]


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend from [B, H, T, D] to [B, H, L, D], as far as `mask` allows: [B, H, T, D].

    In an exported graph as plain products: what the exporter makes of torch's own copies all keys in each step.
    """
    if not torch.compiler.is_exporting():
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores: Tensor = query * query.shape[3] ** -0.5 @ key.transpose(2, 3)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=3) @ value


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and GEGLU feed-forward (Shazeer, 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, num_heads: int, *, head_size: int, feed_size: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.head_size, self.dropout = num_heads, head_size, RowDropout(dropout)
        self.attention_norm, self.feed_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * num_heads * head_size, bias=False)
        self.out = nn.Linear(num_heads * head_size, width, bias=False)
        self.feed_in = nn.Linear(width, 2 * feed_size, bias=False)
        self.feed_out = nn.Linear(feed_size, width, bias=False)

    def forward(self, hidden: Tensor, mask: Tensor, rotation: Rotation) -> Tensor:
        """Transform [B, L, W]; `mask` as `attended` makes it."""
        qkv = self.qkv(self.attention_norm(hidden)).unflatten(2, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = rotated(query, rotation), rotated(key, rotation)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        hidden = hidden + self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))
        gate, feed = self.feed_in(self.feed_norm(hidden)).chunk(2, dim=2)
        output: Tensor = hidden + self.dropout(self.feed_out(functional.gelu(gate) * feed))
        return output

    def units(self, name: str) -> list[Units]:
        """Heads and feed-forward units of the block of this name."""
        heads = Slice(f"{name}.qkv.weight", 0, outer=3, inner=self.head_size)
        mixed = Slice(f"{name}.out.weight", 1, inner=self.head_size)
        gated = (Slice(f"{name}.feed_in.weight", 0, outer=2), Slice(f"{name}.feed_out.weight", 1))
        return [
            Units("num_heads", self.num_heads, (heads, mixed), also={"head_size": self.head_size}),
            Units("feed_size", self.feed_out.in_features, gated),
        ]


class AttentionPooling(nn.Module):
    """Tokens [B, L, W] to one vector [B, W]: each head's part is a mean weighted by what the head looks for."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.weigh = nn.Linear(width, num_heads)
        nn.init.zeros_(self.weigh.weight)  # begins as the mean
        nn.init.zeros_(self.weigh.bias)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Pool; `mask` as `attended` makes it."""
        logits = self.weigh(hidden).masked_fill(~mask[:, 0, 0, :, None], float("-inf"))
        weight = logits.softmax(dim=1).unsqueeze(3)  # [B, L, H, 1]
        parts = hidden.view(*hidden.shape[:2], self.num_heads, -1)
        pooled: Tensor = (parts * weight).sum(dim=1).flatten(1)
        return pooled
