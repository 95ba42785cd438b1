"""What a finished run has to show, in numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ..kernels import registry
from .evaluation import evaluate
from .metrics import ViewScore, summary
from .trainer import Trainer

_LEVELS = (0.5, 0.1, 0.01)  # of p, in the histogram that shows whether pruning was real


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The figures of one trained model; `--json` prints them."""

    psnr: float  # dB, mean over test views
    ssim: float
    params: int  # F sum n_l + MLPs (+ R^3): nothing pruned is subtracted (HollowNeRF, table 1)
    bytes_fp32: int  # 4 params + the mask's bits, see HollowField.counted_bytes
    kept_cells: int
    kept_fraction: float
    steps: int
    seconds: float  # of training
    samples: int
    samples_per_second: float
    backend: str  # of the hash grid
    backends: dict[str, str]  # of every operation
    worst_view: str
    p_histogram: dict[str, float] | None  # share of G above each level of p

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


_Scored = tuple[ViewScore, Tensor, Tensor]


def result_of(
    trainer: Trainer,
    *,
    watch: Callable[[Iterable[_Scored], int], Iterable[_Scored]] = lambda views, count: views,
) -> Result:
    """Evaluate a trained run on its test views; watch: may count them as they pass."""
    test = trainer.scene.test
    scored = watch(evaluate(trainer.model(), test), len(test))
    scores = summary([score for score, _, _ in scored])
    kept = trainer.pruner.kept(trainer)
    kind = trainer.device.type
    backends = {op: registry.active(op, kind) for op in registry.operations()}
    saliency = trainer.field.saliency
    return Result(
        psnr=float(scores["psnr"]),
        ssim=float(scores["ssim"]),
        params=trainer.field.parameter_count(),
        bytes_fp32=sum(trainer.field.counted_bytes(trainer.pruner.mask_bits(trainer)).values()),
        kept_cells=int(kept.sum()),
        kept_fraction=float(kept.float().mean()),
        steps=trainer.step,
        seconds=trainer.seconds,
        samples=trainer.samples,
        samples_per_second=trainer.samples / max(trainer.seconds, 1e-9),
        backend=backends["hash_grid"],
        backends=backends,
        worst_view=str(scores["worst"]),
        p_histogram=None if saliency is None else _histogram(saliency.volume()),
    )


def _histogram(p: Tensor) -> dict[str, float]:
    return {f"p > {level:g}": float((p > level).float().mean()) for level in _LEVELS}
