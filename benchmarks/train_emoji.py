"""Trains the text-to-image model of docs/emoji.md, its autoencoder and its judge.

    python benchmarks/train_emoji.py --pictures FOLDER --taef2 FOLDER [--part NAME] [--out FOLDER]

Pictures are noto-emoji's (png128.tar), captions and held-out parts those of _emoji.py. A U-Net with
cross-attention and a CLIP text encoder, both from nothing, learn by flow matching (2210.02747) in
latents of TAEF2, each channel centred and scaled. The decoder is an AutoencoderTiny with TAEF2's
weights where these fit (_taef2.py); its three blocks at 16x16, where they do not, are taught on the
training pictures to do as TAEF2's do. Its encoder is small, and taught to do as TAEF2's does. The
judge learns all pictures, also those held out and those that no model here draws: it has to know
what was asked for, and never sees a generated one.
Parts are independent and may run at the same time; each ends when its seconds are over, or at a
SIGTERM, and the learning rate follows the share of them that is spent. `--domain work`, the
default, took half an hour of part of a core; of all emoji only the judge was ever trained.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _taef2
import torch
import torch.nn.functional as F
from _emoji import (
    GROUPS,
    RIGHT,
    Judge,
    judged,
    pictures,
    varied,
    write_list,
)
from _fit import fit
from _report import goal, parser, report
from _text_to_image import (
    DROPPED,
    denoiser,
    flow_loss,
    pipeline,
    sample,
    text_encoder,
)
from torch import Tensor

from compress3g.diffusion.metrics import psnr
from compress3g.diffusion.sheet import write_sheet
from compress3g.engine.checkpoint import load_tensors, save_tensors

PARTS = ("judge", "autoencoder", "denoiser", "measure")
CHANNELS, HEADS = (64, 56, 40), (2, 2, 2)  # at 16x16, 8x8, 4x4
STEPS, GUIDANCE = 16, 3.0
_WIDTH, _LENGTH, _PIECES = 128, 20, 1024  # of the text: features, tokens of a caption, vocabulary
_ENCODER = 16  # channels; the decoder has as many as TAEF2's
_SHRINK = 2.0  # keeps latents where the decoder's tanh is not yet flat
_DRAWS = 1 << 16  # length of the table that training pictures are drawn from


def tokenizer(captions: Sequence[str]) -> Any:
    """CLIP's, with pieces of words learnt from the captions (byte pair encoding)."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    learnt = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learnt.pre_tokenizer = pre_tokenizers.Whitespace()
    signs = list("abcdefghijklmnopqrstuvwxyz0123456789")
    special = ["<|startoftext|>", "<|endoftext|>"]
    learnt.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=_PIECES,
            special_tokens=[*special, *signs, *(f"{s}</w>" for s in signs)],
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    found = json.loads(learnt.to_str())["model"]
    merges = [(first, then) for first, then in found["merges"]]
    return CLIPTokenizer(vocab=found["vocab"], merges=merges, model_max_length=_LENGTH)


def autoencoder() -> Any:
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        latent_channels=_taef2.CHANNELS,
        encoder_block_out_channels=(_ENCODER,) * 4,
        decoder_block_out_channels=(_taef2.WIDTH,) * 4,
        num_encoder_blocks=(0, 1, 1, 1),
        num_decoder_blocks=(3, 3, 3, 1),
        scaling_factor=_SHRINK,
    )


