"""When to repeat a request that failed, for listings, header reads and transfers alike."""

from __future__ import annotations

import random
from dataclasses import dataclass

MAX_WAIT_S = 300.0  # whatever delay the server asks for


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Retry up to `retries` times in a row. The delay starts at `wait_s` and doubles each time."""

    retries: int = 5
    wait_s: float = 1.0

    def delay_s(self, failures: int, retry_after_s: float | None) -> float:
        """Return the delay after this many failures in a row, or longer if the server asked."""
        wait_s = self.wait_s * 2.0 ** (failures - 1) * random.uniform(1, 1.25)
        return min(max(wait_s, retry_after_s or 0.0), MAX_WAIT_S)
