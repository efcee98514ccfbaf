"""Which requests of the queue are sampled together."""

from collections.abc import Sequence


def size_for(count: int, sizes: Sequence[int]) -> int:
    """Returns the smallest compiled size that holds `count` pictures."""
    return min(size for size in sizes if size >= count)


def choose_batch(counts: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Returns the positions of the requests to sample next, which always include the first.

    Requests are taken in their order as long as they fit the largest size. Of all their beginnings
    the one is chosen that fills its compiled size best, and of these the longest: ten pictures in
    a batch of sixteen would take longer than eight, and then two.

    Args:
        counts: Number of pictures of each request, at most the largest size.
        sizes: Compiled sizes.
    """
    chosen: list[int] = []
    best: list[int] = []
    total, best_share = 0, 0.0
    for i, count in enumerate(counts):
        if total + count > max(sizes):
            continue
        chosen.append(i)
        total += count
        share = total / size_for(total, sizes)
        if share >= best_share:
            best, best_share = list(chosen), share
    return best
