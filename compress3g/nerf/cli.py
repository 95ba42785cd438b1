"""`compress3g nerf`: parses, calls, prints."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..engine.options import options_from, resolve, to_toml
from ..errors import ConfigError
from .config import TrainConfig

if TYPE_CHECKING:
    from .model import NerfModel

_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_DEVICE = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N"
)
_BACKEND = click.option(
    "--backend", default="auto", show_default=True, help="auto, cpu, reference, triton, tinycudann"
)
_THREADS = click.option(
    "--threads", type=click.IntRange(1, 1024), help="CPU threads (default: all)."
)
_RUN = click.argument("run", type=click.Path(path_type=Path))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def app() -> None:
    """Train, prune, render and inspect radiance fields (HollowNeRF)."""


@app.command()
@click.argument("scene", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the run.")
@options_from(TrainConfig)
@click.option("--compare", is_flag=True, help="Also train the plain grid for as many steps.")
@click.option("--resume", is_flag=True, help="Go on from the folder's checkpoint.")
@click.option("--overwrite", is_flag=True, help="Replace the run in the folder.")
@click.option("--format", "kind", default="auto", show_default=True,
              help="auto, blender, instant-ngp, llff, colmap")  # fmt: skip
@click.option("--downscale", default=1, show_default=True, help="Shrink images by this integer.")
@click.option("--box", nargs=6, type=float,
              help="Corners min x y z, max x y z of the box to train in.")  # fmt: skip
@click.option("--near", type=float, help="Distance at which rays start, in the scene's unit.")
@_THREADS
@_DEVICE
@_BACKEND
@_JSON
def train(
    scene: Path,
    output: Path | None,
    config_file: Path | None,
    compare: bool,
    resume: bool,
    overwrite: bool,
    kind: str,
    downscale: int,
    box: tuple[float, ...] | None,
    near: float | None,
    threads: int | None,
    device: str,
    backend: str,
    as_json: bool,
    **options: Any,
) -> int:
    """Train a radiance field on SCENE; with --hollow prune the space it stores features for."""
    from ..engine.run import device as find_device
    from ..kernels import registry
    from .run import Stopped, train_and_compare, write_sheet
    from .run_folder import RunFolder
    from .scene import Scene

    if resume and output and config_file is None:
        config_file = RunFolder(output).config  # a run goes on with the options it began with
        config_file = config_file if config_file.is_file() else None
    config = resolve(TrainConfig, options, config_file, one_of=("steps", "seconds"))
    if compare and not config.hollow:
        raise ConfigError("--compare trains the plain grid beside a hollow one: add --hollow")
    _use(threads)
    target = find_device(device)
    with registry.use(**registry.use_everywhere(backend)):
        loaded = Scene.load(scene, format=kind, downscale=downscale, near=near, box=box or None)
        name = f"{loaded.name}-hollow" if config.hollow else loaded.name
        folder = RunFolder(output or Path("runs") / name)
        folder.claim(resume=resume, overwrite=overwrite)
        try:
            run, plain = train_and_compare(
                loaded, config, folder, compare=compare, resume=resume, toml=to_toml, device=target
            )
        except Stopped as stopped:
            click.echo(f"{stopped}; go on with: {_again(scene, folder.path)}", err=True)
            return 128 + stopped.signal
        write_sheet(folder, run, plain)
    results = {} if plain is None else {"plain": plain.result}
    results["hollow" if config.hollow else "plain"] = run.result
    if as_json:
        extra = {} if plain is None else {"plain": plain.result.to_json()}
        click.echo(json.dumps({**run.result.to_json(), **extra, "run": str(folder.path)}))
        return 0
    _print_results({name: r.to_json() for name, r in results.items()})
    click.echo(f"run    {folder.path}")
    click.echo(f"sheet  {folder.sheet}")
    return 0


def _use(threads: int | None) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)


def _again(scene: Path, folder: Path) -> str:
    """The command that goes on with this one, whose options the run's folder remembers."""
    given = click.get_current_context()
    words = ["compress3g", "nerf", "train", str(scene), "--resume", "-o", str(folder)]
    for name in ("kind", "downscale", "near", "box", "threads", "device", "backend"):
        if given.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            value = given.params[name]
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{'format' if name == 'kind' else name}", *map(str, values)]
    words += ["--compare"] if given.params["compare"] else []
    words += ["--json"] if given.params["as_json"] else []
    return shlex.join(words)


def _print_results(results: dict[str, dict[str, Any]]) -> None:
    """A table with one row per model."""
    click.echo(
        f"{'':8}{'PSNR':>9}{'SSIM':>8}{'parameters':>13}{'fp32 bytes':>13}"
        f"{'kept cells':>20}{'steps':>8}{'seconds':>9}{'Msamples/s':>12}"
    )
    for name, r in results.items():
        kept = f"{r['kept_cells']:,} ({r['kept_fraction']:.1%})"
        click.echo(
            f"{name:8}{r['psnr']:>6.2f} dB{r['ssim']:>8.4f}{r['params']:>13,}{r['bytes_fp32']:>13,}"
            f"{kept:>20}{r['steps']:>8,}{r['seconds']:>9.1f}{r['samples_per_second'] / 1e6:>12.2f}"
        )


@app.command(name="eval")
@_RUN
@click.option("--scene", "scene_path", type=click.Path(path_type=Path),
              help="The scene, if it is no longer where it was.")  # fmt: skip
