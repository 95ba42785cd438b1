"""The whole of a run in the library's own Trainer: gates, cut, resume, and what is refused."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace

import pytest
import torch

from compress3g.errors import BudgetError, ConfigError, CutError, ScoreError
from compress3g.peft import (
    Estimator,
    LightPeftConfig,
    Plan,
    apply_plan,
    candidates,
    get_light_peft_model,
    make_plan,
)
from compress3g.peft.config import COMPARABLE
from compress3g.peft.estimate import Scores
from compress3g.peft.light import Light, cost_of
from compress3g.peft.units import base_of, lora_layers

STEPS, LOOK = 12, 4


def classifier(config=None, *, seed=0, **lora):
    import peft
    import transformers

    torch.manual_seed(seed)
    made = transformers.BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=3,
    )
    model = transformers.BertForSequenceClassification(made)
    options = {"task_type": "SEQ_CLS", "r": 4, "lora_alpha": 8, "lora_dropout": 0.05, **lora}
    chosen = config or LightPeftConfig(estimation_steps=LOOK)
    return get_light_peft_model(model, peft.LoraConfig(**options), chosen)


def samples(count=32):
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 60, (count, 7), generator=g)
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": int(row[0]) % 3}
        for row in ids
    ]


def batch():
    rows = samples(6)
    made = {k: torch.stack([r[k] for r in rows]) for k in ("input_ids", "attention_mask")}
    return {**made, "labels": torch.tensor([r["labels"] for r in rows])}


def trainer(model, folder, *, steps=STEPS, config=None, **options):
    import transformers

    from compress3g.peft import LightPeftTrainer

    arguments = transformers.TrainingArguments(
        folder,
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        save_steps=options.pop("save_steps", 100),
        logging_steps=1,
        seed=3,
        **options,
    )
    return LightPeftTrainer(model=model, args=arguments, train_dataset=samples(), light=config)


def looked(model, steps=LOOK, rate=1e-2):
    """Scores, plan and optimiser after some steps of estimation."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate)
    config = LightPeftConfig(estimation_steps=steps)
    units, _ = candidates(model, config)
    model.train()
    with Estimator(model, units, config, steps=steps) as estimator:
        for _ in range(steps):
            model(**batch()).loss.backward()
            assert estimator(rate)
            optimizer.step()
            optimizer.zero_grad()
        scores = estimator.scores()
    return scores, make_plan(scores, units, config), optimizer


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 1},
        {"gradient_accumulation_steps": 2, "activation_checkpointing": True},
        {"gradient_accumulation_steps": 4},
        {"bf16": True},
    ],
    ids=["1", "2-checkpointing", "4", "bf16"],
)
def test_the_cut_happens_inside_a_trainer_and_training_goes_on(options, tmp_path):
    model = classifier()
    run = trainer(model, tmp_path, **options)
    run.train()
    report, light = run.light.report, run.light
    assert light.stage == "cut"
    assert report.params[1] < report.params[0]
    assert report.trained[1] < 0.5 * report.trained[0]
    assert report.step_ms is not None
    assert all(torch.isfinite(p).all() for p in model.parameters())
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in linear)
    assert not any("gate" in name or "mask" in name for name in model.state_dict())


def test_three_stages_make_the_plan_of_one_run(tmp_path):
    from compress3g.peft import LightPeftCallback

    whole = trainer(classifier(), tmp_path / "whole")
    whole.train()
    first = trainer(classifier(), tmp_path / "first")
    first.remove_callback(first.callback)
    first.add_callback(looking := LightPeftCallback(cut=False))
    first.callback = looking
    first.train()
    assert first.state.global_step == LOOK
    assert first.light.stage == "estimation"
    model = classifier()
    folder = tmp_path / "first" / f"checkpoint-{LOOK}"
    model.load_adapter(folder, "default")
    model.light.restore(folder)
    model.light.cut()
    assert model.light.plan.digest == whole.light.plan.digest


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_rates_after_the_cut_are_the_schedules_times_the_factor(factor, tmp_path):
    config = LightPeftConfig(estimation_steps=LOOK, rate_after_cut=factor)
    run = trainer(classifier(config), tmp_path, config=config)
    run.train()
    rates = [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]
    plain = [1e-2 * (1 - step / STEPS) for step in range(STEPS)]
    assert rates == pytest.approx([r * (factor if i >= LOOK else 1) for i, r in enumerate(plain)])


