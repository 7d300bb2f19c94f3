from hypothesis import given
from hypothesis import strategies as st

from laq.cli.bits import Bits, bar_of, by_depth, by_role, role_of
from laq.core.formats import CANDIDATES

TILES = st.dictionaries(st.sampled_from([candidate.name for candidate in CANDIDATES]), st.integers(1, 10**6))


def bits(name: str, n_params: int = 8, size_bytes: int = 4, **tiles: int) -> Bits:
    return Bits(name, (1, n_params), n_params, size_bytes, tiles)


@given(TILES.filter(bool), st.integers(1, 60))
def test_bar_is_as_wide_as_asked_and_sorted_by_width(tiles, width):
    bar = bar_of(tiles, width=width)
    order = "01t234568"
    assert len(bar) == width
    assert list(bar) == sorted(bar, key=order.index)


def test_bar_of_nothing_is_empty():
    assert bar_of({}, width=9) == ""


def test_roles_add_up_parameters_bytes_and_tiles():
    weights = [bits(f"layers.{i}.q_proj.weight", int4=1, int3=i) for i in range(3)]
    (role,) = by_role([*weights])
    assert (role.name, role.n_params, role.size_bytes, role.bpw) == ("q_proj", 24, 12, 4.0)
    assert dict(role.tiles) == {"int4": 3, "int3": 3}


def test_depth_is_cut_into_thirds_in_order():
    names = ["embed.weight", *(f"model.layers.{i}.up.weight" for i in range(6))]
    groups = by_depth([bits(name) for name in names])
    assert [(group.name, group.n_params) for group in groups] == [
        ("first third", 16),
        ("middle third", 16),
        ("last third", 16),
        ("outside blocks", 8),
    ]


def test_role_of_names_without_words():
    assert [role_of(name) for name in ("weight", "0.weight", "net.0.weight")] == ["weight", "0", "net"]
