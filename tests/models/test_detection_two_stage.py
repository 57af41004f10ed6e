"""Faster R-CNN: what its stages choose, its loss picture by picture, and its exported graph."""

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision

from models.detection.architectures import DetectionTorchvision
from models.detection.proposals import NONE, drawn, proposals, sampled
from train.export.graph import largest_difference, write

SCHEMA = {
    "classes": ["a", "b", "c"],
    "counts": [60, 30, 10],
    "image_size": [64, 96],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.3, 0.3, 0.3],
}
OPTIONS = {
    "architecture": "fasterrcnn_mobilenet_v3_large_320_fpn",
    "weights": None,
    "input_size": None,
    "most_overlap": 0.6,
    "anchor_scale": 0.3,
    "lr": 1e-3,
    "weight_decay": 0.0,
    "warmup_share": 0.1,
    "schedule": "cosine",
    "gradient_clip": None,
    "ema_decay": None,
    "compile": False,
}
CHEAP = OPTIONS["architecture"]


def module(**changed):
    torch.manual_seed(0)
    return DetectionTorchvision(SCHEMA, **{**OPTIONS, **changed})


def images(num=4, size=(64, 96), seed=0):
    return torch.randint(0, 256, (num, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def random_boxes(num, seed=0):
    draw = torch.rand(num, 4, generator=torch.Generator().manual_seed(seed))
    return torch.cat([draw[:, :2] * 40, draw[:, :2] * 40 + 8 + draw[:, 2:] * 15], dim=1)


def batch_of(num=6):
    target = torch.tensor([[0, 1], [2, -1], [-1, -1]] * (num // 3))
    located = torch.stack([random_boxes(2, seed=row) for row in range(num)])
    return {"image": images(num), "boxes": located, "target": target, "crowd": torch.zeros(num, 2, dtype=torch.bool)}


def rows_of(batch, rows):
    return {name: values[rows] for name, values in batch.items()}


def test_samples_hold_their_share_of_objects_and_nothing_that_does_not_count():
    labels = torch.tensor([1] * 50 + [0] * 200 + [-1] * 50)
    chosen = sampled(labels, torch.arange(300), torch.tensor(7), num=64, share=0.25)
    assert labels[chosen].tolist() == [1] * 16 + [0] * 48
    assert len(chosen.unique()) == 64
    few = sampled(labels[45:60], torch.arange(15), torch.tensor(7), num=64, share=0.25)
    assert labels[45:60][few].tolist() == [1] * 5 + [0] * 10


def test_what_is_sampled_depends_on_the_seed_and_on_what_it_is_not_on_its_place():
    labels, ids = torch.tensor([1] * 40 + [0] * 400), torch.arange(440)
    order = torch.randperm(440, generator=torch.Generator().manual_seed(0))
    one, same, other = (
        given[sampled(labels[given], ids[given], torch.tensor(seed), num=64, share=0.25)]
        for given, seed in ((ids, 3), (order, 3), (ids, 4))
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    without = ids[ids != one[0]]  # one candidate fewer moves one choice
    left = without[sampled(labels[without], without, torch.tensor(3), num=64, share=0.25)]
    assert len(np.setdiff1d(left, one)) == 1


def test_samples_are_spread_evenly():
    counts = torch.zeros(400)
    for seed in range(400):
        counts[sampled(torch.zeros(400), torch.arange(400), torch.tensor(seed), num=100, share=0.5)] += 1
    # Of a binomial count of 400 draws of a quarter: 100 on average, 8.7 its spread.
    assert counts.std().item() == pytest.approx(8.7, rel=0.25)


def test_proposals_are_those_of_torchvisions_suppression_level_by_level():
    sizes = [60, 30]
    located = random_boxes(90)[None].repeat(2, 1, 1)
    logits = torch.randn(2, 90, generator=torch.Generator().manual_seed(0)) * 4
    located[1, 5, 2:] = located[1, 5, :2]  # without area
    found = proposals(logits, located, sizes, most=50)
    level = torch.tensor([0] * 60 + [1] * 30)
    for row in range(2):
        is_wide = torch.ones(90, dtype=torch.bool)
        is_wide[5] = row == 0
        scores = logits[row].mul(128).round()
        expected = torchvision.ops.batched_nms(located[row][is_wide], scores[is_wide], level[is_wide], 0.7)
        expected = is_wide.nonzero().flatten()[expected].tolist()[:50]
        assert set(found.anchors[row][found.is_there[row]].tolist()) == set(expected)
        assert torch.equal(found.boxes[row], located[row][found.anchors[row]])
    few = proposals(torch.full((1, 90), NONE), located[:1, :1].repeat(1, 90, 1), sizes, most=50)
    assert few.is_there.sum() == 2  # all are one box: one of each level is left


def test_what_may_be_learnt_from_is_drawn_by_the_odds_whatever_rounds_the_scores():
    located = random_boxes(400)[None].repeat(3, 1, 1)
    logits = torch.where(torch.arange(400) < 100, 2.0, -2.0).repeat(3, 1)
    seeds = torch.tensor([1, 2, 1])
    found = drawn(logits, located, seeds, most=40)
    again = drawn(logits + 1e-6 * torch.randn(3, 400), located, seeds, most=40)
    one, other, same = (set(row.tolist()) for row in found.anchors)
    assert one == same != other
    assert [set(row.tolist()) for row in again.anchors] == [one, other, same]
    assert (found.anchors < 100).float().mean() > 0.8  # odds of 55 to 1, one to three
    located[:, :10, 2:] = located[:, :10, :2]  # without area
    every = drawn(logits, located, seeds, most=1000)
    assert every.is_there.sum(dim=1).tolist() == [390] * 3
    assert (every.anchors[every.is_there] >= 10).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("architecture", "size"), [(CHEAP, 224), ("fasterrcnn_resnet50_fpn_v2", None)])
def test_ranks_add_up_to_one_process(architecture, size):
    made, batch = module(architecture=architecture, input_size=size).train(), batch_of()
    seeds = made.network.seeds
    torch.manual_seed(1)
    whole = made.loss_of(batch)
    parts = []
    for rank in range(2):
        seeds.rows = (rank, 2, 6)
        torch.manual_seed(1)
        parts.append(made.loss_of(rows_of(batch, slice(rank, None, 2))))
    torch.testing.assert_close(whole, torch.stack(parts).mean(), atol=1e-5, rtol=1e-5)
    whole.backward()
    assert all(torch.isfinite(one.grad).all() for one in made.network.parameters())
    seeds.rows = None
    torch.manual_seed(2)
    assert made.loss_of(batch) != whole  # another step learns from other anchors


@pytest.mark.slow
def test_a_rank_without_rows_asks_every_part_of_the_network_and_changes_nothing():
    made = module().train()
    made.network.seeds.rows = (1, 2, 1)
    made.loss_of(rows_of(batch_of(), slice(0))).backward()
    assert all(one.grad is not None and not one.grad.any() for one in made.network.parameters())


@pytest.mark.slow
def test_a_picture_that_is_seen_often_enough_is_known():
    made, batch = module().train(), rows_of(batch_of(3), slice(1))
    batch["image"] = torch.zeros_like(batch["image"])
    batch["boxes"] = torch.tensor([[[8.0, 8, 40, 44], [50, 16, 88, 50]]])  # the strides of this network are 32 pixels
    for place, (left, top, right, bottom) in enumerate(batch["boxes"][0].int().tolist()):
        batch["image"][0, top:bottom, left:right, batch["target"][0, place]] = 255
    optimizer = torch.optim.Adam(made.network.parameters(), lr=5e-4)
    for step in range(150):
        torch.manual_seed(step)
        loss = made.loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    (found,) = made.eval()(batch["image"])
    sure = found[found[:, 4] > 0.3]
    overlap = torchvision.ops.box_iou(batch["boxes"][0], sure[:, :4])
    is_same = batch["target"][0].unsqueeze(1) == sure[:, 5]
    assert ((overlap > 0.5) & is_same).any(dim=1).all()  # each object is found
    assert len(sure) <= 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", [CHEAP, "fasterrcnn_resnet50_fpn"])
def test_the_graph_answers_as_torch_on_pictures_of_any_size(architecture, tmp_path):
    made = module(architecture=architecture).eval()
    (graph,) = made.export_graphs()
    write(graph, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])

    def reference(rows):
        with torch.inference_mode():
            return tuple(part.numpy() for part in graph.module(torch.from_numpy(rows["image"])))

    for num, size in ((1, (64, 96)), (3, (50, 130))):
        raw = {"image": images(num, size).numpy()}
        assert reference(raw)[3].min() > 0
        assert largest_difference(session, reference, raw, paired=graph.paired) <= graph.tolerance


@pytest.mark.slow
def test_regions_are_pooled_as_torchvision_does():
    network = module(anchor_scale=1.0, input_size=256).network.eval()
    draw = torch.Generator().manual_seed(0)
    corner = torch.rand(2, 40, 2, generator=draw) * 100
    regions = torch.cat([corner, corner + 2 + torch.rand(2, 40, 2, generator=draw) * 150], dim=2)
    pooler = network.body.roi_heads.box_roi_pool
    with torch.no_grad():
        levels = network.body.backbone(network.pixels(images(2)))
        expected = pooler(levels, list(regions), [network.pixels.size] * 2)
        torch.testing.assert_close(network._pooled(pooler, levels, regions), expected)


def test_anchors_that_there_are_not_cannot_be_scaled():
    with pytest.raises(ValueError, match="anchor_scale must be 1: fcos_resnet50_fpn has .* got 0.3"):
        module(architecture="fcos_resnet50_fpn")
