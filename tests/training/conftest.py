"""Parameters that tests of training share."""

import numpy as np
import pytest

from tests.helpers.training import random_leaves


@pytest.fixture(scope="session")
def leaves() -> dict[str, np.ndarray]:
    """All parameters by path."""
    return random_leaves()
