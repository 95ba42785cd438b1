"""`compress3g doctor`: what runs here, what does not and why, and what would help most."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from typing import Any

import click

_EXTRAS = {
    "imageio-ffmpeg": "nerf",
    "diffusers": "diffusion",
    "transformers": "diffusion",
    "hnswlib": "retrieval",
    "faiss-cpu": "retrieval",
    "colpali-engine": "colpali",
    "mamba-ssm": "mamba",
    "peft": "peft",
    "triton": "gpu",
    "ray": "ray",
}
_TINYCUDANN = "pip install git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def examine() -> dict[str, Any]:
    """Everything the report says, as plain data."""
    import torch

    from ..kernels import _library, registry

    operations = []
    for op in registry.operations():
        for device in ("cpu", "cuda"):
            if device == "cuda" and not torch.cuda.is_available():
                continue
            candidates = registry.candidates(op, device)
            operations.append(
                {
                    "operation": op,
                    "device": device,
                    "active": registry.active(op, device),
                    "candidates": {c.name: c.reason for c in candidates},
                }
            )
    compiled = _library.status()
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "compress3g": _version("compress3g"),
        "threads": torch.get_num_threads(),
        "instruction_set": _library.isa() if compiled is None else None,
        "compiled_kernels": compiled or "yes",
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "operations": operations,
        "packages": {name: _version(name) for name in _EXTRAS},
        "advice": _advice(compiled, torch.cuda.is_available()),
    }


def _advice(compiled: str | None, cuda: bool) -> str:
    if compiled is not None:
        return (
            f"The CPU kernels are {compiled}. Without them training is about 20 times slower: "
            "apt-get install gcc (or your system's compiler), then pip install --force-reinstall "
            "--no-deps compress3g"
        )
    if cuda and _version("tinycudann") is None:
        return f"tinycudann would speed up CUDA training: {_TINYCUDANN}"
    return "Nothing: every operation runs on its best backend for this machine."


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    isa = report["instruction_set"] or "none"
    console.print(
        f"compress3g {report['compress3g']}  python {report['python']}  torch {report['torch']}  "
        f"{report['machine']}\nthreads {report['threads']}  instruction set {isa}  "
        f"CUDA {report['cuda'] or 'no'}"
    )
    table = Table(box=None, pad_edge=False)
    for title in ("operation", "device", "active", "passed over"):
        table.add_column(title)
    for row in report["operations"]:
        rejected = [f"{name}: {why}" for name, why in row["candidates"].items() if why]
        table.add_row(row["operation"], row["device"], row["active"], "; ".join(rejected) or "-")
    console.print(table)
    found = [f"{name} {version}" for name, version in report["packages"].items() if version]
    console.print(f"optional packages: {', '.join(found) or 'none'}")
    missing: dict[str, list[str]] = {}
    for name, version in report["packages"].items():
        if version is None:
            missing.setdefault(_EXTRAS[name], []).append(name)
    for extra, names in missing.items():
        console.print(
            f"  without {', '.join(names)}: pip install 'compress3g[{extra}]'",
            style="dim",
            soft_wrap=True,
            markup=False,  # or the brackets of the extra would be taken for a colour
        )
    console.print(f"advice: {report['advice']}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> None:
    """Say which backend runs each operation here, and why not a better one."""
    report = examine()
    if as_json:
        click.echo(json.dumps(report))
    else:
        _print(report)
