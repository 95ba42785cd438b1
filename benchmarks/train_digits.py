"""Trains the small text-to-image model of pipelines/digits_t2i, from scratch, on one core.

    python benchmarks/train_digits.py [--minutes 20] [--work FOLDER] [--out FOLDER]

A U-Net with cross-attention and a CLIP text encoder, both from nothing, learn by flow matching
(2210.02747) with logit-normal times (2403.03206) to draw the scenes of _digits.py. What is saved
is an average of the weights over steps. The learning rate follows the share of the processor
minutes that are spent, so that a run ends well on a busy machine too; `--work` keeps a checkpoint
from which it goes on.
The score is the share of images that are right in every digit and colour and show nothing else.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _digits import (
    COLOURS,
    WORDS,
    Classifier,
    correct,
    draw,
    features,
    frechet,
    scans,
    scenes,
    train_classifier,
)
from _report import goal, parser, report
from _text_to_image import (
    DROPPED,
    Average,
    denoiser,
    flow_loss,
    learning_rate,
    pipeline,
    sample,
    text_encoder,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from compress3g.diffusion.sheet import write_sheet

MEAN, SCALE = 0.12, 0.3  # of pixels in [0, 1]: what the latents are centred and scaled by
SHARES = {1: 0.2, 2: 0.3, 4: 0.5}  # of a batch, by number of objects
FIRST_SHARES = {1: 0.5, 2: 0.25, 4: 0.25}  # in the first fifth of the time: words before places
CHANNELS, HEADS = (32, 48, 16), (4, 6, 2)  # at 16x16, 8x8, 4x4, where little is needed
_WIDTH, _LENGTH = 96, 17
_SHRINK = 16.0  # keeps latents where the autoencoder's tanh is a straight line


def tokenizer() -> Any:
    """CLIP's, with the words of the captions and every letter."""
    from transformers import CLIPTokenizer

    words = ["a", "and", "above", "beside", *COLOURS, *WORDS]
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    merges: list[tuple[str, str]] = []
    for word in words:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            # A word goes through the merges of those before it first, as the tokenizer will.
            known = [pair for pair in merges if pair in itertools.pairwise(parts)]
            pair = known[0] if known else (parts[0], parts[1])
            merges += [] if known else [pair]
            at = next(i for i in range(len(parts)) if tuple(parts[i : i + 2]) == pair)
            parts[at : at + 2] = ["".join(pair)]
    pieces += dict.fromkeys("".join(pair) for pair in merges)
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=_LENGTH)


def pixels() -> Any:
    """An autoencoder that computes latent = (pixel - MEAN) / SCALE and back: none, in fact."""
    from diffusers import AutoencoderTiny

    made = AutoencoderTiny(
        encoder_block_out_channels=(3,),
        decoder_block_out_channels=(3,),
        num_encoder_blocks=(0,),
        num_decoder_blocks=(0,),
        latent_channels=3,
        scaling_factor=_SHRINK,
    )
    shift = 3.0  # a ReLU passes what is positive
    first, last = made.encoder.layers[0], made.encoder.layers[-1]
    _affine(first, 1.0, 0.0)
    _affine(last, 1 / (SCALE * _SHRINK), -MEAN / (SCALE * _SHRINK))
    first, last = made.decoder.layers[0], made.decoder.layers[-1]
    _affine(first, 1.0, shift)
    _affine(last, SCALE * _SHRINK, MEAN - shift * SCALE * _SHRINK)
    return made.eval()


@torch.no_grad()
def _affine(conv: nn.Conv2d, scale: float, shift: float) -> None:
    conv.weight.zero_()
    for channel in range(3):
        conv.weight[channel, channel, 1, 1] = scale
    conv.bias.fill_(shift)


def build(seed: int, channels: Sequence[int] = CHANNELS, heads: Sequence[int] = HEADS) -> Any:
    """The untrained pipeline; channels and attention heads at 16x16, 8x8 and 4x4."""
    torch.manual_seed(seed)
    words = tokenizer()
    unet = denoiser(tuple(channels), tuple(heads), inputs=3, width=_WIDTH)
    encoder = text_encoder(words, width=_WIDTH)
    return pipeline(pixels(), words, encoder, unet)


