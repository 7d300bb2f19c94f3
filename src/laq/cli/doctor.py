"""laq doctor: what is installed, and what the machine has."""

from __future__ import annotations

import platform
import shutil
import tempfile
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from laq.cli.options import AsJson, Debug
from laq.cli.output import running

NEEDED = ("numpy", "psutil", "rich", "safetensors", "torch", "typer")
FOR_LANGUAGE_MODELS = ("accelerate", "gguf", "transformers")


def doctor(as_json: AsJson = False, debug: Debug = False) -> None:
    """Show what is installed and what is missing."""
    with running(debug=debug, as_json=as_json, quiet=True) as out:
        from laq.cli.tables import table_of

        content = _content()
        rows = [(name, found or "missing") for name, found in content["versions"].items()]
        rows += [
            ("cores", str(content["n_cores"])),
            (
                "memory",
                f"{content['memory_free_bytes'] / 1e9:.1f} of {content['memory_bytes'] / 1e9:.1f} GB free",
            ),
            ("disk", f"{content['disk_free_bytes'] / 1e9:.1f} GB free in {content['temporary_folder']}"),
        ]
        kernels = content["kernels"]
        rows.append(("kernels", kernels["tier"] or f"none, computing in torch: {kernels['reason']}"))
        place, reason = content["weights"]["place"], content["weights"]["reason"]
        rows.append(("weights lie in", f"{place}: {reason}" if reason else place))
        advice = [f"install what is missing: {line}" for line in content["install"]] or ["nothing is missing"]
        out.show(content, table_of("laq doctor", ["", ""], rows), *advice)


def _content() -> dict[str, Any]:
    from laq import __version__
    from laq.core.threads import usable_threads
    from laq.kernels import native
    from laq.runtime.arena import archive_place, huge_page_problem

    versions: dict[str, str | None] = {"laq": __version__, "python": platform.python_version()}
    versions |= {name: _version(name) for name in (*NEEDED, *FOR_LANGUAGE_MODELS)}
    folder, (total, available) = tempfile.gettempdir(), _memory_bytes()
    return {
        "versions": versions,
        "system": platform.platform(),
        "n_cores": usable_threads(),
        "kernels": asdict(native.status()),
        "weights": {"place": archive_place(), "reason": huge_page_problem()},
        "memory_bytes": total,
        "memory_free_bytes": available,
        "temporary_folder": folder,
        "disk_free_bytes": shutil.disk_usage(folder).free,
        "missing": [name for name, found in versions.items() if found is None],
        "install": _install_lines(versions),
    }


def _memory_bytes() -> tuple[int, int]:
    """Total and available; zeros if psutil, which is listed as missing then, cannot say."""
    try:
        import psutil
    except ImportError:
        return 0, 0
    memory = psutil.virtual_memory()
    return memory.total, memory.available


def _install_lines(versions: dict[str, str | None]) -> list[str]:
    lines = []
    if any(versions[name] is None for name in NEEDED):
        lines.append("pip install laq")
    if any(versions[name] is None for name in FOR_LANGUAGE_MODELS):
        lines.append("pip install 'laq[llm]'")
    return lines


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
