"""Which requests of the queue are sampled together."""

from collections.abc import Sequence


def size_for(count: int, sizes: Sequence[int]) -> int:
    """Returns the smallest compiled size that holds `count` pictures."""
    return min(size for size in sizes if size >= count)


def choose_batch(counts: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Returns the positions of the requests to sample next, which always include the first.

    Of all sets of requests that fit the largest size, the one is chosen that fills its compiled
    size best, of these the largest, and of these older requests: ten pictures in a batch of
    sixteen would take longer than eight, and then two.

    Args:
        counts: Number of pictures of each request, at most the largest size.
        sizes: Compiled sizes.
    """
    by_total = {counts[0]: [0]}
    for i, count in enumerate(counts[1:], start=1):
        for total, chosen in list(by_total.items()):
            if total + count <= max(sizes):
                by_total.setdefault(total + count, [*chosen, i])
    return by_total[max(by_total, key=lambda total: (total / size_for(total, sizes), total))]
