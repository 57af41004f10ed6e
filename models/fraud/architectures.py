"""The architectures of the fraud experiment: each is a `FraudModule` around one network of models/tabular.py."""

from typing import Annotated, Unpack

from annotated_types import Ge, Gt, Lt

from models.fraud.module import FraudModule, Schema, Training
from models.tabular import MLP, FTTransformer, TabM

Dropout = Annotated[float, Ge(0), Lt(1)]
Count = Annotated[int, Gt(0)]


class FraudTabM(FraudModule):
    """TabM, an ensemble in one network (Gorishniy et al., 2024, arXiv 2410.24210)."""

    def __init__(
        self,
        schema: Schema,
        *,
        embedding_size: Count,
        width: Count,
        num_blocks: Count,
        dropout: Dropout,
        num_members: Count,
        category_size: Count,
        **training: Unpack[Training],
    ) -> None:
        network = TabM(
            schema,
            embedding_size=embedding_size,
            width=width,
            num_blocks=num_blocks,
            dropout=dropout,
            num_members=num_members,
            category_size=category_size,
        )
        super().__init__(schema, network, **training)
        self.save_hyperparameters()


class FraudMLP(FraudModule):
    """A plain multilayer perceptron on the same encoded inputs."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: Count,
        num_blocks: Count,
        dropout: Dropout,
        category_size: Count,
        **training: Unpack[Training],
    ) -> None:
        network = MLP(schema, width=width, num_blocks=num_blocks, dropout=dropout, category_size=category_size)
        super().__init__(schema, network, **training)
        self.save_hyperparameters()


class FraudFTTransformer(FraudModule):
    """FT-Transformer: columns as tokens (Gorishniy et al., 2021, arXiv 2106.11959)."""

    def __init__(
        self,
        schema: Schema,
        *,
        width: Count,
        num_blocks: Count,
        num_heads: Count,
        dropout: Dropout,
        head_size: Count | None = None,
        feed_size: Count | None = None,
        **training: Unpack[Training],
    ) -> None:
        network = FTTransformer(
            schema,
            width=width,
            num_blocks=num_blocks,
            num_heads=num_heads,
            dropout=dropout,
            head_size=head_size,
            feed_size=feed_size,
        )
        super().__init__(schema, network, **training)
        self.save_hyperparameters()
