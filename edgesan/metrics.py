"""Counters and latencies of one process, from the time stamps that frames carry."""

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import numpy as np

WINDOW = 600  # frames that medians are taken over: 20 s at 30 fps


class Metrics:
    """Totals since the start, and the last `WINDOW` durations of each named span."""

    def __init__(self) -> None:
        self.totals: Counter[str] = Counter()
        self._spans_ns: dict[str, deque[int]] = {}
        self._ticks_ns: deque[int] = deque(maxlen=WINDOW)

    def count(self, name: str, by: int = 1) -> None:
        """Add to a total."""
        self.totals[name] += by

    def span(self, name: str, duration_ns: int) -> None:
        """Record one duration."""
        self._spans_ns.setdefault(name, deque(maxlen=WINDOW)).append(duration_ns)

    def tick(self, now_ns: int) -> None:
        """Record that a frame left at this time: `fps` is computed from these."""
        self._ticks_ns.append(now_ns)

    def fps(self, now_ns: int) -> float:
        """Return the frames per second over the last two seconds."""
        recent = sum(1 for t in self._ticks_ns if now_ns - t < 2_000_000_000)
        return recent / 2 if self._ticks_ns and now_ns - self._ticks_ns[0] >= 2_000_000_000 else float(recent)

    def percentiles_ms(self, name: str) -> tuple[float, float, float]:
        """Return the percentiles 50, 95 and 99 of a span in ms; zeros if none was recorded."""
        durations = self._spans_ns.get(name)
        if not durations:
            return 0.0, 0.0, 0.0
        p50, p95, p99 = percentiles_ms(durations).values()
        return p50, p95, p99

    def summary(self, now_ns: int) -> dict[str, Any]:
        """Return totals, fps, and the percentiles 50, 95 and 99 of each span in ms, for JSON."""
        return {
            "fps": round(self.fps(now_ns), 1),
            "totals": dict(self.totals),
            "ms": {name: percentiles_ms(values) for name, values in self._spans_ns.items()},
        }


def percentiles_ms(durations_ns: Sequence[int] | deque[int]) -> dict[str, float]:
    """Return the percentiles 50, 95 and 99 in ms of durations in ns."""
    values = np.percentile(np.fromiter(durations_ns, np.int64), (50, 95, 99)) / 1e6
    return {f"p{q}": round(float(v), 2) for q, v in zip((50, 95, 99), values, strict=True)}