def test_accumulated_micro_batches_make_one_step_of_the_gates(tmp_path):
    model = classifier()
    run = trainer(model, tmp_path, gradient_accumulation_steps=4)
    run.train()
    assert run.light.report.steps == LOOK


@pytest.mark.parametrize("at", [2, 4, 8], ids=["before the cut", "at the cut", "after the cut"])
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(at, tmp_path):
    config = LightPeftConfig(estimation_steps=LOOK, shrink_steps=2)
    whole = classifier(config)
    trainer(whole, tmp_path, save_steps=2).train()
    again = classifier(config)
    trainer(again, tmp_path / "again").train(resume_from_checkpoint=tmp_path / f"checkpoint-{at}")
    expected = dict(whole.named_parameters())
    found = dict(again.named_parameters())
    assert found.keys() == expected.keys()
    for name, p in expected.items():
        assert torch.equal(found[name], p), name


def test_one_step_after_the_cut_is_that_of_a_fresh_small_model_with_the_sliced_state():
    model = classifier(lora_dropout=0.0).eval()
    _, plan, optimizer = looked(model)
    model.eval()
    apply_plan(model, plan, optimizer)
    fresh = copy.deepcopy(model)
    pairs = [
        (p, q)
        for p, q in zip(model.parameters(), fresh.parameters(), strict=True)
        if p.requires_grad
    ]
    other = torch.optim.AdamW([q for _, q in pairs], lr=1e-2)
    for p, q in pairs:
        if p in optimizer.state:
            other.state[q] = {k: v.clone() for k, v in optimizer.state[p].items()}
            assert optimizer.state[p]["exp_avg"].shape == p.shape
    for each, optim in ((model, optimizer), (fresh, other)):
        each(**batch()).loss.backward()
        optim.step()
    for p, q in pairs:
        assert torch.allclose(p, q, atol=1e-7)


def test_optimiser_state_follows_its_rows_and_columns():
    model = classifier()
    _, plan, optimizer = looked(model)
    name, kept = next((n, k) for n, k in plan.ranks.items() if ".self." in n)
    layer = base_of(model).get_submodule(name)
    site = next(n for n in plan.keep if name.startswith(n.removesuffix("heads")))
    up = layer.lora_B["default"].weight
    before = optimizer.state[up]["exp_avg"].clone()
    apply_plan(model, plan, optimizer)
    rows = torch.cat([torch.arange(8) + 8 * i for i in plan.keep[site]])
    assert torch.equal(optimizer.state[up]["exp_avg"], before[rows][:, kept])


