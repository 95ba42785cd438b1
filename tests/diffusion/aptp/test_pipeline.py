"""A mixed batch is its prompts one by one, each drawn by its own expert."""

from __future__ import annotations

import copy
import dataclasses
import os
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress3g.diffusion.aptp import AptpConfig, AptpPipeline, train_router
from compress3g.diffusion.aptp.corpus import Corpus
from compress3g.diffusion.aptp.experts import expert_of
from compress3g.diffusion.aptp.finetune import finetune_experts, its_part, learn_together
from compress3g.diffusion.finetune import FinetuneConfig, _Run, finetune
from compress3g.diffusion.pipelines import generate
from compress3g.errors import ConfigError

from ..pipelines import OPTIONS, pipeline
from .conftest import PROMPTS

SEVEN = PROMPTS[:7]


def latents(owner, prompts, seed=0, **options):
    many = 1 if isinstance(prompts, str) else len(prompts)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(many)]
    how = {"num_inference_steps": 3, "generator": generators, "output_type": "latent", **options}
    return owner(prompts, **how).images


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_batch_of_seven_is_seven_single_calls(routed, guidance):
    together = latents(routed, SEVEN, guidance_scale=guidance)
    assert len(routed.last.experts.unique()) > 1
    for i, prompt in enumerate(SEVEN):
        alone = latents(routed, prompt, seed=i, guidance_scale=guidance)
        assert torch.allclose(together[i], alone[0], atol=1e-5 * float(alone.abs().max()))


def test_each_prompt_is_drawn_by_the_expert_it_is_routed_to(routed, pipe):
    together, chosen = latents(routed, SEVEN), routed.last.experts.tolist()
    assert chosen == routed.route(SEVEN).experts.tolist()
    dense = pipe.unet
    for i, prompt in enumerate(SEVEN):
        pipe.register_modules(unet=routed.expert(chosen[i]))
        alone = latents(lambda p, **o: pipe(p, **o), prompt, seed=i)
        pipe.register_modules(unet=dense)
        assert torch.allclose(together[i], alone[0], atol=1e-5 * float(alone.abs().max()))


def test_the_pipeline_itself_is_as_before(routed, pipe):
    before = generate(pipe, SEVEN[:2], steps=2, output="latent")
    latents(routed, SEVEN)
    assert torch.equal(generate(pipe, SEVEN[:2], steps=2, output="latent"), before)
    assert "forward" not in vars(pipe.unet)


def test_a_forced_expert_draws_everything(routed):
    latents(routed, SEVEN, expert=1)
    assert routed.last.experts.tolist() == [1] * 7


def test_several_images_of_a_prompt_go_to_its_expert(routed):
    g = [torch.Generator().manual_seed(i) for i in range(4)]
    out = routed(
        SEVEN[:2], num_inference_steps=2, num_images_per_prompt=2, generator=g,
        output_type="latent",
    ).images  # fmt: skip
    a, b = routed.route(SEVEN[:2]).experts.tolist()
    assert routed.last.experts.tolist() == [a, a, b, b]
    assert len(out) == 4


def test_prompt_embeddings_alone_are_enough_for_the_pipelines_own_encoder(routed, pipe):
    whole = latents(routed, SEVEN[:3], guidance_scale=1.0)
    embeds, _ = pipe.encode_prompt(SEVEN[:3], "cpu", 1, False)
    again = latents(lambda p, **o: routed(prompt_embeds=embeds, **o), SEVEN[:3], guidance_scale=1.0)
    assert torch.allclose(whole, again, atol=1e-6)


def test_embeddings_without_text_are_refused_where_text_is_read(routed):
    routed._encoder = lambda prompts: torch.zeros(len(prompts), 4)
    with pytest.raises(ConfigError, match="give the prompt as text"):
        routed(prompt_embeds=torch.zeros(1, 12, 16))


@pytest.mark.parametrize("index", [-1, 3])
def test_an_expert_out_of_range_is_refused(routed, index):
    with pytest.raises(ConfigError, match="give 0 to 2"):
        routed("a red seven", expert=index)


def test_no_prompt_is_refused(routed):
    with pytest.raises(ConfigError, match="no prompt"):
        routed()
    with pytest.raises(ConfigError, match="no prompt"):
        routed.route([])


def test_an_empty_prompt_is_a_prompt(routed):
    assert len(routed.route("").experts) == 1
    assert latents(routed, "").isfinite().all()


