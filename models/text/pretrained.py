"""Encoders of `transformers` (the extra `hf`) as text networks: loaded by name, or made again from a plain config.

Shapes: B rows, L tokens, W width, C classes.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.dropout import RowDropout
from models.pretrained import Config, add_lora, config_of, layers_of, library, naming, plain, quiet, weights_of
from models.pruning import Units
from models.text.networks import POOLS, TextNetwork, prior_head
from models.transformer import AttentionPooling, attended

Pooling = Literal["attention", "first"]

# They fall inside of torch's attention, by a random state of their own: not alike on any number of ranks.
ATTENTION_DROPOUTS = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")


def load(name: str) -> tuple[nn.Module, Config]:
    """Return a pretrained encoder and its config as plain values.

    Args:
        name: on the hub, or a local folder.

    Raises:
        ValueError: there is none of this name, or it is no encoder.
    """
    transformers = quiet()
    with naming("encoder must be an encoder's name on the Hugging Face hub or its local folder", name):
        config = transformers.AutoConfig.from_pretrained(name)
        if config.is_encoder_decoder:
            raise ValueError("it is an encoder with a decoder")
        for key in ATTENTION_DROPOUTS:
            if hasattr(config, key):
                setattr(config, key, 0.0)
        encoder = weights_of(transformers.AutoModel, name, config)
    return encoder, plain(config)


def remake(config: Config) -> nn.Module:
    """Return the encoder of a config that `load` gave, its weights as they were drawn; needs no hub and no folder."""
    made: nn.Module = library("transformers").AutoModel.from_config(config_of(config), dtype=torch.float32)
    return made


class Pretrained(TextNetwork):
    """An encoder of `transformers`, pooled, under a linear head.

    Its dropout between layers falls alike on any number of ranks; that inside of attention is left out.

    Args:
        schema: of the data.
        encoder: takes `input_ids` and `attention_mask`; changed in place.
        pooling: attention begins as the mean of the tokens; first takes the first token.
        dropout: between layers, and of the pooled vector.
        lora_rank: of low-rank updates of its matrices, which then are all of it that trains; 0 trains all weights.
    """

    def __init__(
        self, schema: Mapping[str, Any], encoder: nn.Module, *, pooling: Pooling, dropout: float, lora_rank: int
    ) -> None:
        super().__init__(schema)
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None  # type: ignore[assignment]
        check_sizes(encoder, self.vocab_size, int(schema["max_length"]))
        drop_by_row(encoder, dropout)
        self.layers = layers_of(encoder)  # its name; the layers themselves are the encoder's
        if lora_rank:
            add_lora(encoder, lora_rank)
        self.encoder = encoder.train()  # from_pretrained leaves it in eval mode, and Lightning leaves it as it is
        width = int(encoder.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self.pooling = AttentionPooling(width, POOLS) if pooling == "attention" else None
        self.dropout = RowDropout(dropout)
        self.head = prior_head(schema, width)

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """The encoder's layers."""
        found = self.encoder.get_submodule(self.layers)
        assert isinstance(found, nn.ModuleList)
        return found

    def score(self, tokens: Tensor) -> Tensor:
        """Logits [B, C]."""
        tokens = self.lengthened(tokens)
        if torch.compiler.is_exporting() or len(tokens):
            return self._score(tokens)
        # A rank without rows computes one of padding beside the others: encoders cannot take none.
        was_training = self.training
        nothing = self.eval()._score(tokens.new_full((1, 1), self.pad_id))[:0]
        self.train(was_training)
        return nothing

    def _score(self, tokens: Tensor) -> Tensor:
        mask = attended(tokens != self.pad_id)
        hidden = self.encoder(input_ids=tokens, attention_mask=mask[:, 0, 0].long()).last_hidden_state
        pooled = hidden[:, 0] if self.pooling is None else self.pooling(hidden, mask)
        logits: Tensor = self.head(self.dropout(pooled))
        return logits

    def units(self) -> list[Units]:
        """Raise ValueError: how its layers hang together is not known."""
        raise ValueError("a pretrained encoder cannot be pruned: leave prune.ratio out")

    def depth(self, parameter: str) -> int:
        """How many layers a parameter lies below the head: 0 for the head itself, most for embeddings."""
        number = re.match(rf"encoder\.{re.escape(self.layers)}\.(\d+)\.", parameter)
        if number:
            return len(self.blocks) - int(number[1])
        return len(self.blocks) + 1 if parameter.startswith("encoder.") and "embed" in parameter else 0


def check_sizes(encoder: Any, vocab_size: int, max_length: int) -> None:
    """Raise ValueError where token ids or places are beyond the encoder's tables."""
    known = int(encoder.get_input_embeddings().num_embeddings)
    if vocab_size > known:
        raise ValueError(
            f"data.tokenizer has {vocab_size:,} pieces, of which the encoder knows {known:,}: give its tokenizer.json"
        )
    for name, table in encoder.named_modules():
        if name.endswith("position_embeddings") and isinstance(table, nn.Embedding):
            most = table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
            if max_length > most:
                raise ValueError(
                    f"data.max_length must be at most {most}, the encoder's longest text; got {max_length}"
                )


def drop_by_row(encoder: nn.Module, dropout: float) -> None:
    """Replace the dropout between layers by one that falls alike on any number of ranks."""
    for parent in encoder.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Dropout) and child.p > 0:
                setattr(parent, name, RowDropout(dropout))
