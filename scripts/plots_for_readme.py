"""Put the plots of a run beside each other in one small picture.

python scripts/plots_for_readme.py runs/fraud/latest .readme/plots.png
"""

import io
import math
import sys
from pathlib import Path

from matplotlib import image
from matplotlib.figure import Figure
from PIL import Image

MOST_BYTES = 200_000
COLUMNS = 3
WIDTH_INCHES, DPI = 9.0, 120


def montage(pictures: list[Path]) -> Figure:
    """Return a figure with the pictures in rows of `COLUMNS`."""
    rows = math.ceil(len(pictures) / COLUMNS)
    height, width = image.imread(pictures[0]).shape[:2]
    figure = Figure(figsize=(WIDTH_INCHES, WIDTH_INCHES / COLUMNS * rows * height / width), dpi=DPI)
    for place, picture in enumerate(pictures):
        left, top = place % COLUMNS / COLUMNS, 1 - (place // COLUMNS + 1) / rows
        axes = figure.add_axes((left, top, 1 / COLUMNS, 1 / rows))
        axes.imshow(image.imread(picture), interpolation="antialiased", aspect="auto")
        axes.set_axis_off()
    return figure


def save_small(figure: Figure, output: Path) -> int:
    """Write the figure with 64 colours, which is plenty for plots; return the number of bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    output.parent.mkdir(parents=True, exist_ok=True)
    Image.open(buffer).convert("RGB").quantize(64).save(output, optimize=True)
    return output.stat().st_size


def main(run: Path, output: Path) -> None:
    """Read the PNGs of a run folder, write one."""
    pictures = sorted(run.glob("*.png"))
    if not pictures:
        sys.exit(f"{run} has no plots; give the folder of a finished run")
    size = save_small(montage(pictures), output)
    print(f"{output}: {len(pictures)} plots, {size / 1000:.0f} kB")
    if size > MOST_BYTES:
        sys.exit(f"{output} is larger than {MOST_BYTES / 1000:.0f} kB")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
