"""Archives damaged where checksums do not see it: refused, or computed as numpy computes what is there.

Sections, tables and numbers of a sound archive are changed and all checksums made to agree, so that each
change reaches the checks behind them.
"""

import copy
import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import laq
from laq.benchmark import random_packed
from laq.core.errors import FormatError, RequestError
from laq.core.packing import PackedTensor
from laq.core.scheme import ScaleFormat
from laq.io.archive import METADATA, open_archive, save_archive
from laq.io.manifest import MANIFEST, Manifest, WeightEntry
from laq.io.safetensors import RawTensor
from laq.io.safetensors_header import head_bytes
from laq.kernels import native
from laq.kernels.reference import dequantize
from laq.runtime import arena
from laq.runtime.linear import rounding_activations

SHARD = "packed-00001-of-00001.safetensors"
SECTIONS = [name for name in list(PackedTensor.__dataclass_fields__)[2:] if name != "column_permutation"]
"""In the order of their checksum."""

GROUP_SIZE = 32
SHAPES = {"embedding": (50, 70), "query": (40, 70), "key": (24, 70)}
ORDER = "query.weight:input.column_permutation"
PER_TEST = 100
N_TESTS = 12


class Network(nn.Module):
    """An embedding, two linears that share an order of columns, one of them with a bias, and a buffer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(*SHAPES["embedding"])
        self.query = nn.Linear(*reversed(SHAPES["query"]))
        self.key = nn.Linear(*reversed(SHAPES["key"]), bias=False)
        self.register_buffer("gain", torch.ones(70))

    def forward(self, ids):
        rows = self.embedding(ids)
        inputs = rows * self.gain
        return rows, inputs, self.query(inputs), self.key(inputs)


def sound_weight(name, scale_format, generator):
    shape = SHAPES[name]
    blocks, groups = -(-shape[0] // 16), -(-shape[1] // GROUP_SIZE)
    packed = random_packed(shape, generator.integers(0, 9, (blocks, groups)).astype(np.uint8), GROUP_SIZE)
    if scale_format is ScaleFormat.FLOAT16:
        scales = np.exp2(generator.uniform(-6, 0, packed.scales.shape)).astype(np.float16)
        packed = replace(packed, scale_format=scale_format, scales=scales, scale_base=None)
    elif scale_format is ScaleFormat.LOG4:
        scales = generator.integers(0, 241, (len(packed.scales), 9)).astype(np.uint8)
        packed = replace(packed, scale_format=scale_format, scales=scales)
    elif scale_format is ScaleFormat.E8M0:
        scales = generator.integers(110, 142, packed.scales.shape).astype(np.uint8)
        packed = replace(packed, scale_format=scale_format, scales=scales, scale_base=None)
    return replace(packed, column_permutation=None) if name == "embedding" else packed


@pytest.fixture(scope="module", params=ScaleFormat, ids=lambda scale_format: scale_format.value)
def sound(request, tmp_path_factory):
    """Manifest and tensors of a sound archive."""
    generator = np.random.default_rng(0)
    packed = {f"{name}.weight": sound_weight(name, request.param, generator) for name in SHAPES}
    order = packed["query.weight"].column_permutation
    packed["key.weight"] = replace(packed["key.weight"], column_permutation=order)
    entries = [
        WeightEntry(
            f"{name}.weight",
            "embedding" if name == "embedding" else "linear",
            (name,),
            "float32",
            shape,
            GROUP_SIZE,
            "" if name == "embedding" else ORDER,
            {},
        )
        for name, shape in SHAPES.items()
    ]
    manifest = Manifest(
        architecture="module",
        weights=tuple(entries),
        kept={"query.bias": "", "gain": ""},
        column_permutations={ORDER: ""},
        scale_format=request.param,
        plan={"n_params": sum(rows * columns for rows, columns in SHAPES.values()) + 40 + 70},
        provenance={},
        record={},
    )
    kept = {
        "query.bias": RawTensor.of(generator.standard_normal(40).astype(np.float32)),
        "gain": RawTensor.of(generator.standard_normal(70).astype(np.float32)),
    }
    folder = tmp_path_factory.mktemp("sound") / "out"
    save_archive(folder, manifest, packed=packed, kept=kept, sidecars=None, check=lambda path: None)
    tensors = {name: raw.array().copy() for name, raw in open_archive(folder).tensors.items()}
    return json.loads((folder / MANIFEST).read_text()), tensors


def write(folder, content, tensors):
    """Write an archive whose checksums agree with whatever is in it."""
    raw = {name: RawTensor.of(array) for name, array in tensors.items()}

    def checksum(names):
        digest = hashlib.sha256()
        for name in names:
            digest.update(raw[name].data.data)
        return digest.hexdigest()

    for weight in content["weights"]:
        names = [f"{weight['name']}.{section}" for section in SECTIONS]
        weight["sha256"] = checksum(name for name in names if name in raw)
    for table in ("kept", "column_permutations"):
        content[table] = {name: checksum([name] if name in raw else []) for name in content[table]}
    head = head_bytes([(name, tensor.dtype, tensor.shape) for name, tensor in raw.items()], METADATA)
    body = b"".join(tensor.data.tobytes() for tensor in raw.values())
    (folder / SHARD).write_bytes(head + body)
    (folder / MANIFEST).write_text(json.dumps(content))


def numbers(value, path=()):
    """Paths of all whole numbers in a JSON value."""
    if type(value) is int:
        return [path]
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [place for key, child in children for place in numbers(child, (*path, key))]


def change_number(content, generator):
    places = numbers(content)
    *path, last = places[generator.integers(len(places))]
    parent = content
    for key in path:
        parent = parent[key]
    old = parent[last]
    choices = [old - 1, old + 1, 2 * old, old // 2, -old, 0, 1, 16, 32, 64, 128, 1 << 16, 1 << 31, 1 << 33]
    parent[last] = choices[generator.integers(len(choices))]


def exchange_fields(content, generator):
    """Let two weights trade a field, or one take the other's."""
    first, second = (content["weights"][i] for i in generator.integers(3, size=2))
    field = generator.choice(["name", "modules", "shape", "column_order", "kind"])
    first[field], second[field] = second[field], first[field] if generator.integers(2) else second[field]


