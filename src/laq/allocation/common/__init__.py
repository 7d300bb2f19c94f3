"""From curves to units of decision and back to a plan."""

from __future__ import annotations

from laq.allocation.common.allocate import allocate, size_range

__all__ = ["allocate", "size_range"]
