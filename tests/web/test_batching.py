"""Which requests share a batch."""

import itertools

import pytest

from fd_jax.web.batching import choose_batch, size_for

SIZES = (1, 4, 8, 16)


@pytest.mark.parametrize(
    ("counts", "chosen"),
    [
        ([3], [0]),
        ([3, 1], [0, 1]),
        ([8, 2], [0]),  # ten would be padded to sixteen
        ([8, 2, 6], [0, 1, 2]),
        ([16, 1], [0]),
        ([1, 16], [0]),
        ([9, 8, 7], [0, 2]),  # the second does not fit, the third fills up
        ([1, 1, 1, 1, 1], [0, 1, 2, 3]),
    ],
)
def test_batches_fill_their_size(counts, chosen):
    assert choose_batch(counts, SIZES) == chosen


def test_the_first_request_is_always_sampled_and_all_fit():
    """So that nobody waits for ever."""
    for counts in itertools.product((1, 2, 5, 9, 16), repeat=4):
        chosen = choose_batch(counts, SIZES)
        total = sum(counts[i] for i in chosen)
        assert chosen[0] == 0
        assert total <= 16
        assert total / size_for(total, SIZES) >= counts[0] / size_for(counts[0], SIZES)


def test_later_requests_fill_up_a_batch():
    """Three and five make eight; the requests between them would leave gaps."""
    assert choose_batch([3, 4, 3, 5], [1, 4, 8, 16]) == [0, 3]