def batch(
    pipe: Any, size: int, shares: Mapping[int, float], noise: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Latents (b, 3, 16, 16) and token ids of random training scenes."""
    wanted = []
    for objects, share in shares.items():
        wanted += scenes(objects, round(size * share), noise, held_out=False)
    captions = [s.caption if noise.random() >= DROPPED else "" for s in wanted]
    ids = pipe.tokenizer(
        captions, padding="max_length", max_length=_LENGTH, return_tensors="pt"
    ).input_ids
    return (draw(wanted, noise) - MEAN) / SCALE, ids


def train(pipe: Any, options: argparse.Namespace) -> dict[str, float]:
    """Trains in place for `--minutes`, counting those of earlier runs, then takes the average."""
    modules = [pipe.unet, pipe.text_encoder]
    average = Average(modules)
    learned = [p for m in modules for p in m.train().parameters()]
    optimizer = torch.optim.AdamW(learned, 1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    file = options.work / "checkpoint.pt"
    step, before, recent = 0, 0.0, 0.0
    if file.exists():
        step, before = _resume(file, modules, average, optimizer)
        print(f"goes on at step {step}, {before / 60:.1f} min spent", flush=True)
    noise = np.random.default_rng(step)
    torch.manual_seed(step)
    limit, began = 60 * options.minutes, time.process_time()
    saved = said = time.monotonic()
    while (spent := before + time.process_time() - began) < limit:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(1.2e-3, step, spent / limit)
        shares = FIRST_SHARES if spent < 0.2 * limit else SHARES
        latents, ids = batch(pipe, options.batch, shares, noise)
        loss = flow_loss(pipe.unet, pipe.text_encoder, latents, ids)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        average.update(step)
        step += 1
        recent = float(loss.detach()) if step == 1 else 0.98 * recent + 0.02 * float(loss.detach())
        now = time.monotonic()
        if now - said > 20:
            said = now
            print(f"{spent / 60:6.1f} min  step {step:6}  loss {recent:.4f}", flush=True)
        if now - saved > 180:
            saved = now
            _save(file, modules, average, optimizer, step, spent)
    _save(file, modules, average, optimizer, step, spent)
    average.take()
    return {"steps": step, "minutes": spent / 60, "loss": recent}


def _save(
    file: Path,
    modules: list[nn.Module],
    average: Average,
    optimizer: torch.optim.Optimizer,
    step: int,
    spent: float,
) -> None:
    state = {
        "modules": [m.state_dict() for m in modules],
        "average": [m.state_dict() for m in average.shadow],
        "optimizer": optimizer.state_dict(),
        "step": step,
        "spent": spent,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, file.with_suffix(".new"))
    file.with_suffix(".new").replace(file)


def _resume(
    file: Path, modules: list[nn.Module], average: Average, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    state = torch.load(file, weights_only=True)
    for module, saved in zip(modules, state["modules"], strict=True):
        module.load_state_dict(saved)
    for module, saved in zip(average.shadow, state["average"], strict=True):
        module.load_state_dict(saved)
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["spent"]


def measure(
    pipe: Any,
    classifier: Classifier,
    count: int,
    *,
    guidance: float,
    steps: int = 16,
    seed: int = 0,
) -> dict[str, float]:
    """Exact match by number of objects on held-out scenes, and the Frechet distance of cells."""
    pipe.set_progress_bar_config(disable=True)
    noise = np.random.default_rng(seed)
    rows: dict[str, float] = {}
    real, made = [], []
    for objects in SHARES:
        wanted = scenes(objects, count, noise, held_out=True)
        images = sample(
            pipe, [s.caption for s in wanted], steps=steps, guidance=guidance, seed=seed
        )
        rows[f"{objects} objects"] = float(correct(images, wanted, classifier).float().mean())
        made.append(features(images, wanted, classifier))
        real.append(features(draw(wanted, noise, held_out=True), wanted, classifier))
    rows["frechet"] = frechet(torch.cat(real), torch.cat(made))
    return rows


def samples(pipe: Any, path: Path, *, guidance: float) -> None:
    """A PNG of twelve held-out scenes of every number of objects."""
    noise = np.random.default_rng(0)
    rows = []
    for objects in SHARES:
        captions = [s.caption for s in scenes(objects, 12, noise, held_out=True)]
        rows.append(sample(pipe, captions, steps=16, guidance=guidance, seed=0))
    write_sheet(path, rows)


def export(pipe: Any, classifier: Classifier, folder: Path) -> None:
    """The pipeline, its U-Net in half precision, and the classifier beside it; README.md stays."""
    for part in ("unet", "text_encoder", "vae", "tokenizer", "scheduler"):
        shutil.rmtree(folder / part, ignore_errors=True)
    whole = pipe.unet
    # The text encoder stays whole: transformers would load half as half beside a whole U-Net.
    pipe.unet = copy.deepcopy(whole).half()
    pipe.save_pretrained(folder)
    pipe.unet = whole
    save_file(classifier.state_dict(), folder / "classifier.safetensors")


def _three(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def main() -> None:
    made = parser(__doc__)
    made.add_argument(
        "--minutes", type=float, default=20.0, help="Of processor time, all runs together."
    )
    made.add_argument("--batch", type=int, default=32)
    made.add_argument(
        "--channels", default=",".join(map(str, CHANNELS)), help="At 16x16, 8x8, 4x4."
    )
    made.add_argument("--heads", default=",".join(map(str, HEADS)), help="Of attention, likewise.")
    made.add_argument("--guidance", type=float, default=3.0)
    made.add_argument("--work", type=Path, default=Path("runs/digits"), help="For the checkpoint.")
    made.add_argument(
        "--out", type=Path, help="Folder of the pipeline; without it none is written."
    )
    options = made.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        options.minutes, options.work = 0.3, options.work / "quick"
        shutil.rmtree(options.work, ignore_errors=True)
    classifier = train_classifier(300 if options.quick else 2500)
    _, images, labels = scans(held_out=True)
    with torch.no_grad():
        judged = float((classifier(images).argmax(1) == labels).float().mean())
    pipe = build(0, _three(options.channels), _three(options.heads))
    trained = train(pipe, options)
    if options.out is not None:
        export(pipe, classifier, options.out)
        samples(pipe, options.out / "samples.png", guidance=options.guidance)
    rows = measure(pipe, classifier, 8 if options.quick else 500, guidance=options.guidance)
    for name, value in {**rows, "classifier on held-out scans": judged, **trained}.items():
        print(f"{name:32}{value:10.4f}")
    goals = [
        goal(f"exact match, {n} objects", 100 * rows[f"{n} objects"], limit, unit="%")
        for n, limit in ((1, 90), (2, 85), (4, 70))
    ]
    report(
        "train_digits", options, seeds=[0], goals=goals,
        rows={"model": rows, "classifier": {"held-out scans": judged}, "training": trained},
    )  # fmt: skip


if __name__ == "__main__":
    main()
