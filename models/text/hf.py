"""Text classification with a pretrained encoder of `transformers`: pip install 'fullcycle[hf]'."""

from typing import Annotated, Any, Unpack

import torch
from annotated_types import Ge, Gt, Le, Lt

from models.graph import Graph
from models.optim import adamw_by_depth
from models.pretrained import check_tokenizer, merged
from models.text import pretrained
from models.text.export import graph_of
from models.text.module import Schema, TextModule, Training
from models.text.pretrained import Pooling, Pretrained


class TextPretrained(TextModule):
    """Fine-tunes a pretrained encoder. `data.tokenizer` must be the encoder's own tokenizer.json.

    Checkpoints hold the encoder's config and all of its weights: they load without the hub and without the folder.

    Args:
        schema: what the data module knows of the data.
        encoder: its name on the Hugging Face hub, or a local folder.
        pooling: of token vectors: attention, which begins as their mean, or first.
        dropout: between the encoder's layers, and before the head.
        layer_decay: of the learning rate, from each layer to the one below it (Howard and Ruder, 2018, arXiv
            1801.06146); 1 for one rate.
        lora_rank: of low-rank updates, which are merged when it is exported; 0 trains all weights.
        encoder_config: of a checkpoint: what the encoder is made from again, its weights being in the checkpoint.
        training: see `Training`.
    """

    network: Pretrained
    average: Pretrained | None

    def __init__(
        self,
        schema: Schema,
        *,
        encoder: str,
        pooling: Pooling,
        dropout: Annotated[float, Ge(0), Lt(1)],
        layer_decay: Annotated[float, Gt(0), Le(1)],
        lora_rank: Annotated[int, Ge(0)],
        encoder_config: dict[str, Any] | None = None,
        **training: Unpack[Training],
    ) -> None:
        if encoder_config is None:
            made, encoder_config = pretrained.load(encoder)
            check_tokenizer(encoder, schema, option="encoder")
        else:
            made = pretrained.remake(encoder_config)
        network = Pretrained(schema, made, pooling=pooling, dropout=dropout, lora_rank=lora_rank)
        super().__init__(schema, network, **training)
        self.save_hyperparameters(logger=False)  # a tokenizer's pieces are no YAML: OmegaConf reads ${ in them
        self.hparams["encoder_config"] = encoder_config
        self.layer_decay = layer_decay

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW, fused, whose rate is lower the deeper a layer lies."""
        network = self.network
        return adamw_by_depth(network, self.training_options, layer_decay=self.layer_decay, depth=network.depth)

    def export_graphs(self) -> list[Graph]:
        """Return what is exported: one graph, token ids to calibrated probabilities and labels."""
        scorer = self.scorer
        assert isinstance(scorer, Pretrained)
        return [graph_of(merged(scorer), self.calibration, self.schema)]
