"""laq methods: what can be chosen."""

from __future__ import annotations

from laq.cli.options import AsJson, Debug
from laq.cli.output import running


def methods(as_json: AsJson = False, debug: Debug = False) -> None:
    """List all methods with their status."""
    with running(debug=debug, as_json=as_json, quiet=True) as out:
        from laq.allocation import ALLOCATORS
        from laq.cli.tables import table_of
        from laq.core.scale_units import ScalePer
        from laq.core.scheme import ScaleFormat
        from laq.quantizers import QUANTIZERS
        from laq.ranges import RANGES
        from laq.sensitivity import SENSITIVITIES
        from laq.transforms import TRANSFORMS

        found: list[tuple[str, str, str, str]] = []
        for name in QUANTIZERS.names():
            quantizer = QUANTIZERS.get(name)
            found.append(("quantizer", name, quantizer.status, quantizer.summary))
        for name in RANGES.names():
            method = RANGES.get(name)
            found.append(("range", name, method.status, method.summary))
        found += [("scale per", one.value, one.status, one.summary) for one in ScalePer]
        found += [("scale format", one.value, one.status, one.summary) for one in ScaleFormat]
        for name in TRANSFORMS.names():
            transform = TRANSFORMS.get(name)
            found.append(("transform", name, transform.status, transform.summary))
        for name in SENSITIVITIES.names():
            sensitivity = SENSITIVITIES.get(name)
            found.append(("sensitivity", name, sensitivity.status, sensitivity.summary))
        for name in ALLOCATORS.names():
            allocator = ALLOCATORS.get(name)
            found.append(("allocator", name, allocator.status, allocator.summary))
        heads = ["kind", "name", "status", "summary"]
        rows = [dict(zip(heads, row, strict=True)) for row in found]
        out.show({"methods": rows}, table_of("methods", heads, found))
