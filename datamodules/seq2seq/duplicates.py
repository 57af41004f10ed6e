"""Pairs that share a source or a target, over any number of steps, stay together."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Hashes = NDArray[np.uint64]


def groups(sources: Hashes, targets: Hashes) -> Hashes:
    """A hash of each row, [N], equal for rows that share a source or a target, or are linked by rows that do.

    It is the greatest of the group's source hashes: by `shares_of` large groups then train, and a common target
    ("Meeting") never drags a large part of the rows into the test split.
    """
    source, target = (np.unique(own, return_inverse=True)[1].reshape(-1) for own in (sources, targets))
    size = int(source.max(initial=-1)) + 1
    num_nodes = size + int(target.max(initial=-1)) + 1
    edges = coo_array((np.ones(len(source), bool), (source, size + target)), shape=(num_nodes, num_nodes))
    group = connected_components(edges, directed=False)[1][source]
    greatest = np.zeros(num_nodes, np.uint64)
    np.maximum.at(greatest, group, sources)
    return np.asarray(greatest[group], np.uint64)
