"""Summarization and translation with a pretrained encoder-decoder of `transformers`: pip install 'fullcycle[hf]'."""

from typing import Annotated, Unpack

import torch
from annotated_types import Ge, Gt, Le, Lt

from models.graph import Graph
from models.optim import adamw_by_depth
from models.pretrained import check_tokenizer
from models.seq2seq.export import graphs_of
from models.seq2seq.module import Schema, Seq2SeqModule, Training
from models.seq2seq.pretrained import Made, PretrainedEncoderDecoder, load, remake


class Seq2SeqPretrained(Seq2SeqModule):
    """Fine-tunes a pretrained encoder-decoder. `data.tokenizer` must be the model's own tokenizer.json.

    Checkpoints hold the model's config and all of its weights: they load without the hub and without the folder.

    Args:
        schema: what the data module knows of the data.
        pretrained: its name on the Hugging Face hub, or a local folder: T5, BART, Marian and others.
        dropout: between its layers.
        layer_decay: of the learning rate, from each layer to the one below it, in the encoder and in the decoder
            (Howard and Ruder, 2018, arXiv 1801.06146); 1 for one rate.
        lora_rank: of low-rank updates, which are merged when it is exported; 0 trains all weights.
        made: of a checkpoint: what the model is made from again, its weights being in the checkpoint.
        training: see `Training`.
    """

    network: PretrainedEncoderDecoder

    def __init__(
        self,
        schema: Schema,
        *,
        pretrained: str,
        dropout: Annotated[float, Ge(0), Lt(1)],
        layer_decay: Annotated[float, Gt(0), Le(1)],
        lora_rank: Annotated[int, Ge(0)],
        made: Made | None = None,
        **training: Unpack[Training],
    ) -> None:
        if made is None:
            model, made = load(pretrained, dropout=dropout)
            check_tokenizer(pretrained, schema, option="model")
        else:
            model = remake(made)
        most = max(schema["max_target_length"], training["max_length"])
        network = PretrainedEncoderDecoder(
            {**schema, "max_target_length": most}, model, prefix=made["prefix"], dropout=dropout, lora_rank=lora_rank
        )
        super().__init__(schema, network, **training)
        self.save_hyperparameters(logger=False)  # a tokenizer's pieces are no YAML: OmegaConf reads ${ in them
        self.hparams["made"] = made
        self.layer_decay = layer_decay

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW, fused, whose rate is lower the deeper a layer lies."""
        options, network = self.training_options, self.network
        return adamw_by_depth(network, options, layer_decay=self.layer_decay, depth=network.depth)

    def export_graphs(self) -> list[Graph]:
        """Return what is exported: the encoder, the decoder's first step, and its further steps."""
        scorer = self.scorer
        assert isinstance(scorer, PretrainedEncoderDecoder)
        return graphs_of(scorer.to_export(), self.schema)