class Data:
    """Pictures of what the model draws (the judge's part: of all), latents, a table to draw from.

    known: all emoji, in the judge's order; numbers: which of them the pictures are.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        self.known, images = pictures(options.pictures / "png128.tar")
        if options.quick:
            self.known, images = self.known[::15], images[::15]
        work = options.domain == "work" and options.part != "judge"
        self.numbers = [i for i, e in enumerate(self.known) if e.at_work or not work]
        self.images = images[self.numbers].to(self.device)
        drawn = [self.known[i] for i in self.numbers]
        self.groups = [e.group for e in drawn]
        self.captions = [e.caption for e in drawn]
        self.seen = torch.tensor([g == "seen" for g in self.groups])
        self._kinds = [e.name.split(" ", 1)[-1] if e.gendered else e.name for e in drawn]
        self._taef2 = options.taef2
        name = f"latents-{options.domain}{'-quick' if options.quick else ''}"
        self._kept = options.work / f"{name}.safetensors"

    def latents(self) -> Tensor:
        """TAEF2's, with every channel centred and scaled by the training pictures."""
        if not self._kept.exists():  # a processor takes minutes
            net = _taef2.encoder(self._taef2).to(self.device)
            with torch.no_grad():
                parts = [net(self.pixels(part)) for part in self.images.split(64)]
            save_tensors(self._kept, {"latents": torch.cat(parts).half()}, {})
        made = load_tensors(self._kept)[0]["latents"].float().to(self.device)
        train = made[self.seen.to(self.device)]
        mean, spread = (f(train, (0, 2, 3), keepdim=True) for f in (torch.mean, torch.std))
        self.scale = (mean, spread)
        return (made - mean) / spread

    def pixels(self, images: Tensor) -> Tensor:
        return images.float() / 255

    def table(self) -> Tensor:
        """Training pictures by number, figures that there are many of less often than others."""
        many = Counter(self._kinds)
        weight = torch.tensor([many[k] ** -0.5 for k in self._kinds]) * self.seen
        order = torch.Generator().manual_seed(0)
        drawn = torch.multinomial(weight, _DRAWS, replacement=True, generator=order)
        return drawn.to(self.device)


def draw(table: Tensor, size: int) -> Tensor:
    return table[torch.randint(len(table), (size,), device=table.device)]


def train_judge(data: Data, options: argparse.Namespace) -> dict[str, float]:
    torch.manual_seed(1)
    judge = Judge(len(data.known)).to(data.device)
    everything = torch.arange(len(data.known), device=data.device)

    def step() -> Tensor:
        index = draw(everything, options.batch)
        with torch.autocast(options.device, enabled=False):  # half a pixel is lost in bfloat16
            images = varied(data.pixels(data.images[index]))
        return F.cross_entropy(20 * judge.scores(images).float(), index, label_smoothing=0.05)

    def check() -> str:
        return " ".join(f"{k} {v:.3f}" for k, v in gate(judge, data).items())

    told = fit(
        [judge], step, check, options, most=3e-3, seconds=_left(options, options.judge_seconds)
    )
    judge.save(options.out / "judge.safetensors")
    return {**told, **gate(judge, data)}


def _left(options: argparse.Namespace, seconds: float) -> float:
    return seconds if options.end is None else max(1.0, min(seconds, options.end - time.time()))


def gate(judge: Judge, data: Data) -> dict[str, float]:
    """What the judge knows of pictures turned, blurred and so on as training never showed."""
    training = judge.training
    judge.eval()
    random = torch.Generator(data.device).manual_seed(12345)
    parts = [varied(data.pixels(part), random) for part in data.images.split(256)]
    found = judged(torch.cat(parts), data.numbers, data.known, judge)
    judge.train(training)
    return dict(zip(RIGHT, found.float().mean(0).tolist(), strict=True))


