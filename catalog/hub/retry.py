"""The delays between attempts, for listings, header reads and transfers."""

from __future__ import annotations

import random
from dataclasses import dataclass

MAX_WAIT_S = 300.0  # even if the server asks for a longer delay


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Retry up to `retries` times in a row. The delay starts at `wait_s` and doubles each time."""

    retries: int = 5
    wait_s: float = 1.0

    def delay_s(self, failures: int, retry_after_s: float | None) -> float:
        """Return the delay after this many failures in a row, or longer if the server asked."""
        wait_s = self.wait_s * 2.0 ** (failures - 1) * random.uniform(1, 1.25)
        return min(max(wait_s, retry_after_s or 0.0), MAX_WAIT_S)
