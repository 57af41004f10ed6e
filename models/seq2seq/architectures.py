"""The architectures of summarization and translation: each is a `Seq2SeqModule` around one network."""

from typing import Annotated, Unpack

from annotated_types import Ge, Gt, Lt

from models.seq2seq.module import Schema, Seq2SeqModule, Training
from models.seq2seq.networks import EncoderDecoder

Count = Annotated[int, Gt(0)]


class Seq2SeqTransformer(Seq2SeqModule):
    """A pre-norm transformer encoder-decoder with rotary positions, that can copy tokens of its source."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: Count,
        num_encoder_blocks: Count,
        num_decoder_blocks: Count,
        num_heads: Count,
        dropout: Annotated[float, Ge(0), Lt(1)],
        copy: bool,
        head_size: Count | None = None,
        feed_size: Count | None = None,
        **training: Unpack[Training],
    ) -> None:
        network = EncoderDecoder(
            schema,
            width=width,
            num_encoder_blocks=num_encoder_blocks,
            num_decoder_blocks=num_decoder_blocks,
            num_heads=num_heads,
            dropout=dropout,
            copy=copy,
            head_size=head_size,
            feed_size=feed_size,
        )
        super().__init__(schema, network, **training)
        self.save_hyperparameters(logger=False)  # a tokenizer's pieces are no YAML: OmegaConf reads ${ in them
