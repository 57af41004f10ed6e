"""Masks of objects: where they lie, what they cost and score, how they are told; Mask R-CNN as a whole."""

import json

import numpy as np
import onnxruntime
import pytest
import torch

from models.detection import masks, metrics, report
from models.detection.architectures import DetectionTorchvision
from models.detection.matching import Detected, judged
from train.export.graph import largest_difference, write

SIDE = 16
SCHEMA = {
    "classes": ["a", "b", "c"],
    "counts": [60, 30, 10],
    "image_size": [64, 96],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.3, 0.3, 0.3],
    "masks": True,
}
OPTIONS = {
    "architecture": "maskrcnn_resnet50_fpn",
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


def module(schema=SCHEMA):
    torch.manual_seed(0)
    return DetectionTorchvision(schema, **OPTIONS)


def images(num):
    return torch.randint(0, 256, (num, 64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def packed(covered):
    """Masks bool [.., S, S] as bytes [.., S S / 8]."""
    return torch.from_numpy(np.packbits(np.asarray(covered).reshape(*covered.shape[:-2], -1), axis=-1))


def batch_of(num=4):
    corner = torch.rand(num, 2, 2, generator=torch.Generator().manual_seed(1)) * 40
    boxes = torch.cat([corner, corner + 20], dim=2)
    triangles = packed(np.broadcast_to(np.tri(SIDE, dtype=bool), (num, 2, SIDE, SIDE)))
    target = torch.tensor([[0, 1], [2, -1], [-1, -1], [1, 1]])[:num]
    more = {"target": target, "crowd": torch.zeros(num, 2, dtype=torch.bool)}
    return {"image": images(num), "boxes": boxes, "frames": boxes.clone(), "masks": triangles, **more}


def test_packed_masks_are_unpacked():
    given = np.random.default_rng(0).random((5, SIDE, SIDE)) < 0.4
    assert np.array_equal(masks.unpacked(packed(given)).numpy() > 0, given)


def test_a_mask_fills_its_frame_and_a_mirrored_one_is_turned():
    half = torch.zeros(1, SIDE, SIDE)
    half[:, :, : SIDE // 2] = 1
    (found,) = masks.pasted(half, torch.tensor([[4.0, 2, 12, 10]]), 16, 20)
    expected = np.zeros((16, 20), bool)
    expected[2:10, 4:8] = True
    assert np.array_equal(found, expected)
    (turned,) = masks.pasted(half, torch.tensor([[12.0, 2, 4, 10]]), 16, 20)
    assert np.array_equal(turned, np.roll(expected, 4, axis=1))


def test_what_a_region_is_to_learn_is_the_part_of_the_mask_in_it():
    half = torch.zeros(1, SIDE, SIDE)
    half[:, :, : SIDE // 2] = 1
    frame = torch.tensor([[0.0, 0, 32, 32]])
    left, right, outside = (
        masks.within(half, frame, torch.tensor([region]), 4).mean().item()
        for region in ([2.0, 2, 14, 14], [18.0, 2, 30, 14], [40.0, 40, 50, 50])
    )
    assert (left, right, outside) == (1, 0, 0)


def test_run_lengths_are_cocos():
    covered = np.random.default_rng(0).random((9, 14)) < 0.5
    told = masks.run_lengths(covered)
    from faster_coco_eval.core import mask

    assert told["size"] == [9, 14]
    assert np.array_equal(mask.decode({**told, "counts": told["counts"].encode()}), covered)


def detected(shrink=0.0, num=6):
    """Triangles, and what was found of them: the same, or smaller."""
    draw = np.random.default_rng(0)
    corner = draw.random((num, 2, 2)) * 30
    boxes = np.concatenate([corner, corner + 30], axis=2).astype(np.float32)
    covered = np.broadcast_to(np.tri(SIDE, dtype=bool), (num, 2, SIDE, SIDE))
    target = np.tile([0, 1], (num, 1))
    columns = [boxes, np.full((num, 2, 1), 0.9), target[..., None]]
    cells = covered * (np.arange(SIDE)[:, None] >= shrink * SIDE) * 255
    return Detected(
        np.concatenate(columns, axis=2).astype(np.float32),
        *(boxes, target, np.zeros((num, 2), bool), np.tile([[64, 96]], (num, 1)), np.arange(num)),
        cells=cells.reshape(num, 2, -1).astype(np.uint8),
        masks=packed(covered).numpy(),
        frames=boxes,
    )


def test_masks_have_an_average_precision_of_their_own():
    whole = metrics.mask_metrics_of(detected(), (64, 96))
    assert whole == pytest.approx({"mask_map": 1.0, "mask_map_50": 1.0, "mask_map_75": 1.0}, abs=0.02)
    # Without the upper 0.6 of a triangle, 0.64 of it is left; boxes are the same.
    part = metrics.mask_metrics_of(detected(shrink=0.6), (64, 96))
    assert part["mask_map_50"] == pytest.approx(1.0)
    assert part["mask_map_75"] == 0
    assert metrics.metrics_of(detected(shrink=0.6), (64, 96), 3)[0]["map"] == pytest.approx(1.0)


def test_masks_of_which_none_was_found_have_a_precision_of_nothing():
    rows = detected()
    none = np.concatenate([rows.found[..., :5] * 0, rows.found[..., 5:] * 0 - 1], axis=2)
    told = metrics.mask_metrics_of(Detected(**{**vars(rows), "found": none}), (64, 96))
    assert told == {"mask_map": 0.0, "mask_map_50": 0.0, "mask_map_75": 0.0}
    assert metrics.mask_metrics_of(Detected(**{**vars(rows), "cells": None}), (64, 96)) == {}


def test_pictures_show_masks():
    rows = detected()
    plain = Detected(**{**vars(rows), "cells": None})
    with_masks, without = (
        report.figures(one, judged(one, 3), SCHEMA["classes"], images(6))["predictions"] for one in (rows, plain)
    )
    assert len(with_masks.axes[0].images) == len(without.axes[0].images) + 2


def test_a_network_of_masks_asks_for_them():
    with pytest.raises(ValueError, match="maskrcnn_resnet50_fpn learns masks.*data.masks=true"):
        module({**SCHEMA, "masks": False})


@pytest.mark.slow
def test_ranks_add_up_to_one_process_and_each_learns_even_without_rows():
    made, batch = module().train(), batch_of()
    torch.manual_seed(1)
    whole = made.loss_of(batch)
    parts = []
    for rank in range(2):
        made.network.seeds.rows = (rank, 2, 4)
        torch.manual_seed(1)
        parts.append(made.loss_of({name: values[rank::2] for name, values in batch.items()}))
    torch.testing.assert_close(whole, torch.stack(parts).mean(), atol=1e-5, rtol=1e-5)
    whole.backward()
    assert all(torch.isfinite(one.grad).all() for one in made.network.parameters())
    assert made.network.body.roi_heads.mask_predictor.mask_fcn_logits.weight.grad.any()
    made.zero_grad()
    made.network.seeds.rows = (1, 2, 1)  # the last mini-batch of an epoch has fewer rows than there are ranks
    made.loss_of({name: values[:0] for name, values in batch.items()}).backward()
    assert all(one.grad is not None and not one.grad.any() for one in made.network.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_graph_gives_torchs_masks_and_predictions_tell_them(tmp_path):
    made = module().eval()
    (graph,) = made.export_graphs()
    assert graph.outputs[-1] == "masks"
    write(graph, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])

    def reference(rows):
        with torch.inference_mode():
            return tuple(part.numpy() for part in graph.module(torch.from_numpy(rows["image"])))

    raw = {"image": images(2).numpy()}
    answers = reference(raw)
    assert answers[3].min() > 0
    assert answers[4].shape == (2, 100, 28, 28)
    assert largest_difference(session, reference, raw, paired=graph.paired) <= graph.tolerance
    named = dict(zip(graph.outputs, map(torch.from_numpy, session.run(None, raw)), strict=True))
    found = made.stand_in({"model": lambda rows: named})(images(2))
    assert found.shape == (2, 100, 6 + 28 * 28)
    moved = [*answers[:4], answers[4] + 0.1]
    ours, theirs = graph.paired(moved, answers)
    assert np.abs(ours[2] - theirs[2]).max() == pytest.approx(0.1, abs=1e-3)
    (column,) = made.predict_columns(
        {"image": images(2), "size": torch.tensor([[64, 96], [128, 96]])}, decision="cost"
    ).values()
    for text, size in zip(column, ([64, 96], [128, 96]), strict=True):
        assert all(one["segmentation"]["size"] == size for one in json.loads(text))
