"""The command table and what becomes of errors. Imports nothing heavy: `--help` is instant."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import click

from .. import __version__
from ..errors import Compress3GError

# Read once, when torch is loaded: its threads must sleep, not spin, while ours work; spinning cost
# more than half of the second core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


_COMMANDS = {
    "nerf": ("compress3g.nerf.cli:app", "Train, prune, render and inspect radiance fields."),
    "prune": ("compress3g.transformer.cli:prune", "Prune a Hugging Face transformer."),
    "peft": ("compress3g.peft.cli:app", "Fine-tune a model that gets smaller while it trains."),
    "diffusion": ("compress3g.diffusion.cli:app", "Prune and compare text-to-image pipelines."),
    "mamba": ("compress3g.mamba.cli:app", "Prune tokens of vision state-space models."),
    "index": ("compress3g.retrieval.cli:app", "Index, search and evaluate pages of documents."),
    "profile": ("compress3g.cli.profile:profile", "Say what a function costs, or which is faster."),
    "doctor": ("compress3g.cli.doctor:doctor", "Say which backends run here, and what would help."),
}


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are called, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="compress3g")
@click.option("-v", "--verbose", count=True, help="Say more; show tracebacks.")
@click.pass_context
def app(ctx: click.Context, verbose: int) -> None:
    """Makes 3D, retrieval and generative models small and fast."""
    from ..engine.log import configure

    configure(verbose)


_REMEDIES = {
    errno.ENOSPC: ": free some space or write to another folder",
    errno.EDQUOT: ": free some space or write to another folder",
    errno.EFBIG: ": raise the limit on the size of files (ulimit -f) or write less",
    errno.EROFS: ": write to another folder",
    errno.EACCES: ": mend its access or write to another folder",
}


def _out_of_memory(error: BaseException) -> bool:
    """Also torch's own way to say so, for which it has no class on a CPU."""
    told = ("DefaultCPUAllocator", "CUDA out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in told)
    )


def _complain(message: str) -> None:
    click.echo(f"error: {' '.join(message.split())}", err=True)


def _code_of(error: BaseException, verbose: bool) -> int:
    """Prints one line about the error; the exit code it stands for."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        click.echo("interrupted", err=True)
        return 130
    if isinstance(error, SystemExit):
        return 0  # click's answer to a pipe whose reader has gone, as in `| head -1`
    if verbose and not isinstance(error, click.ClickException):
        traceback.print_exception(error)
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "compress3g"
        message = error.format_message().rstrip()
        stop = "" if message.endswith((".", "?", "!")) else "."
        _complain(f"{message}{stop} See '{path} --help'.")
        return 2
    if isinstance(error, click.ClickException):
        _complain(error.format_message())
        return 2
    if isinstance(error, BrokenPipeError):
        # The reader has gone: nothing to say, and nothing left to flush to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        remedy = _REMEDIES.get(error.errno or 0, "")
        _complain(f"{where}{error.strerror or error}{remedy}")
        return 2
    if _out_of_memory(error):
        _complain(
            "out of memory: make the model, --batch, the images (--downscale) or --size smaller"
        )
        return 2
    if isinstance(error, Compress3GError):
        _complain(str(error))
        return 2
    _complain(f"{type(error).__name__}: {error} (run with -v for the traceback)")
    return 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code.

    0 done, 1 a bug, 2 bad input, 3 an index was filled but some files were skipped (`index build`,
    `index add`), 128 + N stopped by signal N: 130 interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # -v belongs to the whole command line, wherever it stands.
    verbose = any(w in ("-v", "-vv", "--verbose") for w in words)
    words = [w for w in words if w not in ("-v", "-vv", "--verbose")]
    try:
        code = app.main(["-v", *words] if verbose else words, "compress3g", standalone_mode=False)
    except BaseException as error:
        return _code_of(error, verbose)
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
