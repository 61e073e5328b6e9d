"""A battery pack: its current, voltages, temperatures and state of charge."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

AMBIENT_C = 24.0
"""Temperature of the air, everywhere and always."""


class Chemistry(NamedTuple):
    """Chemistry of the cells."""

    code: str
    """Code of GB/T 32960.3-2025: 01 LFP, 04 NCM, 08 sodium-ion, 09 solid-state."""
    empty_v: float
    full_v: float


CHEMISTRIES = (
    Chemistry("04", 3.35, 4.15),
    Chemistry("01", 3.10, 3.38),
    Chemistry("09", 3.45, 4.20),
    Chemistry("08", 2.50, 3.75),
)


@dataclass
class Battery:
    """One pack of cells in series."""

    random: Random
    chemistry: Chemistry
    cells: int
    capacity_ah: float
    soc_pct: float
    current_a: float = 0.0
    """Positive while discharging."""
    temp_c: float = AMBIENT_C
    drawn_ah: float = 0.0
    """Charge that was ever drawn from it."""
    offsets_v: list[float] = field(init=False)
    """Difference of each cell's voltage from the mean."""
    probes_c: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.offsets_v = [self.random.gauss(0, 0.004) for _ in range(self.cells)]
        self.probes_c = [self.random.gauss(0, 0.8) for _ in range(max(2, self.cells // 12))]

    @property
    def rest_v(self) -> float:
        """Voltage of a cell without load."""
        low, high = self.chemistry.empty_v, self.chemistry.full_v
        return low + (high - low) * self.soc_pct / 100

    @property
    def resistance_ohm(self) -> float:
        """Resistance of the whole pack."""
        return self.cells * 0.9 / 1000

    @property
    def voltage_v(self) -> float:
        """Voltage between the terminals, under load."""
        return self.cells * self.rest_v - self.current_a * self.resistance_ohm

    @property
    def cell_v(self) -> list[float]:
        """Voltage of every cell."""
        mean = self.voltage_v / self.cells
        return [round(mean + offset, 3) for offset in self.offsets_v]

    @property
    def probe_temps_c(self) -> list[int]:
        """Temperature at every probe."""
        return [round(self.temp_c + offset) for offset in self.probes_c]

    def step(self, seconds: float, watts: float, heat_w: float = 0.0) -> None:
        """Discharge with `watts` for this many seconds; if `watts` is negative, charge."""
        self.current_a = max(-400.0, min(600.0, watts / (self.cells * self.rest_v)))
        self.drawn_ah += max(0.0, self.current_a) * seconds / 3600
        self.soc_pct -= self.current_a * seconds / 36 / self.capacity_ah
        self.soc_pct = max(1.5, min(100.0, self.soc_pct))
        losses_w = self.current_a**2 * self.resistance_ohm + heat_w
        self.temp_c += (losses_w - 40 * (self.temp_c - AMBIENT_C)) * seconds / 300_000
