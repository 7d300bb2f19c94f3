from laq.allocation import ALLOCATORS
from laq.quantizers import QUANTIZERS
from laq.sensitivity import SENSITIVITIES


def test_every_method_is_listed_with_its_status(laq_well):
    rows = laq_well("methods", "--json").content["methods"]
    names = {(row["kind"], row["name"]) for row in rows}
    registries = {"quantizer": QUANTIZERS, "sensitivity": SENSITIVITIES, "allocator": ALLOCATORS}
    assert names == {(kind, name) for kind, methods in registries.items() for name in methods.names()}
    assert {row["status"] for row in rows} <= {"stable", "experimental"}


def test_text_names_the_methods(laq_well):
    text = laq_well("methods").stdout
    assert "gptq" in text
    assert "lagrange" in text
