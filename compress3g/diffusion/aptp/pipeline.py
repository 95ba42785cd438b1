"""Any diffusers pipeline, with each prompt drawn by the expert that its router says."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ...errors import ConfigError
from ..pipelines import call_options, denoiser_of, generate
from .corpus import has_rows
from .encoder import PIPELINE, TextEncoder, embedding_in
from .experts import Expert, ExpertCache, check_index, describe_expert, expert_of, move
from .router import Router

Mode = Literal["shared", "exported", "finetuned"]
Answer = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Routed:
    """Where prompts went.

    experts: of each prompt; similarities: to every code; shares: of the dense denoiser's
    multiply-adds; seconds: that routing took, embedding the prompts not counted.
    """

    experts: Int[Tensor, "b"]
    similarities: Float[Tensor, "b N"]
    shares: Float[Tensor, "b"]
    seconds: float


class _Seen(Exception):
    """No error: ends the pipeline's call when the denoiser has been told about the prompts."""


class AptpPipeline:
    """A pipeline whose denoiser is many: one call routes a mixed batch.

    The wrapped pipeline runs as it always does, on the whole batch; where it calls its denoiser,
    rows are handed to their experts and what these answer is put back in order. So guidance,
    callbacks, several images per prompt and prompt embeddings work as in the pipeline itself.
    """

    def __init__(
        self,
        pipe: Any,
        router: Router,
        *,
        mode: Mode = "shared",
        build: Callable[[int], nn.Module] | None = None,
        limit: int | None = None,
    ) -> None:
        """Build: makes expert i; by default it is cut from the pipeline's dense denoiser.

        limit: bytes that experts may take together; the least recently used ones make room.
        """
        self.pipe, self.router, self.mode = pipe, router, mode
        dense = denoiser_of(pipe)[1]

        def cut(i: int) -> nn.Module:
            made: nn.Module = expert_of(dense, self.router.space, self.router.keep[i], index=i)
            return made

        self._experts = ExpertCache(build or cut, limit)
        self._encoder = None if router.encoder == PIPELINE else TextEncoder(router.encoder)
        self.last: Routed | None = None
        self.seconds: dict[int, float] = {}  # that each expert took in the last call, on a CPU

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, *, dtype: str = "float32", device: Any = "cpu",
        limit: int | None = None,
    ) -> AptpPipeline:  # fmt: skip
        """What `save` wrote. Raises ConfigError or FormatError for another folder."""
        from .folder import load

        return load(Path(folder), dtype=dtype, device=device, limit=limit)

    def save(self, folder: Path | str, *, mode: Mode | None = None) -> None:
        """A folder that `from_pretrained` opens, whole or not at all.

        mode: "shared" stores the dense denoiser once and lists; "exported" and "finetuned" store
        every expert as a pruned model of its own, and no dense one.
        """
        from .folder import save

        save(self, Path(folder), mode or self.mode)

    @property
    def experts(self) -> list[_Handle]:
        """One per code: `experts[i].report()`, `experts[i].module`."""
        return [_Handle(self, i) for i in range(len(self.router.keep))]

    def expert(self, index: int) -> nn.Module:
        """The denoiser of an expert. Raises ConfigError when there is none."""
        check_index(index, len(self.router.keep))
        like = next(denoiser_of(self.pipe)[1].parameters())
        return move(self._experts.get(index), like)

    @property
    def held_bytes(self) -> int:
        """Of the experts that are in memory."""
        return self._experts.bytes

    def embed(self, prompts: Sequence[str]) -> Float[Tensor, "b d"]:
        """What the router sees of prompts."""
        if not prompts:
            raise ConfigError("there is no prompt: give at least one")
        if self._encoder is not None:
            return self._encoder(prompts)
        denoiser, found = denoiser_of(self.pipe)[1], []

        def look(own: Answer, arguments: dict[str, Any]) -> Any:
            found.append(embedding_in(arguments)[-len(prompts) :])
            raise _Seen

        with instead(denoiser, look), self._until_seen():
            generate(self.pipe, prompts, steps=2, guidance=1.0, output="latent")
        return found[0]

    @contextmanager
    def _until_seen(self) -> Iterator[None]:
        try:
            yield
        except _Seen:
            self.pipe.maybe_free_model_hooks()

    def route(self, prompts: str | Sequence[str]) -> Routed:
        """Where prompts go. Runs the text encoder, and no denoiser."""
        listed = [prompts] if isinstance(prompts, str) else list(prompts)
        return self._routed(self.embed(listed))

    def _routed(self, embeddings: Tensor) -> Routed:
        start = time.perf_counter()
        similarities = self.router.similarities(embeddings)
        experts = self.router.choice(similarities)
        spent = time.perf_counter() - start
        return Routed(experts, similarities, self.router.shares[experts], spent)

    def rebalance(self, prompts: Sequence[str], target: float | None = None) -> None:
        """Routes such prompts within the budget from now on. See `Router.rebalance`."""
        self.router = self.router.rebalance(self.embed(prompts), target)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        expert: int | None = None,
        **options: Any,
    ) -> Any:
        """What the wrapped pipeline returns. expert: of all prompts; by default the router says.

        `last` says where the prompts went. Raises ConfigError for an expert that does not exist and
        for prompt embeddings where the router's encoder needs text.
        """
        if expert is not None:
            check_index(expert, len(self.router.keep))
        known = None
        if self._encoder is not None and expert is None:
            if prompt is None:
                raise ConfigError(
                    f"the router reads prompts with {self.router.encoder}: give the prompt as text "
                    "beside prompt_embeds, or say which expert="
                )
            listed = [prompt] if isinstance(prompt, str) else list(prompt)
            many = int(options.get("num_images_per_prompt") or 1)
            known = self._encoder(listed).repeat_interleave(many, 0)
            if options.get("prompt_embeds") is not None:
                prompt = None
        if prompt is not None:
            options["prompt"] = prompt
        rows = _rows_asked(prompt, options)
        self.last, self.seconds = None, {}
        generators = options.get("generator") or ()
        generators = [generators] if isinstance(generators, torch.Generator) else list(generators)
        states = [g.get_state() for g in generators]

        def routed(own: Answer, arguments: dict[str, Any]) -> Any:
            if self.last is None:
                told = known if known is not None else embedding_in(arguments)[-rows:]
                if expert is None:
                    self.last = self._routed(told)
                else:
                    self.last = self._forced(expert, rows)
                if not self._experts.fits(set(self.last.experts.tolist())):
                    raise _Seen
            return self._answer(own, arguments, self.last.experts)

        with instead(denoiser_of(self.pipe)[1], routed), self._until_seen():
            return self.pipe(**options)
        for g, state in zip(generators, states, strict=True):
            g.set_state(state)
        return self._one_expert_at_a_time(prompt, options)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        expert: int | None = None,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> Float[Tensor, "n c h w"]:
        """Images in [0, 1], as `pipelines.generate` makes them: each has a generator of its own."""
        if expert is not None:
            check_index(expert, len(self.router.keep))
        options = call_options(self.pipe, prompts, seed=seed, steps=steps, guidance=guidance)
        with torch.no_grad():
            made = self(options.pop("prompt"), expert=expert, **options).images
        return made if isinstance(made, Tensor) else torch.from_numpy(made).permute(0, 3, 1, 2)

    def _forced(self, expert: int, rows: int) -> Routed:
        count = len(self.router.keep)
        index = torch.full((rows,), expert)
        return Routed(index, torch.zeros(rows, count), self.router.shares[index], 0.0)

    def _answer(self, own: Answer, arguments: dict[str, Any], chosen: Tensor) -> Any:
        """The experts' answers to their rows, in the order of the batch. own: of the denoiser."""
        sample = arguments["sample"] if "sample" in arguments else arguments["hidden_states"]
        rows = len(sample)
        # With guidance the batch comes twice; both halves of a prompt go to the same expert.
        each = chosen.repeat(rows // len(chosen))
        parts, places = [], []
        for index in each.unique().tolist():
            place = (each == index).nonzero()[:, 0].to(sample.device)
            part = arguments if len(place) == rows else _rows_of(arguments, place, rows)
            expert = self.expert(index)
            # Saved experts: the pipeline's denoiser is one of them, and this answers in its place.
            answer: Answer = own if expert is denoiser_of(self.pipe)[1] else expert
            start = time.perf_counter()
            parts.append(answer(**part))
            self.seconds[index] = self.seconds.get(index, 0.0) + time.perf_counter() - start
            places.append(place)
        if len(parts) == 1:
            return parts[0]
        back = torch.cat(places).argsort()
        if isinstance(parts[0], tuple):
            return tuple(torch.cat(column)[back] for column in zip(*parts, strict=True))
        whole = {k: torch.cat([p[k] for p in parts])[back] for k in parts[0]}
        return type(parts[0])(**whole)

    def _one_expert_at_a_time(self, prompt: Any, options: dict[str, Any]) -> Any:
        """Where experts do not fit in memory together: a call for each, results put in order."""
        routed = self.last
        assert routed is not None
        if not isinstance(prompt, (list, tuple)) or options.get("num_images_per_prompt", 1) != 1:
            raise ConfigError(
                "the experts of this batch exceed the limit together: raise it, or give a list of "
                "prompts with one image each"
            )
        images: list[Any] = [None] * len(prompt)
        for index in routed.experts.unique().tolist():
            place = (routed.experts == index).nonzero()[:, 0].tolist()
            part = {k: _picked(v, place, len(prompt)) for k, v in options.items()}
            out = self(expert=index, **part)
            for i, image in zip(place, out.images, strict=True):
                images[i] = image
        self.last = routed
        out.images = torch.stack(images) if isinstance(images[0], Tensor) else images
        return out


@dataclass(frozen=True, slots=True)
class _Handle:
    """An expert of a pipeline."""

    _owner: AptpPipeline
    index: int

    @property
    def module(self) -> nn.Module:
        """Its denoiser."""
        return self._owner.expert(self.index)

    def report(self) -> Expert:
        """Its size, and its share of multiply-adds and prompts."""
        router = self._owner.router
        return describe_expert(
            self.index, self.module, float(router.shares[self.index]),
            float(router.usage[self.index]),
        )  # fmt: skip


@contextmanager
def instead(denoiser: Any, answer: Callable[[Answer, dict[str, Any]], Any]) -> Iterator[None]:
    """Calls of a denoiser go to `answer`, with the function that would have run."""
    original, own = denoiser.forward, vars(denoiser).get("forward")
    signature = inspect.signature(original)

    def forward(*args: Any, **kwargs: Any) -> Any:
        return answer(original, dict(signature.bind(*args, **kwargs).arguments))

    denoiser.forward = forward
    try:
        yield
    finally:
        del denoiser.forward
        if own is not None:
            denoiser.forward = own


def _rows_asked(prompt: Any, options: dict[str, Any]) -> int:
    """Images that a call makes."""
    if prompt is not None:
        count = 1 if isinstance(prompt, str) else len(prompt)
    elif isinstance(options.get("prompt_embeds"), Tensor):
        count = len(options["prompt_embeds"])
    else:
        raise ConfigError("there is no prompt: give prompt or prompt_embeds")
    return count * int(options.get("num_images_per_prompt") or 1)


def _rows_of(arguments: dict[str, Any], place: Tensor, rows: int) -> dict[str, Any]:
    def picked(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: picked(k, v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return tree_map(lambda v: picked(name, v), value)
        return value[place] if has_rows(name, value, rows) else value

    return {name: picked(name, value) for name, value in arguments.items()}


def _picked(value: Any, place: Sequence[int], count: int) -> Any:
    if isinstance(value, Tensor) and value.dim() and len(value) == count:
        return value[list(place)]
    if isinstance(value, (list, tuple)) and len(value) == count:
        return [value[i] for i in place]
    return value