@pytest.mark.parametrize("library", ["torch", "transformers"])
def test_factored_optimisers_go_on_after_the_cut(library):
    import transformers

    model = classifier(lora_dropout=0.0)
    _, plan, _ = looked(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    if library == "torch":
        optimizer = torch.optim.Adafactor(trained)
    else:
        optimizer = transformers.Adafactor(trained, lr=1e-3, relative_step=False)
    model(**batch()).loss.backward()
    optimizer.step()
    apply_plan(model, plan, optimizer)
    fresh = copy.deepcopy(model)
    if library == "torch":
        other = torch.optim.Adafactor([p for p in fresh.parameters() if p.requires_grad])
    else:
        left = [p for p in fresh.parameters() if p.requires_grad]
        other = transformers.Adafactor(left, lr=1e-3, relative_step=False)
    for each, optim in ((model, optimizer), (fresh, other)):
        each.zero_grad()
        each(**batch()).loss.backward()
        optim.step()
    for p, q in zip(model.parameters(), fresh.parameters(), strict=True):
        if q in other.state:
            shapes = {k: v.shape for k, v in other.state[q].items() if torch.is_tensor(v)}
            for key, shape in shapes.items():
                assert optimizer.state[p][key].shape == shape, key


def test_gradients_after_the_cut_are_those_of_a_freshly_built_small_model(tmp_path):
    import peft

    from compress3g.peft import save
    from compress3g.transformer.pretrained import from_pretrained

    model = classifier(lora_dropout=0.0)
    model.light.begin(STEPS)
    for _ in range(LOOK):
        model.train()(**batch()).loss.backward()
        model.light.observe(1e-2, batches=list)
    model.light.cut()
    save(tmp_path / "small", model, form="adapter")
    base = from_pretrained(tmp_path / "small")
    fresh = peft.PeftModel.from_pretrained(base, tmp_path / "small" / "adapter", is_trainable=True)
    for each in (model, fresh):
        each.zero_grad()
        each.eval()(**batch()).loss.backward()
    ours = {n: p.grad for n, p in model.named_parameters() if "lora_" in n}
    theirs = {n: p.grad for n, p in fresh.named_parameters() if "lora_" in n}
    assert ours.keys() == theirs.keys()
    for name, g in ours.items():
        assert torch.allclose(g, theirs[name], atol=1e-6), name


def test_a_rank_scores_the_same_by_its_row_and_by_its_column():
    model = classifier(lora_dropout=0.0)
    looked(model)
    model.zero_grad()
    model(**batch()).loss.backward()
    for layer in lora_layers(base_of(model)).values():
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        a, b = (down * down.grad).sum(1), (up * up.grad).sum(0)
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5 * float(b.detach().abs().max()))


def test_taylor_of_gates_is_that_of_the_weights_they_scale():
    model = classifier(lora_dropout=0.0).eval()
    config = LightPeftConfig(mask_lr_mult=0.0)
    units, _ = candidates(model, config)
    with Estimator(model, units, config, steps=4) as estimator:
        model(**batch()).loss.backward()
        estimator(0.0)
        scores = estimator.scores()
    u = next(u for u in units if u.name.endswith("neurons"))
    reader = base_of(model).get_submodule(u.reads[0].module).base_layer.weight
    reader.requires_grad_(True)
    model(**batch()).loss.backward()
    want = (reader * reader.grad).sum(0).abs()  # B is zero: the adapter adds nothing
    assert torch.allclose(scores.units["taylor"][u.name], want, rtol=1e-3, atol=1e-7)
    assert torch.allclose(scores.units["fisher"][u.name], want.square(), rtol=1e-3, atol=1e-9)


def test_steps_that_are_not_finite_count_nowhere():
    model = classifier()
    units, _ = candidates(model, model.light.config)
    with Estimator(model, units, model.light.config, steps=4) as estimator:
        model(**batch()).loss.backward()
        estimator(1e-2)
        before = estimator.scores()
        estimator.masks.zero_grad()
        (model(**batch()).loss * float("nan")).backward()
        assert not estimator(1e-2)
        after = estimator.scores()
    assert after.skipped == 1
    for name, score in before.units["taylor"].items():
        assert torch.equal(score, after.units["taylor"][name])
        assert torch.equal(before.gates[name], after.gates[name])


@pytest.mark.parametrize("where", ["forward pass", "gradient of an adapter"])
def test_a_step_that_overflows_leaves_adapters_scores_as_they_were(where):
    model = classifier(lora_dropout=0.0).train()
    units, _ = candidates(model, model.light.config)
    layer = next(iter(lora_layers(base_of(model)).values()))
    with Estimator(model, units, model.light.config, steps=2) as estimator:
        for part in (batch(), batch()):  # the second is looked at
            model(**part).loss.backward()
            assert estimator(1e-2)
        before = estimator.scores()
        model.zero_grad()
        if where == "forward pass":
            handle = layer.base_layer.register_forward_hook(lambda m, args, out: out * 1e38 * 1e38)
            model(**batch()).loss.backward()
            handle.remove()
        else:
            model(**batch()).loss.backward()
            layer.lora_B["default"].weight.grad[0, 0] = torch.inf
        assert not estimator(1e-2)
        after = estimator.scores()
    for name, score in before.modules.items():
        assert torch.equal(score, after.modules[name])
        assert torch.equal(before.ranks[name], after.ranks[name])


