"""The description of a metric: what a number in a table means."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MetricInfo:
    """Name, version and protocol of a metric; printed under every table that shows it.

    `version` rises with every change of the numbers: values of different versions are never compared.
    """

    name: str
    version: str
    unit: str
    better: Literal["higher", "lower"]
    protocol: str

    @property
    def label(self) -> str:
        """Column title: the name, with the unit where there is one."""
        return f"{self.name} ({self.unit})" if self.unit else self.name
