"""Samples of one run, and how they are told."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Samples:
    """Times of one case in milliseconds."""

    name: str
    values: list[float] = field(default_factory=list)

    def add(self, seconds: float) -> None:
        self.values.append(seconds * 1000)

    def quantile(self, q: float) -> float:
        ordered = sorted(self.values)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]

    @property
    def p50(self) -> float:
        return self.quantile(0.5)

    def row(self) -> str:
        return (
            f"{self.name:<44} {len(self.values):>5} {self.p50:>9.2f} "
            f"{self.quantile(0.95):>9.2f} {self.quantile(0.99):>9.2f}"
        )


HEADER = f"{'case':<44} {'n':>5} {'p50 ms':>9} {'p95 ms':>9} {'p99 ms':>9}"


@dataclass
class Target:
    """A ratio (or plain figure) that must not be above its bound."""

    name: str
    value: float
    bound: float
    unit: str = ""

    @property
    def met(self) -> bool:
        return self.value <= self.bound

    def row(self) -> str:
        verdict = "ok" if self.met else "MISSED"
        return f"{self.name:<60} {self.value:>9.3f} <= {self.bound:<8g} {self.unit:<10} {verdict}"