def test_experts_that_do_not_fit_together_run_one_after_the_other(pipe, router, routed):
    largest = max(e.report().bytes for e in routed.experts)
    tight = AptpPipeline(pipe, router, limit=largest)
    assert torch.allclose(latents(tight, SEVEN), latents(routed, SEVEN), atol=1e-5)
    assert tight.held_bytes <= largest
    assert tight.last.experts.tolist() == routed.last.experts.tolist()


@pytest.mark.parametrize("mode", ["shared", "exported"])
def test_a_saved_pipeline_draws_the_same(routed, mode, tmp_path):
    routed.save(tmp_path / "routed", mode=mode)
    again = AptpPipeline.from_pretrained(tmp_path / "routed")
    assert again.mode == mode
    assert torch.equal(latents(again, SEVEN), latents(routed, SEVEN))
    assert [e.report().params for e in again.experts] == [e.report().params for e in routed.experts]
    if mode == "exported":
        with pytest.raises(ConfigError, match="no dense denoiser"):
            again.save(tmp_path / "twice", mode="shared")


def test_rebalancing_lowers_what_prompts_cost(routed):
    before = routed.route(PROMPTS).shares
    least = float(routed.router.shares.min())
    routed.rebalance(PROMPTS, (least + float(before.mean())) / 2)
    assert float(routed.route(PROMPTS).shares.mean()) <= float(before.mean())


def test_folders_that_are_no_routed_pipelines_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        AptpPipeline.from_pretrained(tmp_path / "none")
    with pytest.raises(ConfigError, match="no routed pipeline"):
        AptpPipeline.from_pretrained(tmp_path)


def test_experts_learn_from_their_prompts_and_the_dense_network_does_not(routed, pipe, tmp_path):
    before = {n: p.clone() for n, p in pipe.unet.named_parameters()}
    experts = [routed.expert(i) for i in range(3)]
    old = [{n: p.clone() for n, p in e.named_parameters()} for e in experts]
    config = FinetuneConfig(method="full", updates=6, batch=2, steps=3, learning_rate=1e-3)
    tuned = finetune_experts(routed, PROMPTS, config, cache=tmp_path / "dense")
    assert all(torch.equal(p, before[n]) for n, p in pipe.unet.named_parameters())
    used = set(routed.route(PROMPTS).experts.tolist())
    for i in range(3):
        assert all(torch.equal(p, old[i][n]) for n, p in experts[i].named_parameters())
        same = all(torch.equal(p, old[i][n]) for n, p in tuned.expert(i).named_parameters())
        assert same == (i not in used)
    tuned.save(tmp_path / "tuned")
    again = AptpPipeline.from_pretrained(tmp_path / "tuned")
    assert again.mode == "finetuned"
    assert torch.equal(latents(again, SEVEN), latents(tuned, SEVEN))
    with pytest.raises(ConfigError, match="no dense denoiser"):
        finetune_experts(again, PROMPTS, config)


def test_interrupted_finetuning_of_experts_trains_none_of_what_is_done_again(
    routed, monkeypatch, tmp_path
):
    counts = routed.route(PROMPTS).experts.bincount(minlength=3)
    assert int((counts > 0).sum()) > 1
    config = FinetuneConfig(method="full", updates=4, batch=2, steps=2, learning_rate=1e-3)
    update, done = _Run.update, []

    def tuned(stop=None, **places):
        def counted(run):
            update(run)
            done.append(1)
            if len(done) == stop:
                os.kill(os.getpid(), signal.SIGINT)

        done.clear()
        monkeypatch.setattr(_Run, "update", counted)
        return finetune_experts(routed, PROMPTS, config, common=0.5, whole_batches=True, **places)

    whole = tuned()
    updates = len(done)
    assert updates == 2 * (1 + int((counts > 0).sum()))
    folder = tmp_path / "checkpoints"
    with pytest.raises(KeyboardInterrupt):  # in the middle of the second expert
        tuned(stop=5, checkpoints=folder)
    again = tuned(checkpoints=folder)
    assert len(done) == updates - 5
    for i in range(3):
        wanted = whole.expert(i).state_dict()
        assert all(torch.equal(p, wanted[n]) for n, p in again.expert(i).state_dict().items())


@given(st.integers(1, 64), st.integers(1, 5000), st.lists(st.integers(1, 99), min_size=1))
def test_experts_together_see_as_many_prompts_as_one_network(batch, updates, counts):
    config = FinetuneConfig(batch=batch, updates=updates)
    parts = [its_part(config, n / sum(counts)) for n in counts]
    whole = batch * updates
    for n, part in zip(counts, parts, strict=True):
        seen, due = part.batch * part.updates, whole * n / sum(counts)
        # Half an update more or less, and never none.
        assert abs(seen - due) <= max(part.batch / 2, 1) + 1e-6
    assert its_part(config, 1.0) == config


