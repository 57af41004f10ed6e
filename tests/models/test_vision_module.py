"""Image classification: loss, probabilities, baselines, ensembles, pruning, and what a run tells of itself."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from models import pruning
from models.classification import Classified
from models.vision import baselines, report
from models.vision.architectures import VisionResNet9
from models.vision.ensemble import VisionEnsemble

SCHEMA = {
    "classes": ["a", "b", "c"],
    "counts": [60, 30, 10],
    "multi_label": False,
    "class_weights": None,
    "image_size": [8, 8],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.3, 0.3, 0.3],
    "patches": {"size": 2, "covariance": torch.eye(12).tolist()},
    "target": {"name": "label"},
}
WIDTHS = {"width_1": 16, "width_2": 16, "width_3": 24, "input_size": None, "flip_at_test": False}
TRAINING = {
    "lr": 1e-3,
    "weight_decay": 0.0,
    "warmup_share": 0.1,
    "schedule": "cosine",
    "gradient_clip": None,
    "ema_decay": 0.9,
    "first_size": 1.0,
    "label_smoothing": 0.0,
    "calibration": "temperature",
    "compile": False,
}


def images(num=30, side=8):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (num, side, side, 3), generator=generator, dtype=torch.uint8)


def made(schema=SCHEMA, **changed):
    torch.manual_seed(len(changed))
    module = VisionResNet9(schema, **{**WIDTHS, **TRAINING, **changed})
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    module.calibration.slope.fill_(1.5)
    return module.eval()


@torch.no_grad()
def test_a_class_counts_by_its_weight_and_two_halves_of_a_batch_are_the_whole():
    plain, weighted = made(), made({**SCHEMA, "class_weights": [2.0, 1.0, 0.5]})
    weighted.load_state_dict(plain.state_dict())
    batch = {"image": images(), "target": torch.arange(30) % 3}
    parts = [weighted.loss_of({name: value[half::2] for name, value in batch.items()}) for half in (0, 1)]
    torch.testing.assert_close(torch.stack(parts).mean(), weighted.loss_of(batch))
    by_class = [plain.loss_of({name: value[index::3] for name, value in batch.items()}) for index in range(3)]
    torch.testing.assert_close(weighted.loss_of(batch), (2.0 * by_class[0] + by_class[1] + 0.5 * by_class[2]) / 3)


@torch.no_grad()
def test_the_loss_of_a_mixed_picture_is_of_both_classes_by_their_shares():
    module, target = made(label_smoothing=0.1), torch.arange(30) % 3
    own, other = (module.loss_of({"image": images(), "target": one}) for one in (target, target.roll(1)))
    mixed = {"image": images(), "target": target, "other_target": target.roll(1), "share": torch.full((30,), 0.3)}
    torch.testing.assert_close(module.loss_of(mixed), 0.3 * own + 0.7 * other)


@torch.no_grad()
def test_predictions_are_labels_with_their_calibrated_probability():
    module, rows = made(), images(600)
    torch.testing.assert_close(module(rows), torch.softmax(1.5 * module.scorer(rows), dim=1))
    found, expected = module.predict_columns({"image": rows}, decision="cost"), module(rows)
    assert found["label"].tolist() == [SCHEMA["classes"][index] for index in expected.argmax(dim=1)]
    np.testing.assert_allclose(found["score"], expected.amax(dim=1), atol=1e-5)
    assert module.predict_columns({"image": rows[:0]}, decision="cost")["label"].shape == (0,)
    with pytest.raises(ValueError, match="leave it out"):
        module.predict_columns({"image": rows}, decision="budget")


BASELINES = [baselines.majority, baselines.nearest_neighbours, baselines.logistic_regression, baselines.hog_linear_svm]


def data(target, side=8, channels=3):
    tensors = {}
    for name, size in {"train": 60, "val": 12, "test": 30}.items():
        truth = target.repeat(30)[:size]
        bright = images(size, side).float() / 4 + 60 * truth.view(-1, 1, 1, 1)
        bright[..., : 2 * side // 3 - 1, :channels] /= 1 + truth.view(-1, 1, 1, 1)  # an edge, for gradients
        tensors[name] = {"image": bright.to(torch.uint8), "target": truth}
    names = {name: pa.array([f"{row}.png" for row in range(len(part["target"]))]) for name, part in tensors.items()}
    return SimpleNamespace(tensors=tensors, names=names)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("side", [5, 40])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_baselines_give_the_metrics_of_the_module(baseline, side, num_classes):
    schema = {**SCHEMA, "classes": ["a", "b", "c"][:num_classes], "counts": [4] * num_classes}
    found = made(schema).test_baseline(baseline(), data(torch.arange(num_classes), side))
    assert set(found) == {"accuracy", "macro_f1", "nll", "expected_calibration_error"}
    if baseline is not baselines.majority:
        assert found["accuracy"] > 0.8


def test_gradients_are_counted_by_their_orientation():
    ramp = np.arange(16, dtype=np.float32) / 16
    across = np.broadcast_to(ramp[:, None], (1, 16, 16, 3))[0, :, :, 0].T
    pictures = np.stack([across, across.T])[..., None].repeat(3, axis=3)
    found = baselines.histograms(np.ascontiguousarray(pictures)).reshape(2, 16, baselines.ORIENTATIONS)
    assert (found[0].argmax(axis=1) == 0).all() or (found[0].argmax(axis=1) == 4).all()
    assert set(found[0].argmax(axis=1)) != set(found[1].argmax(axis=1))


def test_top5_is_told_of_more_than_five_classes():
    score = np.tile(np.linspace(0.3, 0.0, 7), (7, 1))
    rows = Classified.of(score, np.arange(7), np.arange(7))
    assert report.metrics_of(rows)["top5_accuracy"] == pytest.approx(5 / 7)
    few = Classified.of(score[:, :5], np.arange(5).repeat(2)[:7], np.arange(7))
    assert "top5_accuracy" not in report.metrics_of(few)


@torch.no_grad()
def test_an_ensemble_is_the_weighted_mean_and_is_made_again_from_its_hyperparameters():
    members, rows = [made(), made(label_smoothing=0.1)], images()
    blend = VisionEnsemble.of(members, [2, 1])
    expected = (2 * members[0](rows) + members[1](rows)) / 3
    torch.testing.assert_close(blend.probability(blend.scorer(rows)), expected, atol=1e-5, rtol=1e-4)
    again = VisionEnsemble(**blend.hparams)
    again.load_state_dict(blend.state_dict())
    assert torch.equal(again.eval()(rows), blend(rows))
    (graph,) = blend.export_graphs()
    torch.testing.assert_close(graph.module(rows)[0], blend(rows), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="trained with other classes$"):
        VisionEnsemble.of([members[0], made({**SCHEMA, "classes": ["a", "b", "d"]})], [1, 1])
    with pytest.raises(ValueError, match="not trained"):
        blend.configure_optimizers()
    with pytest.raises(ValueError, match=r"prune\.ratio"):
        blend.pruned(0.5, how="magnitude", batches=[])


@pytest.mark.parametrize("how", ["magnitude", "taylor"])
def test_a_pruned_state_fits_the_smaller_module(how):
    module = made()
    batches = [{"image": images(), "target": torch.arange(30) % 3}]
    options, state = module.pruned(0.5, how=how, batches=batches)
    assert options == {f"{name}_{n}": 8 if n < 3 else 16 for n in (1, 2, 3) for name in ("width", "hidden")}
    smaller = VisionResNet9(SCHEMA, **{**WIDTHS, **options}, **TRAINING)
    smaller.load_state_dict(state)
    assert smaller(images()).shape == (30, 3)
    assert float(smaller.calibration.slope) == 1.5
    again, _ = smaller.pruned(0.5, how="magnitude", batches=batches)
    assert again["hidden_3"] == 8


@torch.no_grad()
def test_taking_out_channels_that_do_nothing_changes_nothing():
    module = made(width_1=8, width_2=16, hidden_2=16, ema_decay=None)
    block = module.network.blocks[1]
    for part in (block.first.gain, block.first.bias):
        part[8:] = 0.0  # GELU of 0 is 0
    block.second.weight[:, 8:] = 1e-3  # what reads them is small, but its kernels' mean and variance count it
    wanted = module.network.units()[3]
    assert wanted.option == "hidden_2"
    values = {name: parameter.detach() for name, parameter in module.network.named_parameters()}
    best = pruning.importances(wanted, values, "magnitude").topk(8).indices
    assert sorted(best.tolist()) == list(range(8))


def test_it_tells_of_its_classes_mistakes_and_limits():
    module, given = made(), data(torch.arange(3))
    score = np.tile([0.7, 0.2, 0.1], (30, 1))
    score[4] = [0.9, 0.05, 0.05]
    module.scored = Classified.of(score, given.tensors["test"]["target"].numpy(), np.arange(30))
    figures = module.figures(given)
    assert set(figures) == {"reliability", "classes", "confusion", "predictions", "mistakes"}
    assert module.mistakes[0] == ("b", "a", 0.9, "4.png")
    card = module.card()
    assert card["slices"]["a"]["recall"] == 1
    assert "8 x 8" in card["inputs"]["image"]
    assert set(module.intervals()) == {"accuracy", "macro_f1", "nll"}
    written = []
    writer = SimpleNamespace(add_text=lambda name, text, step: written.append((name, text)))
    module.write_summaries(writer, 3)
    assert [name for name, _ in written] == ["test/classes", "test/worst_mistakes"]
    assert "4.png" in written[1][1]
    module.scored = None
    assert module.figures(given) == {} == module.intervals()