@pytest.mark.parametrize("part", ["units", "modules", "ranks"])
def test_scores_that_are_not_finite_make_no_plan(part):
    model = classifier()
    scores, _, _ = looked(model)
    found = scores.units["fisher"] if part == "units" else getattr(scores, part)
    name = list(found)[1]
    found[name] = found[name] * torch.nan
    with pytest.raises(ScoreError, match=f"a score of {name} is not finite"):
        make_plan(scores, model.light.units, LightPeftConfig())


def test_a_nan_loss_in_a_trainer_leaves_the_adapter_alone(tmp_path):
    model = classifier()
    run = trainer(model, tmp_path)
    plain, count = run.compute_loss, [0]

    def loss(*args, **kwargs):
        count[0] += 1
        return plain(*args, **kwargs) * (float("nan") if count[0] == 2 else 1.0)

    run.compute_loss = loss
    run.train()
    assert run.light.report.skipped == 1
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("clipped", [False, True])
def test_scaled_losses_skip_and_score_as_plain_ones(clipped):
    from compress3g.peft import LightPeftCallback

    means = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        model = classifier(lora_dropout=0.0)
        model.light.begin(STEPS)
        for m in model.modules():
            if isinstance(m, torch.nn.Dropout):
                m.p = 0.0
        inner = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        optimizer = SimpleNamespace(
            optimizer=inner, scaler=scaler, param_groups=inner.param_groups
        )  # as accelerate wraps it
        callback = LightPeftCallback()
        callback.light = model.light
        model.train()
        for step in range(LOOK):
            loss = model(**batch()).loss * (torch.nan if step == 2 else 1.0)
            (loss if scaler is None else scaler.scale(loss)).backward()
            if scaler is not None and clipped:
                scaler.unscale_(inner)
            callback.on_pre_optimizer_step(None, None, None, model=model, optimizer=optimizer)
            if scaler is None:
                inner.step()
            else:
                scaler.step(inner)
                scaler.update()
            inner.zero_grad()
        assert model.light.estimator.skipped == 1
        means.append(model.light.estimator.adapters.means())
    assert scaler.get_scale() == 512.0
    for plain, scaled in zip(*means, strict=True):
        for name, want in plain.items():  # a power of two scales without rounding
            assert torch.equal(scaled[name], want), name


def test_equal_seeds_make_equal_plans(tmp_path):
    digests = []
    for i in range(2):
        run = trainer(classifier(), tmp_path / str(i), steps=LOOK + 2)
        run.train()
        digests.append(run.light.plan.digest)
    assert digests[0] == digests[1]


def hooks(model):
    return {n: (len(m._forward_pre_hooks), len(m._forward_hooks)) for n, m in model.named_modules()}


@pytest.mark.parametrize("shrink_steps", [0, 2])
def test_a_cut_that_is_refused_leaves_no_hooks(shrink_steps):
    config = LightPeftConfig(estimation_steps=LOOK, shrink_steps=shrink_steps, budget="params=1e-4")
    model = classifier(config)
    before = hooks(model)

    def run():
        model.light.begin(STEPS)
        for _ in range(LOOK):
            model(**batch()).loss.backward()
            model.light.observe(1e-2, batches=list)
        model.light.cut()

    with pytest.raises(BudgetError, match="smallest that is feasible"):
        run()
    assert hooks(model) == before


def test_a_run_that_stops_early_leaves_no_hooks(tmp_path):
    import transformers

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == LOOK - 1

    model = classifier()
    before = hooks(model)
    run = trainer(model, tmp_path)
    run.add_callback(Stop)
    run.train()
    assert run.light.stage == "estimation"
    assert hooks(model) == before