@pytest.mark.parametrize("whole_batches", [True, False])
def test_an_expert_has_whole_batches_or_its_share_of_each(routed, monkeypatch, whole_batches):
    seen = []

    def told(student, teacher, prompts, config, **rest):
        seen.append((len(prompts), config.batch * config.updates))

    monkeypatch.setattr("compress3g.diffusion.aptp.finetune.finetune", told)
    config = FinetuneConfig(updates=6, batch=16)
    finetune_experts(routed, PROMPTS, config, whole_batches=whole_batches)
    assert sum(n for n, _ in seen) == len(PROMPTS)
    due = [6 * 16 * (1 if whole_batches else n / len(PROMPTS)) for n, _ in seen]
    assert [rows for _, rows in seen] == pytest.approx(due)


def test_an_expert_may_learn_from_the_prompts_of_larger_ones_too(routed, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "compress3g.diffusion.aptp.finetune.finetune",
        lambda student, teacher, prompts, config, **rest: seen.append(prompts),
    )
    finetune_experts(routed, PROMPTS, FinetuneConfig(updates=6), larger=True)
    chosen = routed.route(PROMPTS).experts.tolist()
    cost = routed.router.shares.tolist()
    assert len({cost[i] for i in chosen}) > 1
    due = [
        [p for p, j in zip(PROMPTS, chosen, strict=True) if j == i or cost[j] > cost[i]]
        for i in sorted(set(chosen))
    ]
    assert seen == due


def test_a_pipeline_with_two_text_encoders_is_routed_by_the_pooled_text_of_the_second():
    pipe = pipeline("SDXL")
    prompts = ["a red cat", "a blue dog", "three red cat", "a dog above a cat"]
    how = OPTIONS["SDXL"]
    corpus = Corpus.of(pipe, prompts, steps=3)
    router = train_router(
        corpus, AptpConfig(experts=2, target=0.8, steps=3, batch=4, learning_rate=0.3, bundle=4)
    )
    owner = AptpPipeline(pipe, router)
    pooled = pipe.encode_prompt(prompts, device="cpu", do_classifier_free_guidance=False)[2]
    # Rows of another batch: float32 sums in another order.
    assert torch.allclose(owner.embed(prompts), pooled, atol=1e-5)
    assert torch.allclose(corpus.embeddings, pooled, atol=1e-5)
    together = latents(owner, prompts, guidance_scale=4.0, **how)
    for i, prompt in enumerate(prompts):
        alone = latents(owner, prompt, seed=i, guidance_scale=4.0, **how)
        assert torch.allclose(together[i], alone[0], atol=1e-5 * float(alone.abs().max()))


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_experts_that_learn_together_learn_from_each_other_and_are_parts_of_one_network(
    routed, pipe, guidance, tmp_path
):
    before = {n: p.clone() for n, p in pipe.unet.named_parameters()}
    chosen = routed.route(PROMPTS).experts
    lone = int(chosen[0])
    mine = [p for p, i in zip(PROMPTS, chosen.tolist(), strict=True) if i == lone]
    config = FinetuneConfig(
        method="full", updates=3, batch=len(mine), steps=3, learning_rate=1e-3, guidance=guidance
    )
    whole = learn_together(routed, mine, config, teacher=pipe)
    assert all(torch.equal(p, before[n]) for n, p in pipe.unet.named_parameters())
    assert "forward" not in vars(whole)
    together = expert_of(whole, routed.router.space, routed.router.keep[lone], index=lone)
    # Prompts of one expert alone: masked learning is what the cut network learns by itself.
    student = copy.copy(pipe)
    student.register_modules(unet=copy.deepcopy(routed.expert(lone)))
    finetune(student, pipe, mine, config)
    before_cut = routed.expert(lone).state_dict()
    moved = 0.0
    for name, p in together.state_dict().items():
        # Adam's first steps are signs: where a gradient is rounding, one may go either way.
        assert float((p - student.unet.state_dict()[name]).abs().mean()) < 2e-4
        moved = max(moved, float((p - before_cut[name]).abs().max()))
    assert moved > 1e-3


def test_a_common_part_needs_the_pipelines_own_text(routed):
    routed.router = dataclasses.replace(routed.router, encoder="somewhere")
    with pytest.raises(ConfigError, match="pipeline's text"):
        finetune_experts(routed, PROMPTS, FinetuneConfig(updates=2), common=1.0)
