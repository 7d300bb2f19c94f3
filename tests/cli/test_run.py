import json


def test_text_goes_to_stdout_and_speed_to_stderr(laq_well, archive):
    done = laq_well("run", archive, "--prompt", "the quick brown", "--tokens", "5")
    assert done.stdout.endswith("\n")
    assert "tokens read" in done.stderr
    assert " written" in done.stderr


def test_json_holds_the_text_and_the_speed(laq_well, archive):
    content = laq_well("run", archive, "--prompt", "the quick brown", "--tokens", "5", "--json").content
    assert content["n_new_tokens"] <= 5
    assert content["n_prompt_tokens"] > 0
    assert isinstance(content["text"], str)
    plain = laq_well("run", archive, "--prompt", "the quick brown", "--tokens", "5", "-q")
    assert plain.stdout == content["text"] + "\n"
    assert plain.stderr == ""


def test_sampling_follows_the_seed(laq_well, archive):
    options = ("run", archive, "--prompt", "the", "--tokens", "12", "--temperature", "3", "-q", "--seed")
    assert laq_well(*options, "1").stdout == laq_well(*options, "1").stdout
    assert len({laq_well(*options, str(seed)).stdout for seed in range(4)}) > 1


def test_chat_without_a_template_is_refused(laq, refused, archive):
    refused(laq("run", archive, "--prompt", "hi", "--chat"), "chat template")


def test_prompt_is_needed(laq, archive):
    assert laq("run", archive).code == 2


def test_folder_that_is_no_archive_is_refused(laq, refused, tmp_path):
    refused(laq("run", tmp_path, "--prompt", "hi"), "laq.json")


def test_folder_that_is_not_there_is_said_to_be_missing(laq, refused, tmp_path):
    refused(laq("run", tmp_path / "nothing", "--prompt", "hi"), "no such folder")


def test_prompt_beyond_the_room_of_the_network_is_refused(laq, laq_well, refused, archive):
    room = json.loads((archive / "config.json").read_text())["max_position_embeddings"]
    refused(laq("run", archive, "--prompt", "the " * room, "--tokens", "1"), f"room for {room}")
    half = "the " * (room // 2)
    content = laq_well("run", archive, "--prompt", half, "--tokens", str(room), "--json").content
    assert content["n_prompt_tokens"] + content["n_new_tokens"] <= room


def test_empty_prompt_is_refused_before_anything_is_loaded(laq, refused, tmp_path):
    refused(laq("run", tmp_path, "--prompt", " "), "the prompt is empty")
