"""A baseline of detection that needs no network: patches of brightness that look like the objects of training.

B pictures, D detections.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class UsualPlaces:
    """Says of every picture what training pictures have most: boxes where most objects are, whatever is to be seen.

    Its detections are the centres of the commonest cells of a grid over places and sizes, with the share of training
    pictures that have such an object as score.

    Args:
        cells: of the grid along each of centre x, centre y, width and height.
        most: detections of a picture.
    """

    def __init__(self, *, cells: int = 6, most: int = 100) -> None:
        self.cells, self.most = cells, most
        self.found: NDArray[np.float32] = np.zeros((0, 6), np.float32)

    def fit(self, rows: dict[str, Tensor]) -> "UsualPlaces":
        """Count the objects of training pictures: image [N, H, W, 3], boxes [N, M, 4], target and crowd [N, M]."""
        height, width = rows["image"].shape[1:3]
        is_own = (rows["target"] >= 0) & ~rows["crowd"]
        boxes, target = rows["boxes"][is_own].cpu(), rows["target"][is_own].cpu()
        sides = torch.tensor([width, height] * 2)
        around = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1) / sides
        cell = (around * self.cells).long().clamp(0, self.cells - 1)
        key = torch.cat([target.unsqueeze(1), cell], dim=1)
        kinds, place, counts = torch.unique(key, dim=0, return_inverse=True, return_counts=True)
        mean = torch.zeros(len(kinds), 4).index_add_(0, place, around) / counts.unsqueeze(1)
        order = counts.argsort(descending=True, stable=True)[: self.most]
        centre, half = mean[order, :2], mean[order, 2:] / 2
        located = torch.cat([centre - half, centre + half], dim=1) * sides
        score = counts[order] / len(rows["image"])
        self.found = torch.cat([located, score.unsqueeze(1), kinds[order, :1]], dim=1).float().numpy()
        return self


def detections(fitted: UsualPlaces, images: Tensor) -> NDArray[np.float32]:
    """What a baseline finds in pictures [B, H, W, 3], [B, D, 6]."""
    return np.broadcast_to(fitted.found, (len(images), *fitted.found.shape))
