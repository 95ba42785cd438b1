"""`compress3g diffusion route`: parses, calls, prints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import click

from ...engine.options import options_from, resolve
from ...errors import ConfigError
from ..finetune import FinetuneConfig
from ..options import JSON, PATH, open_folder, prompts_of, quiet
from .config import AptpConfig

_DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda:N")
_CAPTIONS = click.option(
    "--captions", type=PATH, required=True, help="Text file, a caption per line."
)
_LIMIT = click.option(
    "--limit", type=click.IntRange(min=1), help="Megabytes that experts may take together."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def route() -> None:
    """Send every prompt to a network of the size it needs (APTP)."""


def read_captions(file: Path) -> list[str]:
    """The lines of a text file. Raises ConfigError naming the first empty one."""
    from ..pipelines import read_prompts

    read_prompts(file)
    lines = file.read_text(encoding="utf-8").splitlines()
    empty = [i for i, line in enumerate(lines, 1) if not line.strip()]
    if empty:
        raise ConfigError(
            f"{file} has {len(empty)} empty lines (the first is line {empty[0]}): each line is a "
            "caption; remove them"
        )
    return [line.strip() for line in lines]


def _opened(folder: Path, device: str, limit: int | None) -> Any:
    from ...engine.run import device as find_device
    from .pipeline import AptpPipeline

    quiet()
    return AptpPipeline.from_pretrained(
        folder, device=find_device(device), limit=None if limit is None else limit * 10**6
    )


@route.command()
@click.argument("model", type=PATH)
@click.argument("output", type=PATH)
@options_from(AptpConfig)
@_CAPTIONS
@click.option("--guidance", type=float, help="Of the images learnt from; unset: the pipeline's.")
@click.option("--encoder", help="Folder of a text encoder; unset: the pipeline's own embedding.")
@click.option("--cache", type=PATH, help="File for the dense model's latents.")
@click.option(
    "--mode", type=click.Choice(["shared", "exported"]), default="shared", show_default=True,
    help="Store the dense denoiser once, or every expert as a model of its own.",
)  # fmt: skip
@_DEVICE
def train(
    model: Path,
    output: Path,
    config_file: Path | None,
    captions: Path,
    guidance: float | None,
    encoder: str | None,
    cache: Path | None,
    mode: Any,
    device: str,
    **options: Any,
) -> None:
    """Learn which prompts need how much of the pipeline in folder MODEL; write folder OUTPUT.

    Interrupted, the same command goes on from OUTPUT.checkpoint.
    """
    from ...engine.folder import refuse_existing
    from .corpus import Corpus
    from .encoder import PIPELINE, TextEncoder
    from .pipeline import AptpPipeline
    from .trainer import check_captions, train_router

    config = resolve(AptpConfig, options, config_file)
    refuse_existing(output)
    prompts = read_captions(captions)
    check_captions(prompts, config)
    pipe = open_folder(model, device, "float32")
    own = TextEncoder(encoder)(prompts) if encoder is not None else None
    corpus = Corpus.of(
        pipe, prompts, steps=config.inference_steps, guidance=guidance, seed=config.seed,
        cache=cache,
    )  # fmt: skip
    checkpoint = output.with_name(f"{output.name}.checkpoint")
    router = train_router(
        corpus, config, embeddings=own, encoder=encoder or PIPELINE, checkpoint=checkpoint
    )
    owner = AptpPipeline(pipe, router)
    owner.save(output, mode=mode)
    checkpoint.unlink(missing_ok=True)
    _say_experts(owner)
    mean = float((router.usage * router.shares).sum())
    click.echo(f"{mean:.1%} of the multiply-adds on average; wanted {config.target:.1%}")
    click.echo(f"routed pipeline  {output}")


def _say_experts(owner: Any) -> None:
    for handle in owner.experts:
        click.echo(handle.report().report())


@route.command()
@click.argument("model", type=PATH)
@click.argument("output", type=PATH)
@options_from(FinetuneConfig)
@_CAPTIONS
@click.option(
    "--common", type=click.FloatRange(0, 1), default=0.0, show_default=True,
    help="Share of the updates in which experts learn together, as parts of one network.",
)  # fmt: skip
@click.option(
    "--whole-batches", is_flag=True,
    help="Every expert has whole batches of its captions, as in the paper, not its share of each.",
)  # fmt: skip
@click.option("--larger", is_flag=True, help="Experts learn from captions of larger ones, too.")
@click.option("--dense", type=PATH, help="Folder of the dense pipeline, if MODEL has none.")
@click.option("--cache", type=PATH, help="Folder for the dense model's images.")
@click.option(
    "--store", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32",
    show_default=True, help="Type of the weights that are written; training has float32.",
)  # fmt: skip
@_DEVICE
def finetune(
    model: Path,
    output: Path,
    config_file: Path | None,
    captions: Path,
    common: float,
    whole_batches: bool,
    larger: bool,
    dense: Path | None,
    cache: Path | None,
    store: str,
    device: str,
    **options: Any,
) -> None:
    """Train the experts of folder MODEL, each on the captions it gets; write folder OUTPUT.

    Interrupted, the same command goes on from the folder OUTPUT.checkpoints.
    """
    import torch

    from ...engine.folder import refuse_existing
    from .finetune import finetune_experts

    config = resolve(FinetuneConfig, options, config_file)
    refuse_existing(output)
    prompts = read_captions(captions)
    owner = _opened(model, device, None)
    teacher = open_folder(dense, device, "float32") if dense is not None else None
    checkpoints = output.with_name(f"{output.name}.checkpoints")
    tuned = finetune_experts(
        owner, prompts, config, common=common, whole_batches=whole_batches, larger=larger,
        teacher=teacher, checkpoints=checkpoints, cache=cache,
    )  # fmt: skip
    tuned.pipe.to(getattr(torch, store))  # experts take after it
    tuned.save(output)
    shutil.rmtree(checkpoints, ignore_errors=True)
    click.echo(f"routed pipeline  {output}")


@route.command()
@click.argument("model", type=PATH)
@JSON
@_DEVICE
def inspect(model: Path, as_json: bool, device: str) -> None:
    """Say what experts the routed pipeline in folder MODEL has."""
    import dataclasses

    owner = _opened(model, device, None)
    found = [handle.report() for handle in owner.experts]
    router = owner.router
    if as_json:
        about = {"mode": owner.mode, "target": router.config.target, "encoder": router.encoder}
        about |= {"likeness": router.likeness(), "tilt": router.tilt}
        click.echo(json.dumps({**about, "experts": [dataclasses.asdict(e) for e in found]}))
        return
    for expert in found:
        click.echo(expert.report())
    click.echo(
        f"{owner.mode}; asked for {router.config.target:.1%} of the multiply-adds; the two most "
        f"similar experts have cosine {router.likeness():.3f}"
    )


@route.command("eval")
@click.argument("model", type=PATH)
@_CAPTIONS
@JSON
@_DEVICE
def evaluate(model: Path, captions: Path, as_json: bool, device: str) -> None:
    """Say where captions go and what they cost. Draws nothing."""
    owner = _opened(model, device, None)
    prompts = read_captions(captions)
    routed = owner.route(prompts)
    router = owner.router
    counts = [int((routed.experts == i).sum()) for i in range(len(router.keep))]
    figures = {
        "captions": len(prompts),
        "share": float(routed.shares.mean()),
        "target": router.config.target,
        "entropy": router.entropy(routed.experts),
        "likeness": router.likeness(),
        "counts": counts,
        "milliseconds": 1000 * routed.seconds / len(prompts),
    }
    if as_json:
        click.echo(json.dumps(figures))
        return
    for i, count in enumerate(counts):
        share = float(router.shares[i])
        click.echo(f"expert {i}: {count:6} captions, {share:.1%} of the multiply-adds each")
    click.echo(
        f"on average {figures['share']:.1%} of the multiply-adds (asked for "
        f"{router.config.target:.1%}); entropy of use {figures['entropy']:.2f} of 1"
    )


@route.command()
@click.argument("model", type=PATH)
@_CAPTIONS
@click.option("--target", type=float, help="Share that stays on average; unset: as trained for.")
@_DEVICE
def rebalance(model: Path, captions: Path, target: float | None, device: str) -> None:
    """Keep captions like these within the budget from now on; changes folder MODEL's router."""
    from .folder import ROUTER

    owner = _opened(model, device, None)
    prompts = read_captions(captions)
    before = float(owner.route(prompts).shares.mean())
    owner.rebalance(prompts, target)
    owner.router.save(model / ROUTER)
    after = float(owner.route(prompts).shares.mean())
    click.echo(f"{before:.1%} of the multiply-adds on average before, {after:.1%} now")