@click.option("--split", type=click.Choice(["test", "train"]), default="test", show_default=True)
@click.option("--save-images", type=click.Path(path_type=Path), help="Folder for the renderings.")
@_THREADS
@_DEVICE
@_BACKEND
@_JSON
def evaluate(
    run: Path,
    scene_path: Path | None,
    split: str,
    save_images: Path | None,
    threads: int | None,
    device: str,
    backend: str,
    as_json: bool,
) -> int:
    """Render the views of a split and score them (PSNR, SSIM; white background)."""
    from ..engine.run import device as find_device
    from ..kernels import registry
    from .evaluation import evaluate as score_views
    from .frames import save_picture
    from .metrics import summary
    from .model import NerfModel
    from .run_folder import model_file
    from .scene import Scene

    _use(threads)
    file = model_file(run)
    model, about = NerfModel.load(file)
    model.to(find_device(device))
    if scene_path is None and "scene" not in about:
        raise ConfigError(f"{file} does not say what scene it was trained on: give --scene")
    path = scene_path or Path(about["scene"])
    scores = []
    with registry.use(**registry.use_everywhere(backend)):
        scene = Scene.load(path, **_as_trained(model, about))
        for score, _, rendered in score_views(model, getattr(scene, split)):
            scores.append(score)
            if save_images:
                save_picture(rendered, save_images / f"{Path(score.name).stem}.png")
            if not as_json:
                click.echo(f"{score.name:24}{score.psnr:>8.2f} dB{score.ssim:>9.4f}")
    figures = summary(scores)
    if as_json:
        views = [{"name": s.name, "psnr": s.psnr, "ssim": s.ssim} for s in scores]
        click.echo(json.dumps({**figures, "views": views}))
        return 0
    for label, suffix in (("mean", ""), ("median", "_median"), ("min", "_min"), ("max", "_max")):
        p, s = figures[f"psnr{suffix}"], figures[f"ssim{suffix}"]
        click.echo(f"{label:24}{p:>8.2f} dB{s:>9.4f}")
    return 0


def _as_trained(model: NerfModel, about: dict[str, Any]) -> dict[str, Any]:
    """Options of `Scene.load` that give the views of the run."""
    corner = model.centre - model.side / 2
    return {
        "format": about.get("format", "auto"),
        "downscale": about.get("downscale", 1),
        "near": model.near * model.side,
        "box": [*corner.tolist(), *(corner + model.side).tolist()],
    }


@app.command()
@_RUN
@click.option("--path", "along", default="orbit", show_default=True,
              help="orbit, spiral, or a transforms file of cameras.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(), required=True,
              help=".mp4, .gif, or a folder for PNGs.")  # fmt: skip
@click.option("--frames", default=90, show_default=True, type=click.IntRange(1))
@click.option("--fps", default=30.0, show_default=True)
@click.option("--size", help="Of the pictures, as 256x256 (default: the training images').")
@click.option("--background", default=1.0, show_default=True, type=click.FloatRange(0, 1))
@_THREADS
@_DEVICE
@_BACKEND
@_JSON
def render(
    run: Path,
    along: str,
    output: str,
    frames: int,
    fps: float,
    size: str | None,
    background: float,
    threads: int | None,
    device: str,
    backend: str,
    as_json: bool,
) -> int:
    """Render a camera path to a video or to pictures. Needs the run only, not the scene."""
    from ..engine.progress import Progress
    from ..engine.run import device as find_device
    from ..kernels import registry
    from . import camera_paths
    from .frames import frames_of
    from .model import NerfModel
    from .run_folder import model_file
    from .video import write_video

    _use(threads)
    model, _ = NerfModel.load(model_file(run))
    model.to(find_device(device))
    wanted = _size(size)
    if along == "orbit":
        cameras = camera_paths.orbit(model.cameras, frames=frames, size=wanted)
    elif along == "spiral":
        cameras = camera_paths.spiral(model.cameras, frames, size=wanted)
    else:
        cameras = model.to_unit(camera_paths.from_json(along, size=wanted))
    with registry.use(**registry.use_everywhere(backend)), Progress(f"render {along}") as line:
        pictures = line.over(frames_of(model, cameras, background), len(cameras))
        written = write_video(pictures, output, fps=fps)
    if as_json:
        shape = {"frames": len(cameras), "width": cameras.width, "height": cameras.height}
        click.echo(json.dumps({"path": str(written), **shape}))
    else:
        click.echo(f"{written}  {len(cameras)} frames of {cameras.width}x{cameras.height}")
    return 0


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    wide, cross, high = text.lower().partition("x")
    if not (cross and wide.isdecimal() and high.isdecimal()):
        raise click.BadParameter(f"{text!r} is not a size such as 256x256", param_hint="--size")
    return int(wide), int(high)


@app.command()
@_RUN
@_JSON
def info(run: Path, as_json: bool) -> int:
    """Say what a run holds: parameters, bytes by part, kept cells, results."""
    from .info import describe
    from .run_folder import model_file

    figures = describe(model_file(run))
    if as_json:
        click.echo(json.dumps(figures))
        return 0
    for name, value in figures.items():
        if isinstance(value, dict):
            click.echo(name)
            for key, inner in value.items():
                click.echo(f"  {key:24}{_shown(inner)}")
        else:
            click.echo(f"{name:26}{_shown(value)}")
    return 0


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
