from laq.allocation.common import size_range
from laq.core.curve import Curves
from laq.core.stats import Stats
from laq.core.target import Unit


def test_stats_and_curves_can_be_opened_again(measuring):
    folder, done = measuring
    curves, stats = Curves.open(folder / "curves"), Stats.open(folder / "stats")
    assert len(curves.weights) == done.content["n_weights"] == 15
    assert stats.n_tokens == done.content["n_tokens"] == 512


def test_range_of_sizes_is_that_of_the_allocator(measuring):
    folder, done = measuring
    found = size_range(Curves.open(folder / "curves"), unit=Unit.TILE, floor=False)
    assert found == (done.content["smallest_bytes"], done.content["largest_bytes"])


def test_foreign_folder_is_refused_before_loading_and_left_alone(laq, refused, tmp_path):
    (tmp_path / "stats").mkdir()
    (tmp_path / "stats" / "mine").write_text("precious")
    refused(laq("measure", tmp_path / "absent", "-o", tmp_path), "stats")
    assert (tmp_path / "stats" / "mine").read_text() == "precious"


def test_missing_model_is_named(laq, refused, tmp_path):
    refused(laq("measure", tmp_path / "absent", "-o", tmp_path / "out"), "absent")


def test_text_names_what_was_measured_and_what_comes_next(laq_well, tiny_llama, tmp_path):
    options = ("--tokens", "512", "--quantizer", "rtn", "--keep", "embed|mlp|layers.1", "--quiet")
    done = laq_well("measure", tiny_llama, "-o", tmp_path / "out", *options)
    assert "measured 4 weights" in done.stdout
    assert "possible sizes: " in done.stdout
    assert f"\n  laq plan {tmp_path / 'out'} --bpw X\n" in done.stdout
    assert done.stderr == ""


def test_a_folder_of_something_else_is_refused_and_left_alone(laq, refused, tiny_llama, archive, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    refused(laq("measure", tiny_llama, "-o", tmp_path), "mine.txt")
    refused(laq("measure", tiny_llama, "-o", archive), "something else than a measurement")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_missing_data_are_noticed_before_loading(laq, refused, tmp_path):
    absent = tmp_path / "absent.txt"
    refused(laq("measure", tmp_path / "no-model", "-o", tmp_path / "m", "--data", absent), "absent.txt")


def test_transforms_are_recorded_and_asked_for_again(laq, laq_well, refused, tiny_llama, tmp_path):
    options = ("--tokens", "512", "--keep", "layers.1|embed")
    transform = ("--transform", "equalization,column_norm")
    done = laq_well("measure", tiny_llama, "-o", tmp_path / "m", *options, *transform, "--json")
    assert done.content["transforms"] == ["equalization", "column_norm"]
    assert Curves.open(tmp_path / "m" / "curves").transforms == ("equalization", "column_norm")
    wanted = ("quantize", tiny_llama, "-o", tmp_path / "out", "--bpw", "26", "--measured", tmp_path / "m")
    refused(laq(*wanted, *options), "equalization,column_norm", "none")
    made = laq_well(*wanted, *options, *transform, "--no-compare", "--json")
    assert made.content["plan"]["transforms"] == ["equalization", "column_norm"]
    assert made.content["record"]["kl_nats"] < 0.1
    assert "equalization" in laq_well("inspect", tmp_path / "out", "--json").stdout


def test_an_unknown_transform_is_refused_before_loading(laq, refused, tmp_path):
    done = laq("measure", tmp_path / "absent", "-o", tmp_path / "out", "--transform", "smooth")
    refused(done, "unknown transform 'smooth'")
    assert "awq, column_norm, equalization" in done.stderr


def test_mixes_bring_gains_and_say_how_good_they_are(laq_well, tiny_llama, tmp_path):
    options = (
        "--tokens",
        "1024",
        "--quantizer",
        "rtn",
        "--keep",
        "embed|mlp|layers.1",
        "--sensitivity",
        "hessian",
    )
    done = laq_well("measure", tiny_llama, "-o", tmp_path / "out", "--mixes", "8", "--json", *options)
    gains = done.content["gains"]
    assert (gains["n_fitted"], gains["n_held_out"]) == (6, 2)
    assert (done.content["sensitivity"], done.content["n_tokens"]) == ("hessian", 512)
    assert Curves.open(tmp_path / "out" / "curves").gains.to_json() == gains


def test_unknown_sensitivity_and_too_few_mixes_are_refused_before_loading(laq, refused, tmp_path):
    absent = tmp_path / "absent"
    refused(laq("measure", absent, "-o", tmp_path / "m", "--sensitivity", "guess"), "guess")
    refused(laq("measure", absent, "-o", tmp_path / "m", "--mixes", "3"), "3 mixes")
    both = ("--mixes", "8", "--low-rank", "4")
    refused(laq("measure", absent, "-o", tmp_path / "m", *both), "by fisher, without mixes")
    refused(laq("quantize", absent, "-o", tmp_path / "m", "--bpw", "4", *both), "by fisher, without mixes")
