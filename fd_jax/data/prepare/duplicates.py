"""Finds photographs that are copies of others in another size, format or quality."""

import base64
from collections.abc import Sequence

import numpy as np
from scipy.spatial import KDTree

from fd_jax.data.prepare.item import Result

# Levels by which two thumbnails of 16 x 16 differ at most. JPEG files of quality 60 at two thirds
# of the size differ by 5 or less from theirs, the closest of 697 portraits by 22.
_MOST = 8


def find_duplicates(results: Sequence[Result]) -> dict[str, str]:
    """Returns the photographs that look the same as one before them, and that one."""
    written = [result for result in results if result.reason is None]
    if len(written) < 2:
        return {}
    thumbnails = np.stack(
        [np.frombuffer(base64.b64decode(result.thumbnail), np.uint8) for result in written]
    ).astype(np.int16)
    side = round(thumbnails.shape[1] ** 0.5)
    # Means of 4 x 4 blocks differ no more than their pixels, and are few enough to be searched.
    blocks = thumbnails.reshape(-1, side // 4, 4, side // 4, 4).mean(axis=(2, 4))
    tree = KDTree(blocks.reshape(len(written), -1))
    pairs = tree.query_pairs(_MOST, p=np.inf)
    duplicates: dict[str, str] = {}
    for first, second in sorted(pairs):
        original, copy = written[first], written[second]
        if original.name in duplicates or copy.name in duplicates:
            continue
        if np.abs(thumbnails[first] - thumbnails[second]).max() <= _MOST:
            duplicates[copy.name] = original.name
    return duplicates
