"""Object detection: boxes, suppression, targets, loss, average precision, the exported graph."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision

from models.detection import boxes, export, metrics, report
from models.detection.architectures import DetectionFcosSmall, DetectionTorchvision
from models.detection.baselines import UsualPlaces, detections
from models.detection.matching import Detected, judged
from models.detection.networks import locations
from models.detection.targets import targets_of
from train.export.graph import largest_difference, write

SCHEMA = {
    "classes": ["a", "b", "c"],
    "counts": [60, 30, 10],
    "objects_per_image": 2.0,
    "image_size": [64, 96],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.3, 0.3, 0.3],
    "patches": {"size": 2, "covariance": torch.eye(12).tolist()},
}
OPTIONS = {
    "width": 8,
    "depth": 2,
    "input_size": None,
    "most_overlap": 0.6,
    "lr": 1e-3,
    "weight_decay": 0.0,
    "warmup_share": 0.1,
    "schedule": "cosine",
    "gradient_clip": None,
    "ema_decay": 0.9,
    "compile": False,
}
OPTIONS_OF_TORCHVISION = {
    **{name: value for name, value in OPTIONS.items() if name not in ("width", "depth")},
    "anchor_scale": 1.0,
}
ONE_STAGE = ["ssdlite320_mobilenet_v3_large", "fcos_resnet50_fpn", "retinanet_resnet50_fpn"]


def module(seed=0, **changed):
    """With weights that find something nearly everywhere."""
    torch.manual_seed(seed)
    made = DetectionFcosSmall(SCHEMA, **{**OPTIONS, **changed})
    with torch.no_grad():
        for network in (made.network, made.average):
            network.head.logits.weight.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
            network.head.logits.bias.fill_(-1.0)
    return made.eval()


def images(num=4, size=(64, 96), seed=0):
    return torch.randint(0, 256, (num, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def training_rows(num=4):
    target, crowd = torch.tensor([[0, 2, -1]] * num), torch.zeros(num, 3, dtype=torch.bool)
    located = torch.stack([random_boxes(3, seed=number) for number in range(num)])
    return {"image": images(num), "boxes": located, "target": target, "crowd": crowd}


def random_boxes(num, seed=0, side=60.0):
    draw = torch.rand(num, 4, generator=torch.Generator().manual_seed(seed))
    corner = draw[:, :2] * side
    return torch.cat([corner, corner + 5 + draw[:, 2:] * side / 2], dim=1)


def test_overlaps_are_torchvisions():
    one, other = random_boxes(7), random_boxes(5, seed=1)
    torch.testing.assert_close(boxes.overlaps(one[None], other[None])[0], torchvision.ops.box_iou(one, other))
    overlap, generalized = boxes.generalized_overlap(one, one.flip(0))
    torch.testing.assert_close(generalized, torchvision.ops.generalized_box_iou(one, one.flip(0)).diagonal())
    torch.testing.assert_close(overlap, torchvision.ops.box_iou(one, one.flip(0)).diagonal())


@pytest.mark.parametrize("most_overlap", [0.3, 0.6])
def test_suppression_is_greedy(most_overlap):
    located = torch.stack([random_boxes(120, seed=seed) for seed in range(3)])
    scores = torch.rand(3, 120, generator=torch.Generator().manual_seed(0)).sort(dim=1, descending=True).values
    labels = torch.randint(0, 2, (3, 120), generator=torch.Generator().manual_seed(0))
    stays = boxes.kept(boxes.overlaps(located, located), labels, scores > 0.1, most_overlap=most_overlap)
    for row in range(3):
        is_there = scores[row] > 0.1
        expected = torchvision.ops.batched_nms(
            located[row][is_there], scores[row][is_there], labels[row][is_there], most_overlap
        )
        assert stays[row].nonzero().flatten().tolist() == sorted(expected.tolist())


def test_detections_come_surest_first_and_are_padded():
    located, scores = random_boxes(30)[None], torch.zeros(1, 30, 3)
    scores[0, 4, 1], scores[0, 9, 2], scores[0, 9, 0] = 0.5, 0.9, 0.01
    found = boxes.detections(located, scores, most_overlap=0.6, least_score=0.05, most_candidates=20, most=10)
    assert found.shape == (1, 10, 6)
    assert found[0, :, 5].tolist() == [2, 1] + [-1] * 8
    torch.testing.assert_close(found[0, :2, :5], torch.cat([located[0, [9, 4]], torch.tensor([[0.9], [0.5]])], dim=1))
    assert found[0, 2:, :5].abs().max() == 0


def test_equal_scores_keep_their_places_whatever_rounds_them():
    scores = torch.full((1, 50), 0.30003)
    assert boxes.best(scores, 10)[1].tolist() == [list(range(10))]
    assert boxes.best(scores + 1e-7 * torch.rand(1, 50), 10)[1].tolist() == [list(range(10))]


def assigned(objects, labels, crowd=None):
    points, strides, reach = locations((256, 256))
    given = torch.tensor([objects], dtype=torch.float32)
    is_crowd = torch.tensor([crowd or [False] * len(labels)])
    return points, strides, targets_of(points, strides, reach, given, torch.tensor([labels]), is_crowd)


def test_locations_in_the_middle_of_an_object_are_its_own_and_the_smaller_object_has_them_first():
    points, strides, found = assigned([[8, 8, 40, 40], [20, 20, 30, 30], [0, 0, 0, 0]], [2, 1, -1])
    small, large = found.labels[0] == 1, found.labels[0] == 2
    assert small.any()
    assert large.any()
    assert (strides[small | large] == 8).all()
    assert ((points[small] - 25).abs() <= 5).all()
    assert ((points[large] - 24).abs() <= 12).all()
    assert (found.boxes[0][small] == torch.tensor([20.0, 20, 30, 30])).all()
    assert found.counts.all()


def test_a_large_object_belongs_to_coarser_levels_and_a_tiny_one_has_a_location():
    _, strides, found = assigned([[80, 90, 255, 240], [33, 33, 35, 35]], [0, 1])
    assert set(strides[found.labels[0] == 0].tolist()) == {16.0, 32.0}
    assert (found.labels[0] == 1).sum() >= 1


def test_nothing_is_learnt_of_a_crowd():
    points, _, found = assigned([[8, 8, 40, 40]], [0], [True])
    assert (found.labels == -1).all()
    inside = ((points >= 8) & (points <= 40)).all(dim=1)
    assert torch.equal(~found.counts[0], inside)


def batch_of(num=6):
    target = torch.tensor([[0, 1], [2, -1], [-1, -1]] * (num // 3))
    located = torch.stack([random_boxes(2, seed=row) for row in range(num)])
    return {"image": images(num), "boxes": located, "target": target, "crowd": torch.zeros(num, 2, dtype=torch.bool)}


def test_the_loss_of_a_batch_is_the_mean_of_its_pictures():
    made, batch = module(), batch_of()
    whole = made.loss_of(batch)
    parts = [made.loss_of({name: values[row : row + 1] for name, values in batch.items()}) for row in range(6)]
    torch.testing.assert_close(whole, torch.stack(parts).mean())
    assert torch.isfinite(whole)


def test_a_few_steps_on_one_batch_find_its_objects():
    torch.manual_seed(0)
    made = DetectionFcosSmall(SCHEMA, **OPTIONS)
    batch = batch_of(3)
    batch["image"] = torch.zeros_like(batch["image"])
    for row in range(3):
        for place in range(2):
            if batch["target"][row, place] >= 0:
                left, top, right, bottom = batch["boxes"][row, place].int().tolist()
                batch["image"][row, top:bottom, left:right, batch["target"][row, place]] = 255
    optimizer = torch.optim.Adam(made.network.parameters(), lr=3e-3)
    first = made.loss_of(batch).item()
    for _ in range(60):
        loss = made.loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3 * first
    found = made.network.eval()(batch["image"])
    truth = [batch[name].numpy() for name in ("boxes", "target", "crowd")]
    rows = Detected(found.detach().numpy(), *truth, np.tile([[64, 96]], (3, 1)), np.arange(3))
    assert metrics.quick(judged(rows, 3))["map_50"] > 0.5


def rows_of(num=12, seed=0):
    """Objects, detections near them, duplicates and false ones, and crowds."""
    draw = np.random.default_rng(seed)
    target = draw.integers(-1, 3, (num, 4))
    located = np.stack([random_boxes(4, seed=row).numpy() for row in range(num)]).astype(np.float32)
    near = np.repeat(located, 3, axis=1) + draw.normal(0, 2.5, (num, 12, 4)).astype(np.float32)
    near[..., 2:] = np.maximum(near[..., 2:], near[..., :2] + 1)
    label = np.where(draw.random((num, 12)) < 0.8, np.repeat(target, 3, axis=1), draw.integers(0, 3, (num, 12)))
    score = np.where(label >= 0, draw.random((num, 12)), 0)
    order = np.argsort(-score, axis=1)
    found = np.concatenate([near, score[..., None], label[..., None]], axis=2).astype(np.float32)
    found = np.take_along_axis(found, order[..., None], axis=1)
    crowd = draw.random(target.shape) < 0.15
    return Detected(found, located, target, crowd, np.tile([[64, 96]], (num, 1)), np.arange(num))


@pytest.mark.parametrize("seed", range(3))
def test_our_average_precision_is_the_librarys(seed):
    rows = rows_of(seed=seed)
    told, by_class = metrics.metrics_of(rows, SCHEMA["image_size"], 3)
    quick = metrics.quick(judged(rows, 3))
    assert 0.1 < quick["map"] < 0.95
    for name, value in quick.items():
        assert value == pytest.approx(told[name], abs=1e-6)
    assert np.nanmean(by_class) == pytest.approx(told["map"], abs=1e-6)


def test_a_resample_counts_pictures_as_often_as_it_has_them():
    rows = judged(rows_of(), 3)
    index = np.array([0, 0, 3, 5, 7, 7, 7, 2])
    taken = judged(
        Detected(**{name: values[index] for name, values in vars(rows_of()).items() if values is not None}), 3
    )
    assert metrics.quick(rows, index)["map"] == pytest.approx(metrics.quick(taken)["map"], abs=0.02)
    low, high = metrics.intervals(rows)["map"]
    assert low < metrics.quick(rows)["map"] < high


def test_sizes_are_those_of_the_pictures_as_they_were_given():
    rows = rows_of()
    large = Detected(**{**vars(rows), "size": rows.size * 20})
    assert "map_small" in metrics.metrics_of(rows, SCHEMA["image_size"], 3)[0]
    told, _ = metrics.metrics_of(large, SCHEMA["image_size"], 3)
    assert "map_small" not in told
    assert told["map"] == pytest.approx(metrics.metrics_of(rows, SCHEMA["image_size"], 3)[0]["map"], abs=1e-6)


def test_the_folded_network_finds_the_same_and_boxes_come_in_pixels_of_what_is_given():
    made = module()
    torch.testing.assert_close(made.scorer.folded()(images()), made(images()), atol=1e-3, rtol=1e-3)
    twice = images().repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    found, small = made(twice), made(images())
    assert (small[..., 5] >= 0).any(dim=1).all()
    assert found[..., 2].max() > 96
    assert found[..., 2].max() <= 192


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_graph_answers_as_torch_on_pictures_of_any_size(tmp_path):
    made = module()
    (graph,) = made.export_graphs()
    write(graph, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])

    def reference(rows):
        with torch.inference_mode():
            return tuple(part.numpy() for part in graph.module(torch.from_numpy(rows["image"])))

    for size in ((64, 96), (50, 130)):
        raw = {"image": images(7, size).numpy()}
        assert largest_difference(session, reference, raw, paired=graph.paired) <= graph.tolerance
    answers = zip(session.get_outputs(), session.run(None, raw), strict=True)
    named = {one.name: torch.from_numpy(value) for one, value in answers}
    found = made.stand_in({"model": lambda rows: named})(images())
    assert torch.equal(found[..., 4], named["scores"])
    assert (named["count"] == (found[..., 5] >= 0).sum(dim=1)).all()


def test_what_differs_is_no_pair():
    found = [part.numpy() for part in export.Detector(module().scorer)(images())]
    swapped = [part[:, [1, 0, *range(2, part.shape[1])]] if part.ndim > 1 else part for part in found]
    ours, theirs = export.paired(swapped, found)
    assert ours[2].all()
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)
    moved = [found[0] + 3.0, *found[1:]]
    assert not export.paired(moved, found)[0][2].any()
    more = [*found[:3], found[3] + 1]
    assert (~export.paired(more, found)[0][2]).sum() == len(found[3])


def test_predictions_are_json_with_boxes_in_pixels_of_the_file():
    made = module()
    batch = {"image": images(2), "size": torch.tensor([[64, 96], [128, 96]])}
    (column,) = made.predict_columns(batch, decision="cost").values()
    one, other = (json.loads(text) for text in column)
    found = made(images(2))
    assert one[0]["label"] == SCHEMA["classes"][int(found[0, 0, 5])]
    np.testing.assert_allclose(one[0]["box"], found[0, 0, :4].detach(), atol=0.01)
    np.testing.assert_allclose(other[0]["box"], found[1, 0, :4].detach() * torch.tensor([1, 2, 1, 2]), atol=0.01)
    with pytest.raises(ValueError, match="leave it out"):
        made.predict_columns({"image": images(2)}, decision="budget")


def test_figures_and_tables_are_made_of_what_was_found():
    rows = rows_of()
    pictures = report.figures(rows, judged(rows, 3), SCHEMA["classes"], images(12))
    assert set(pictures) == {"precision_recall", "classes", "predictions", "mistakes"}
    assert "\na | 4 | 0.5000" in report.class_table(rows, SCHEMA["classes"], [0.5, 0.4, float("nan")])


def test_the_baseline_says_the_usual_places():
    batch = batch_of()
    batch["boxes"][:, 0] = torch.tensor([10.0, 10, 30, 30])
    fitted = UsualPlaces().fit(batch)
    found = detections(fitted, images(2))
    assert found.shape[0] == 2
    assert found[0, 0, 4] == pytest.approx(1 / 3)
    np.testing.assert_allclose(found[0, 0, :4], [10, 10, 30, 30], atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ONE_STAGE)
def test_a_detector_of_torchvision_learns_picture_by_picture_and_exports(architecture, tmp_path):
    torch.manual_seed(0)
    made = DetectionTorchvision(SCHEMA, **OPTIONS_OF_TORCHVISION, architecture=architecture, weights=None).train()
    batch = batch_of(3)
    whole = made.loss_of(batch)
    parts = [made.loss_of({name: values[row : row + 1] for name, values in batch.items()}) for row in range(3)]
    torch.testing.assert_close(whole, torch.stack(parts).mean(), atol=1e-4, rtol=1e-4)
    whole.backward()
    assert all(torch.isfinite(one.grad).all() for one in made.network.parameters() if one.grad is not None)
    (graph,) = made.eval().export_graphs()
    write(graph, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = tuple(part.numpy() for part in graph.module(images(2)))
    ours, theirs = graph.paired(session.run(None, {"image": images(2).numpy()}), expected)
    assert np.mean(ours[2]) > 0.99 or not len(ours[2])
    assert np.abs(ours[0] - theirs[0]).max(initial=0) <= graph.tolerance


def test_a_detector_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="architecture must be one of fcos_resnet50_fpn, .*; got 'fasterrcnn'"):
        DetectionTorchvision(SCHEMA, **OPTIONS_OF_TORCHVISION, architecture="fasterrcnn", weights=None)


def test_boxes_are_voted_on_by_those_of_their_class_that_overlap_them():
    located = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 12], [0, 0, 10, 12], [50, 50, 60, 60]]])
    labels, scores = torch.tensor([[1, 1, 2, 1]]), torch.tensor([[0.8, 0.4, 0.9, 0.9]])
    found = boxes.voted(located, boxes.overlaps(located, located), labels, scores)
    near = 0.4 * np.exp(-((1 - 100 / 120) ** 2) / boxes.NEAR)  # what the second's vote weighs at the first's place
    torch.testing.assert_close(found[0, 0], torch.tensor([0, 0, 10, 10 + 2 * near / (0.8 + near)], dtype=torch.float32))
    torch.testing.assert_close(found[0, 2:], located[0, 2:])


@pytest.mark.parametrize("how", ["magnitude", "taylor"])
def test_a_pruned_network_is_smaller_and_takes_the_kept_weights(how):
    whole = module()
    options, state = whole.pruned(0.5, how=how, batches=[training_rows()])
    smaller = module(**options)
    smaller.load_state_dict(state)
    before, after = (sum(p.numel() for p in one.network.parameters()) for one in (whole, smaller))
    assert after < 0.4 * before
    assert smaller(images()).shape == (4, 100, 6)
    assert smaller.loss_of(training_rows()).isfinite()


@torch.no_grad()
def test_without_channels_that_do_nothing_a_network_answers_the_same():
    """Of plain convolutions: scaled ones are scaled by all their inputs, the idle ones, too."""
    plain = module().average.folded()
    state, sizes = plain.state_dict(), {}
    for units in plain.units():
        idle, sizes[units.option] = torch.arange(1, units.size, 2), (units.size + 1) // 2
        for part in units.slices:
            if part.dim == 0 and part.name in state:  # where they are made
                state[part.name][idle] = 0
    plain.load_state_dict(state)
    for units in plain.units():
        for part in units.slices:
            if part.name in state:
                state[part.name] = state[part.name].index_select(part.dim, torch.arange(0, units.size, 2))
    smaller = module(**sizes).average.folded()
    smaller.load_state_dict(state)
    pixels = plain.pixels(images())
    torch.testing.assert_close(smaller.answers(pixels), plain.answers(pixels), atol=1e-5, rtol=1e-5)


def test_masks_that_nobody_learns_are_refused():
    with pytest.raises(ValueError, match=r"data\.masks=true.*leave it out.*maskrcnn"):
        DetectionFcosSmall({**SCHEMA, "masks": True}, **OPTIONS)


def test_a_network_of_torchvisions_says_that_it_cannot_be_pruned():
    made = DetectionTorchvision(SCHEMA, architecture=ONE_STAGE[0], weights=None, **OPTIONS_OF_TORCHVISION)
    with pytest.raises(ValueError, match=r"cannot be pruned: leave prune\.ratio out"):
        made.pruned(0.5, how="magnitude", batches=[])