def test_gates_that_were_closed_go_on_where_they_were():
    found = []
    for at in (None, LOOK - 1):
        model = classifier().train()
        model.light.begin(STEPS)
        for step in range(LOOK):
            if step == at:
                model.light.close()
                model.light.begin(STEPS)
            model(**batch()).loss.backward()
            model.light.observe(1e-2, batches=list)
        _, about = model.light.estimator.adapters.state()
        found.append(about["forwards"])
    assert set(found[0].values()) == {LOOK // 2}
    assert found[1] == found[0]


def test_evaluation_before_the_cut_sees_the_gates():
    model = classifier().eval()
    model.light.begin(STEPS)
    with torch.no_grad():
        before = model(**batch()).logits
        for z in model.light.estimator.masks.parameters():
            z.fill_(0.5)
        after = model(**batch()).logits
    assert not torch.equal(before, after)


def test_shrunk_units_are_exactly_nothing_when_they_go():
    config = LightPeftConfig(estimation_steps=6, shrink_steps=3)
    model = classifier(config, lora_dropout=0.0)
    model.light.begin(STEPS)
    for _ in range(6):
        model.train()(**batch()).loss.backward()
        model.light.observe(1e-2, batches=list)
    model.eval()
    with torch.no_grad():
        before = model(**batch()).logits
        model.light.cut()
        after = model(**batch()).logits
    assert torch.allclose(before, after, atol=1e-6)


def test_a_run_no_longer_than_its_estimation_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not more than the 4 of the estimation"):
        trainer(classifier(), tmp_path, steps=LOOK).train()


def test_a_short_estimation_is_warned_of(tmp_path, caplog):
    logger = logging.getLogger("compress3g")
    logger.propagate = True
    config = LightPeftConfig(estimation_steps=1, criterion="l1_mask")
    with caplog.at_level(logging.WARNING, "compress3g"):
        trainer(classifier(config), tmp_path, steps=2).train()
    assert any("hardly move the gates" in r.message for r in caplog.records)


def test_reentrant_checkpointing_is_refused(tmp_path):
    run = trainer(
        classifier(),
        tmp_path,
        activation_checkpointing=True,
        activation_checkpointing_kwargs={"use_reentrant": True},
    )
    with pytest.raises(ConfigError, match="use_reentrant"):
        run.train()


def test_models_that_cannot_be_cut_in_place_are_refused():
    import peft
    import transformers

    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32
    )
    with torch.device("meta"):
        model = transformers.BertModel(config)
    with pytest.raises(ConfigError, match="meta device"):
        get_light_peft_model(model, peft.LoraConfig())
    model = transformers.BertModel(config)
    weight = model.encoder.layer[0].intermediate.dense
    weight.weight = torch.nn.Parameter(weight.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ConfigError, match="quantised"):
        get_light_peft_model(model, peft.LoraConfig())
    model = transformers.BertModel(config)
    model.encoder.layer[0].intermediate.dense.weight.ds_id = 1
    with pytest.raises(ConfigError, match="sharded"):
        get_light_peft_model(model, peft.LoraConfig())