def change_text(content, generator):
    kind = generator.integers(4)
    weight = content["weights"][generator.integers(3)]
    if kind == 0:
        content["scale_format"] = generator.choice(["log8", "float16", "e8m0"]).item()
    elif kind == 1:
        weight["dtype"] = generator.choice(["float16", "int8", "float64", "nothing", "Tensor"]).item()
    elif kind == 2:
        weight["column_order"] = generator.choice(["", ORDER, "gain", "query.weight.groups"]).item()
    else:
        content["weights"].remove(weight)


def change_tensors(tensors, generator, damaged, mutated):
    kind = generator.integers(8)
    names = list(tensors)
    if kind < 5:
        weight = f"{list(SHAPES)[generator.integers(3)]}.weight"
        sections = {s: tensors[f"{weight}.{s}"] for s in SECTIONS if f"{weight}.{s}" in tensors}
        found = damaged(sections, generator, group_size=GROUP_SIZE)
        tensors |= {f"{weight}.{section}": array for section, array in found.items()}
    elif kind == 5:
        others = {name: tensors[name] for name in (ORDER, "query.bias", "gain")}
        tensors |= mutated(others, generator)
    elif kind == 6:
        del tensors[names[generator.integers(len(names))]]
    else:
        first, second = (names[i] for i in generator.integers(len(names), size=2))
        tensors[first], tensors[second] = tensors[second], tensors[first]


