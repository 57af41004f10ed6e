"""The architectures of the text experiment: each is a `TextModule` around one network of models/text/networks.py."""

from typing import Annotated, Unpack

from annotated_types import Ge, Gt, Lt

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

    Naive Bayes, counted before the first step, says how much each of them weighs, and `naive_bayes` times its log
    ratios is added to the logits when the network predicts; 0 for nothing of both.
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
        naive_bayes: Annotated[float, Ge(0)],
        **training: Unpack[Training],
    ) -> None:
        network = Ngram(
            schema,
            width=width,
            num_buckets=num_buckets,
            longest=longest,
            dropout=dropout,
            token_dropout=token_dropout,
            naive_bayes=naive_bayes,
        )
        super().__init__(schema, network, **training)
        self.save_hyperparameters(logger=False)  # a tokenizer's pieces are no YAML: OmegaConf reads ${ in them

    def on_train_start(self) -> None:
        """Count the training rows for naive Bayes, unless its ratios come from a checkpoint."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if self.network.naive_bayes and datamodule is not None and not self.network.has_begun:
            calls = datamodule.train_dataloader()  # a loader of its own: the trainer's stays at its place
            counts = counts_of(
                self.network.features,
                (batch for call in calls for batch in call),
                size=self.network.num_features,
                num_classes=len(self.classes),
            )
            for network in (self.network, self.average):
                if network is not None:
                    network.begin(counts)
        super().on_train_start()
