"""From curves to units of decision and back to a plan."""

from __future__ import annotations

from laq.allocation.common.allocate import allocate, count_units, size_range

__all__ = ["allocate", "count_units", "size_range"]