def product_bound(inputs, weights, order):
    """Half a step of inputs rounded to 16 bits, against the sizes of the weights, and float32 sums."""
    sizes = np.abs(weights)
    steps = np.zeros(inputs.shape)
    for start in range(0, len(order), GROUP_SIZE):
        group = order[start : start + GROUP_SIZE]
        steps[:, group] = np.abs(inputs[:, group]).max(1, keepdims=True) / 32512
    return (steps / 2 * 1.001) @ sizes.T + 1e-5 * (np.abs(inputs) @ sizes.T) + 1e-30 * (1 + sizes.sum(1))


def check_outputs(module, folder):
    """Hold a loaded module against the reference on what is in the files."""
    archive = open_archive(folder)
    packed = {path: archive.packed(entry) for entry in archive.manifest.weights for path in entry.modules}
    weights = {path: dequantize(tensor) for path, tensor in packed.items()}
    gain, bias = (archive.tensors[name].array() for name in ("gain", "query.bias"))
    ids = torch.arange(0, 50, 3)
    with torch.inference_mode(), rounding_activations([module], 16):
        rows, inputs, query, key = (output.double().numpy() for output in module(ids))
    assert np.array_equal(rows, weights["embedding"][ids.numpy()])
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(inputs, (rows.astype(np.float32) * gain).astype(np.float64))
        finite = np.isfinite(inputs).all(1)
        for path, found, extra in (("query", query, bias), ("key", key, 0)):
            order = packed[path].column_permutation
            order = np.arange(70) if order is None else order.astype(np.int64)
            double = weights[path].astype(np.float64)
            expected = inputs[finite] @ double.T + extra
            allowed = product_bound(inputs[finite], double, order) + 1e-6 * np.abs(expected)
            is_same = (np.abs(found[finite] - expected) <= allowed) | (found[finite] == expected)
            is_same |= np.isnan(found[finite]) & np.isnan(expected)
            overflows = np.abs(inputs[finite]) @ np.abs(double).T > 1e38
            assert (is_same | overflows).all(), path


def loads(folder):
    """The module, or None if the archive was refused as it should be."""
    try:
        return laq.load(folder, module=Network())
    except FormatError:
        return None
    except RequestError as error:
        if "does not fit Network" not in str(error):  # of two that differ, nobody knows which is wrong
            raise
        return None


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def test_sound_archive_computes_what_numpy_computes(sound, folder):
    write(folder, *copy.deepcopy(sound))
    check_outputs(loads(folder), folder)


@pytest.mark.parametrize(
    "first", [0, *(pytest.param(n * PER_TEST, marks=pytest.mark.slow) for n in range(1, N_TESTS))]
)
@pytest.mark.parametrize("has_kernels", [True, False], ids=["native", "decoded"])
@pytest.mark.parametrize("place", ["huge pages", "mapped file"])
def test_damaged_archives_are_refused_or_computed_as_numpy_does(
    sound, folder, damaged, mutated, first, has_kernels, place, monkeypatch
):
    monkeypatch.setattr(arena, "huge_page_problem", lambda: "" if place == "huge pages" else "by a test")
    if not has_kernels:
        monkeypatch.setattr(native, "library", lambda: None)
    n_loaded = 0
    for seed in range(first, first + PER_TEST):
        generator = np.random.default_rng(seed)
        content, tensors = copy.deepcopy(sound[0]), dict(sound[1])
        kind = generator.integers(10)
        if kind < 7:
            change_tensors(tensors, generator, damaged, mutated)
        else:
            (change_number, exchange_fields, change_text)[kind - 7](content, generator)
        if generator.integers(2):
            tensors = {name: tensors[name] for name in generator.permutation(list(tensors)).tolist()}
        write(folder, content, tensors)
        module = loads(folder)
        if module is not None:
            n_loaded += 1
            check_outputs(module, folder)
    assert PER_TEST // 10 < n_loaded < PER_TEST, "changes are all refused, or none"
