"""The architectures of the text experiment: each is a `TextModule` around one network of models/text/networks.py."""

from collections.abc import Iterator
from typing import Annotated, Any, Unpack

import torch
import torch.distributed
from annotated_types import Ge, Gt, Lt

from models.optim import is_distributed
from models.text.linear import fitted, rows_of
from models.text.module import Schema, TextModule, Training
from models.text.naive_bayes import counts_of
from models.text.networks import Ngram, Transformer

Dropout = Annotated[float, Ge(0), Lt(1)]
Count = Annotated[int, Gt(0)]


class TextTransformer(TextModule):
    """A pre-norm transformer encoder over tokens, pooled by attention."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: Count,
        num_blocks: Count,
        num_heads: Count,
        dropout: Dropout,
        token_dropout: Dropout,
        head_size: Count | None = None,
        feed_size: Count | None = None,
        **training: Unpack[Training],
    ) -> None:
        network = Transformer(
            schema,
            width=width,
            num_blocks=num_blocks,
            num_heads=num_heads,
            dropout=dropout,
            token_dropout=token_dropout,
            head_size=head_size,
            feed_size=feed_size,
        )
        super().__init__(schema, network, **training)
        self.save_hyperparameters(logger=False)  # a tokenizer's pieces are no YAML: OmegaConf reads ${ in them


class TextNgram(TextModule):
    """A bag of hashed n-grams of words and characters, in the manner of fastText (Joulin et al., arXiv 1607.01759).

    What is counted before the first step says how much each of them weighs, and `linear` times the logits of a
    logistic regression is added to the network's when it predicts; 0 for nothing of both.
    """

    network: Ngram
    average: Ngram | None

    def __init__(
        self,
        schema: Schema,
        *,
        width: Count,
        num_buckets: Count,
        longest: Count,
        dropout: Dropout,
        token_dropout: Dropout,
        linear: Annotated[float, Ge(0)],
        **training: Unpack[Training],
    ) -> None:
        network = Ngram(
            schema,
            width=width,
            num_buckets=num_buckets,
            longest=longest,
            dropout=dropout,
            token_dropout=token_dropout,
            linear=linear,
        )
        super().__init__(schema, network, **training)
        self.save_hyperparameters(logger=False)  # a tokenizer's pieces are no YAML: OmegaConf reads ${ in them

    def on_train_start(self) -> None:
        """Count the training rows and fit the regression, unless both come from a checkpoint."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if self.network.linear and datamodule is not None and not self.network.has_begun:
            self._begin(datamodule)
        super().on_train_start()

    def _begin(self, datamodule: Any) -> None:
        network, num_classes = self.network, len(self.classes)

        def batches() -> Iterator[Any]:  # of a loader of its own: the trainer's stays at its place
            return (batch for call in datamodule.train_dataloader() for batch in call)

        counts = counts_of(network.features, batches(), size=network.num_features, num_classes=num_classes)
        opinion = fitted(rows_of(network.words_only, batches(), size=network.num_features), num_classes)
        network.begin(counts, opinion)
        for buffer in (network.table, network.bias, network.rarity) if is_distributed() else ():
            torch.distributed.broadcast(buffer, 0)  # CPUs of several kinds round in several ways
        if self.average is not None:
            self.average.load_state_dict(dict(network.named_buffers()), strict=False)