def train_autoencoder(data: Data, options: argparse.Namespace) -> dict[str, float]:
    torch.manual_seed(2)
    vae = autoencoder().to(data.device)
    latents = data.latents()
    table = data.seen.nonzero()[:, 0].to(data.device)
    size = max(4, options.batch)
    teacher = _taef2.decoder(options.taef2).to(data.device)
    mean, spread = data.scale[0].flatten(), data.scale[1].flatten()
    _taef2.student(teacher, vae.decoder.layers, mean, _SHRINK * spread)
    small = vae.decoder.layers[: _taef2.SMALL - 1]

    def decode() -> Tensor:
        z = latents[draw(table, size)]
        with torch.no_grad():
            wanted = teacher[: _taef2.SMALL](mean[:, None, None] + spread[:, None, None] * z)
        # The denoiser's latents will not be exact.
        blur = 0.2 * torch.rand(size, 1, 1, 1, device=z.device) ** 2
        given = (z + blur * torch.randn_like(z)) / _SHRINK
        return (small((given / 3).tanh() * 3).float() - wanted).square().mean()

    def encode() -> Tensor:
        index = draw(table, max(4, size // 4))
        seen = vae.encoder(2 * data.pixels(data.images[index]) - 1).float()
        return (seen - latents[index] / _SHRINK).square().mean()

    def check() -> str:
        held = (~data.seen).nonzero()[:, 0].to(data.device)[:8]
        with torch.no_grad():
            images, z = data.pixels(data.images[held]), latents[held]
            drawn = (vae.decoder(z / _SHRINK) / 2 + 0.5).clamp(0, 1)
            again = vae.encoder(2 * images - 1)
            own = (vae.decoder(again) / 2 + 0.5).clamp(0, 1)
        error = float((again * _SHRINK - z).square().mean())
        return (
            f"dB of held-out pictures {float(psnr(drawn, images).mean()):.2f}, through its own "
            f"encoder {float(psnr(own, images).mean()):.2f}; encoder's error {error:.3f}"
        )

    seconds = _left(options, options.seconds)
    told = fit([small], decode, check, options, most=5e-4, seconds=0.5 * seconds)
    seen = fit([vae.encoder], encode, check, options, most=2e-3, seconds=0.5 * seconds)
    vae.half().save_pretrained(options.out / "vae")
    return {**told, **{f"encoder {k}": v for k, v in seen.items()}}


def train_denoiser(data: Data, options: argparse.Namespace) -> dict[str, float]:
    torch.manual_seed(3)
    words = tokenizer([c for c, seen in zip(data.captions, data.seen, strict=True) if seen])
    channels = tuple(int(c) for c in options.channels.split(","))
    heads = tuple(int(h) for h in options.heads.split(","))
    unet = denoiser(channels, heads, inputs=_taef2.CHANNELS, width=_WIDTH).to(data.device)
    encoder = text_encoder(words, width=_WIDTH, layers=2).to(data.device)
    latents, table = data.latents(), data.table()
    how = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    ids = words(data.captions, max_length=_LENGTH, **how).input_ids.to(data.device)
    nothing = words([""], max_length=_LENGTH, **how).input_ids.to(data.device)

    def step() -> Tensor:
        index = draw(table, options.batch)
        dropped = torch.rand(options.batch, 1, device=data.device) < DROPPED
        return flow_loss(unet, encoder, latents[index], torch.where(dropped, nothing, ids[index]))

    groups = {
        g: torch.tensor([i for i, of in enumerate(data.groups) if of == g][:32]) for g in GROUPS
    }

    @torch.no_grad()
    def check() -> str:
        random = torch.Generator(data.device).manual_seed(4)
        losses = [
            (g, float(flow_loss(unet, encoder, latents[i], ids[i], random)))
            for g, i in groups.items()
            if len(i)
        ]
        return " ".join(f"{g} {value:.4f}" for g, value in losses)

    seconds = _left(options, options.seconds)
    told = fit([unet, encoder], step, check, options, most=options.rate, seconds=seconds)
    pipe = pipeline(autoencoder(), words, encoder.half(), unet.half())
    for part in ("unet", "text_encoder", "tokenizer", "scheduler"):
        getattr(pipe, part).save_pretrained(options.out / part)
    # transformers, unlike diffusers, would load it in half precision beside a whole U-Net.
    config = options.out / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"float16"', '"float32"'))
    pipe.save_config(options.out)
    write_list(options.out / "emoji.txt", data.known, data.numbers)
    return told


def load(folder: Path, device: str = "cpu") -> Any:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def measure(data: Data, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The judge's word on real pictures, on these through the decoder, and on drawn ones."""
    judge = Judge.load(options.out / "judge.safetensors").to(data.device)
    pipe = load(options.out, options.device)
    rows = {"judge, varied pictures": gate(judge, data)}
    real = data.pixels(data.images)
    with torch.no_grad():
        parts = [pipe.vae.decode(z / _SHRINK).sample for z in data.latents().split(32)]
    decoded = (torch.cat(parts) / 2 + 0.5).clamp(0, 1)
    found = judged(decoded, data.numbers, data.known, judge).float().mean(0)
    rows["judge, decoded pictures"] = dict(zip(RIGHT, found.tolist(), strict=True))
    chosen = torch.tensor([i for g in GROUPS for i in _some(data, g, options.captions)])
    captions = [data.captions[i] for i in chosen]
    images = sample(pipe, captions, steps=STEPS, guidance=GUIDANCE, seed=0)
    right = judged(images, [data.numbers[i] for i in chosen], data.known, judge).float()
    pairs: list[Tensor] = []
    for group in GROUPS:
        of = torch.tensor([data.groups[i] == group for i in chosen])
        if not of.any():
            continue
        rows[group] = dict(zip(RIGHT, right[of].mean(0).tolist(), strict=True))
        rows[group]["pictures"] = int(of.sum())
        rows[group]["decoder, dB"] = float(psnr(decoded[chosen[of]], real[chosen[of]]).mean())
        shown = of.nonzero()[:, 0][torch.linspace(0, int(of.sum()) - 1, 14).long()]
        pairs += [real[chosen[shown]], images[shown]]
    write_sheet(options.out / "samples.png", pairs)
    return rows


def _some(data: Data, group: str, most: int) -> list[int]:
    """Evenly spread numbers of drawn emoji in this group."""
    of = [i for i, g in enumerate(data.groups) if g == group]
    return of[:: max(1, len(of) // most)]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--pictures", type=Path, required=True, help="Folder of png128.tar.")
    made.add_argument("--taef2", type=Path, required=True, help="Folder of taef2_*.pth.")
    made.add_argument("--part", default="", help=f"One of {', '.join(PARTS)}; all without.")
    made.add_argument("--out", type=Path, default=Path("runs/emoji"), help="Folder of the model.")
    made.add_argument("--work", type=Path, default=Path("runs/emoji_latents"), help="For latents.")
    made.add_argument("--seconds", type=float, default=600.0, help="Of a part.")
    made.add_argument("--judge-seconds", type=float, default=120.0, help="Of the judge.")
    made.add_argument("--end", type=float, help="Unix time by which a part has ended.")
    made.add_argument("--batch", type=int, default=32)
    made.add_argument("--rate", type=float, default=1.2e-3, help="Of learning, at most.")
    made.add_argument("--channels", default=",".join(map(str, CHANNELS)), help="Of the U-Net.")
    made.add_argument("--heads", default=",".join(map(str, HEADS)), help="Of attention, likewise.")
    made.add_argument("--domain", default="work", help="work, or all: what the model draws.")
    made.add_argument("--captions", type=int, default=100, help="Of a group, to measure.")
    made.add_argument("--eager", action="store_true", help="No CUDA graph.")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = made.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    if options.quick:
        options.seconds = options.judge_seconds = 8.0
        options.batch, options.captions = 32, 8
    options.out.mkdir(parents=True, exist_ok=True)
    data = Data(options)
    parts: dict[str, Callable[[Data, Any], dict[str, Any]]] = {
        "judge": train_judge, "autoencoder": train_autoencoder, "denoiser": train_denoiser,
        "measure": measure,
    }  # fmt: skip
    for part in (options.part,) if options.part else PARTS:
        options.part = part
        row = parts[part](data, options)
        (options.out / f"{part}.json").write_text(json.dumps(row))
        print(part, row, flush=True)
    if options.part == "measure":
        _report(options)


def _report(options: argparse.Namespace) -> None:
    """Of all parts, whichever process they ran in."""
    files = [options.out / f"{part}.json" for part in PARTS]
    rows = {file.stem: json.loads(file.read_text()) for file in files if file.exists()}
    found = rows["measure"]
    goals = [
        goal(
            "judge on varied pictures", 100 * found["judge, varied pictures"]["first"], 90, unit="%"
        )
    ]
    goals += [
        goal(f"first five, {g}", 100 * found[g]["first five"], limit, unit="%")
        for g, limit in (("seen", 80), ("tone", 60), ("role", 40), ("pair", 40)) if g in found
    ]  # fmt: skip
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    report("train_emoji", options, seeds=[0], goals=goals, rows=rows, device=device)


if __name__ == "__main__":
    main()