def test_several_adapters_are_refused():
    import peft

    model = classifier()
    model.add_adapter("second", peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    with pytest.raises(ConfigError, match="exactly one"):
        Light(model, LightPeftConfig())


def test_a_site_without_gradient_is_named():
    model = classifier()
    units, _ = candidates(model, LightPeftConfig())
    estimator = Estimator(model, units, LightPeftConfig(), steps=4)
    with estimator:
        model(**batch()).loss.backward()
        name = units[0].name
        estimator._leaves[name].grad = None
        estimator(1e-2)
        with pytest.raises(ScoreError, match=f"{name} never got a gradient"):
            estimator.scores()


def test_a_plan_fits_its_dense_model_only():
    model = classifier()
    _, plan, _ = looked(model)
    apply_plan(model, plan)
    with pytest.raises(CutError, match="the plan was made for"):
        apply_plan(model, plan)


def made_up(sizes, seed=0):
    g = torch.Generator().manual_seed(seed)
    units = {n: torch.rand(size, generator=g) for n, size in sizes.items()}
    return Scores({"fisher": units}, units, {}, {}, 1)


def neurons(sizes):
    from compress3g.core import Cut, Units

    return [Units(n, s, (Cut(n, "out"),), (Cut(n, "in"),), cost={"units": 1.0}) for n, s in sizes]


def test_widths_are_multiples_and_the_total_is_met():
    sizes = {"a": 256, "b": 128, "c": 192}
    config = LightPeftConfig(ffn_ratio=0.4, module_ratio=0, rank_ratio=0)
    plan = make_plan(made_up(sizes), neurons(sizes.items()), config, multiple=16)
    counts = [len(k) for k in plan.keep.values()]
    assert all(c % 16 == 0 for c in counts)
    assert sum(counts) == -(-(576 - 230) // 16) * 16


def test_ties_remove_no_more_than_was_asked():
    sizes = {"a": 40, "b": 40}
    flat = {n: torch.ones(s) for n, s in sizes.items()}
    scores = Scores({"fisher": flat}, flat, {}, {}, 1)
    plan = make_plan(scores, neurons(sizes.items()), LightPeftConfig(ffn_ratio=0.5))
    assert sum(len(k) for k in plan.keep.values()) == 40
    assert all(len(k) >= 1 for k in plan.keep.values())


def test_a_ratio_too_small_for_one_unit_removes_none():
    sizes = {"a": 8}
    plan = make_plan(made_up(sizes), neurons(sizes.items()), LightPeftConfig(ffn_ratio=0.1))
    assert plan.keep["a"] == list(range(8))


def test_a_plan_is_the_same_after_a_file(tmp_path):
    model = classifier()
    _, plan, _ = looked(model)
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert again.digest == plan.digest


@pytest.mark.parametrize("kind", ["params", "flops"])
def test_a_budget_is_met_from_below(kind):
    model = classifier()
    scores, _, _ = looked(model)
    units, _ = candidates(model, LightPeftConfig())
    cost = cost_of(model, units, kind, lambda: [batch()])
    config = LightPeftConfig(budget=f"{kind}=0.6")
    plan = make_plan(scores, units, config, cost=cost, limit=0.6)
    assert 0.45 < cost(plan.indices()) <= 0.6
    with pytest.raises(BudgetError, match="smallest that is feasible"):
        make_plan(scores, units, config, cost=cost, limit=0.01)


@pytest.mark.parametrize("criterion", ["magnitude", "flap", "amp", "random", "taylor", "fisher"])
def test_other_criteria_cut_as_many(criterion, tmp_path):
    config = LightPeftConfig(estimation_steps=LOOK, criterion=criterion)
    run = trainer(classifier(config), tmp_path, steps=LOOK + 1)
    run.train()
    heads = [kept for n, (kept, _) in run.light.report.kept.items() if n.endswith("heads")]
    assert sum(heads) == 6
    assert criterion in COMPARABLE or heads == [3, 3]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attn_ratio": 1.0}, "--attn-ratio"),
        ({"criterion": "best"}, "--criterion"),
        ({"budget": "watts=3"}, "--budget"),
        ({"budget": "params=1.5"}, "--budget"),
        ({"estimation_steps": 0}, "--estimation-steps"),
        ({"rate_after_cut": 0.0}, "--rate-after-cut"),
        ({"estimation_steps": 3, "shrink_steps": 3}, "--shrink-steps"),
    ],
)
def test_bad_options_are_named(changes, words):
    with pytest.raises(ConfigError, match=words):
        LightPeftConfig(**changes)


def test_excluded_sites_stay_whole():
    model = classifier(LightPeftConfig(estimation_steps=LOOK, exclude="*.layer.0.*"))
    assert all(".layer.1." in u.name for u in model.light.units)
    assert all(".layer.0." in name for name in model.light.held)
