"""Every experiment trains on a table of one's own, and is scored and asked for predictions on another."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from hydra import compose, initialize_config_module
from numpy.typing import NDArray
from PIL import Image

from train.evaluate import evaluate
from train.predict import predict
from train.run import run

PAIRS = ["data=seq2seq_table", "data.source=text", "data.target=title", "data.vocab_size=300", "model.width=32"]

# How each experiment takes the table below.
TABLES = {
    "detection": ["data=detection_table", "data.image=picture", "data.objects=objects", "data.image_size=32"],
    "fraud": ["data=fraud_table", "data.target=label"],
    "segmentation": [
        *("data=mask_table", "data.image=picture", "data.mask=mask", "model.width_1=8", "model.width_2=8"),
        *("model.width_3=8", "model.width_4=8"),
    ],
    "summarization": PAIRS,
    "text": ["data=text_table", "data.text=text", "data.label=label", "data.vocab_size=300"],
    "translation": PAIRS,
    "vision": ["data=image_table", "data.image=picture", "data.label=label"],
}


def write_table(path: Path, *, seed: int, size: int) -> pa.Table:
    """A CSV of texts, their last two words, the label of the first, an amount, pictures, their masks and objects."""
    generator = np.random.default_rng(seed)
    words = generator.choice(["good", "bad", "new", "old", "big", "small"], (size, 6))
    label = (words[:, 0] == "bad").astype(int)
    texts = [" ".join(row) for row in words]
    titles = [" ".join(row[-2:]) for row in words]
    amounts = generator.normal(label, 1.0)
    pictures = write_pictures(
        path.with_suffix(""), generator.integers(0, 128, (size, 16, 16, 3)) + 128 * label[:, None, None, None]
    )
    objects = [json.dumps([{"label": str(value), "box": [1, 1, 6, 7]}]) for value in label]
    halves = np.stack([np.zeros((16, 16), int), np.tile(np.arange(16) // 8, (16, 1))])
    masks = np.array(write_pictures(path.with_suffix(".masks"), halves))[label]
    columns = {"amount": amounts, "text": texts, "title": titles, "label": label, "picture": pictures, "mask": masks}
    columns["objects"] = objects
    table = pa.table(columns)
    pa.csv.write_csv(table, path)
    return table


def write_pictures(folder: Path, pixels: NDArray[np.int64]) -> list[str]:
    """Write pictures [N, H, W, 3] or masks [N, H, W]; return their paths from the folder's own."""
    folder.mkdir()
    for number, picture in enumerate(pixels.astype(np.uint8)):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return [f"{folder.name}/{number}.png" for number in range(len(pixels))]


@pytest.mark.filterwarnings("ignore")
def test_an_experiment_trains_on_a_table_and_is_used_on_another(experiment: str, tmp_path: Path) -> None:
    write_table(tmp_path / "own.csv", seed=0, size=800)
    other = write_table(tmp_path / "other.csv", seed=1, size=50)
    with initialize_config_module("configs", version_base="1.3"):
        place = [f"data.path={tmp_path / 'own.csv'}", "trainer=smoke", "baselines=none", f"output_dir={tmp_path}"]
        finished = run(compose("train", [f"experiment={experiment}", *TABLES[experiment], *place]))
        use = [f"run={finished.folder}", "accelerator=cpu"]
        scored = evaluate(compose("evaluate", [*use, f"data.path={tmp_path / 'other.csv'}"]))
        ends = ["prefix=predicted_", f"input={tmp_path / 'other.csv'}", f"output={tmp_path / 'out.csv'}"]
        num_rows = predict(compose("predict", [*use, *ends]))
    known = {name for name in finished.metrics if name.startswith("test/")}
    assert known <= json.loads((scored / "result.json").read_text())["metrics"].keys()
    predicted = pa.csv.read_csv(tmp_path / "out.csv")
    assert num_rows == len(predicted) == len(other)
    assert predicted.column_names[: other.num_columns] == other.column_names
    assert predicted.num_columns > other.num_columns
