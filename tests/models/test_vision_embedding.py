"""Where a network puts pictures, as TensorBoard's projector reads it."""

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from models.outputs import gathered
from models.vision import embedding


def test_what_the_last_linear_layer_is_given_is_kept_of_the_first_rows_of_a_split():
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    given = torch.randn(6, 4)
    rows = torch.tensor([2_000, 3, embedding.MOST, 999, 0, 5_000])
    with embedding.before_decision(network) as kept:
        network(given)
    found = embedding.some(kept, rows)
    torch.testing.assert_close(found["embedding"], network[:2](given)[[1, 3, 4]])
    assert found["row"].tolist() == [3, 999, 0]
    network(given)
    assert len(kept) == 1  # nothing is left behind
    with embedding.before_decision(nn.Conv2d(3, 3, 1)) as kept:
        assert embedding.some(kept, rows) == {}


def test_the_projector_has_a_place_a_label_and_a_thumbnail_of_each_picture(tmp_path):
    found = gathered([{"embedding": torch.randn(3, 5), "row": torch.tensor([2, 0, 1])}])
    images = torch.zeros(3, 96, 48, 3, dtype=torch.uint8)
    with SummaryWriter(str(tmp_path)) as writer:
        embedding.write(found, [("a", "a"), ("b", "a"), ("c", "c")], images, writer, 7)
    config = (tmp_path / "projector_config.pbtxt").read_text()
    assert config.count("single_image_dim: 48") == 2
    assert (tmp_path / "00007/test/metadata.tsv").read_text().splitlines() == [
        "class\tpredicted",
        "a\ta",
        "b\ta",
        "c\tc",
    ]
    lines = (tmp_path / "00007/test/tensors.tsv").read_text().splitlines()
    assert [len(line.split("\t")) for line in lines] == [5, 5, 5]
    assert (tmp_path / "00007/test/sprite.png").exists()
