from laq.allocation import ALLOCATORS
from laq.core.scale_units import ScalePer
from laq.core.scheme import ScaleFormat
from laq.quantizers import QUANTIZERS
from laq.ranges import RANGES
from laq.sensitivity import SENSITIVITIES
from laq.transforms import TRANSFORMS


def test_every_method_is_listed_with_its_status(laq_well):
    rows = laq_well("methods", "--json").content["methods"]
    names = {(row["kind"], row["name"]) for row in rows}
    registries = (QUANTIZERS, RANGES, TRANSFORMS, SENSITIVITIES, ALLOCATORS)
    expected = {(registry.kind, name) for registry in registries for name in registry.names()}
    expected |= {("scale format", one.value) for one in ScaleFormat}
    assert names == expected | {("scale per", one.value) for one in ScalePer}
    assert {row["status"] for row in rows} <= {"stable", "experimental"}


def test_text_names_the_methods(laq_well):
    text = laq_well("methods").stdout
    assert "gptq" in text
    assert "hqq" in text
    assert "column_norm" in text
    assert "lagrange" in text