@route.command()
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="PNG file.")
@click.option("--prompt", "given", multiple=True, help="A prompt; may be repeated.")
@click.option("--prompts", "file", type=PATH, help="Text file with a prompt per line.")
@click.option("--expert", type=int, help="Of all prompts; unset: the router says.")
@click.option("--steps", type=click.IntRange(min=1), help="Unset: the pipeline's own.")
@click.option("--guidance", type=float, help="Guidance scale; unset: the pipeline's own.")
@click.option("--seed", default=0, show_default=True, help="Of the first image.")
@_LIMIT
@_DEVICE
def generate(
    model: Path,
    output: Path,
    given: tuple[str, ...],
    file: Path | None,
    expert: int | None,
    steps: int | None,
    guidance: float | None,
    seed: int,
    limit: int | None,
    device: str,
) -> None:
    """Make one image per prompt, each by its expert, side by side in a PNG."""
    from ..sheet import write_sheet

    prompts = prompts_of(given, file)
    owner = _opened(model, device, limit)
    images = owner.generate(prompts, expert=expert, steps=steps, guidance=guidance, seed=seed)
    write_sheet(output, [images])
    routed = owner.last
    for prompt, i in zip(prompts, routed.experts.tolist(), strict=True):
        count = int((routed.experts == i).sum())
        spent = owner.seconds.get(i, 0.0) / count
        click.echo(
            f"expert {i}  {float(owner.router.shares[i]):6.1%} of the multiply-adds  "
            f"{spent:7.3f} s  {prompt}"
        )
    click.echo(f"{len(prompts)} images  {output}")


@route.command()
@click.argument("model", type=PATH)
@click.option("-o", "--output", type=PATH, required=True, help="HTML file.")
@_CAPTIONS
@click.option("--steps", type=click.IntRange(min=1), help="Unset: the pipeline's own.")
@click.option("--guidance", type=float, help="Guidance scale; unset: the pipeline's own.")
@click.option("--seed", default=0, show_default=True, help="Of the pictures.")
@_DEVICE
def report(
    model: Path,
    output: Path,
    captions: Path,
    steps: int | None,
    guidance: float | None,
    seed: int,
    device: str,
) -> None:
    """Write a page: which captions went where, capacities, pictures of each expert."""
    from .report import write_report

    owner = _opened(model, device, None)
    prompts = read_captions(captions)
    write_report(output, owner, prompts, steps=steps, guidance=guidance, seed=seed)
    click.echo(f"report  {output}")
