"""Cut models as folders: three ways in, the same bits out, and loud failure elsewhere."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import compress3g.peft as light_peft
from compress3g.cli.main import main
from compress3g.errors import ConfigError, CutError
from compress3g.peft import Estimator, LightPeftConfig, candidates, from_pretrained, make_plan, save

from .families import build
from .test_light import LOOK, STEPS, batch, classifier


def tuned(model, part):
    """Past its cut, and two steps further."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    model.train()
    model.light.begin(STEPS)
    for step in range(LOOK + 2):
        model(**part).loss.backward()
        if step < LOOK:
            model.light.observe(1e-2, batches=list)
        optimizer.step()
        optimizer.zero_grad()
        if model.light.due:
            model.light.cut(optimizer)
    return model.eval()


def logits(model, part):
    with torch.no_grad():
        return model(**{k: v for k, v in part.items() if k != "labels"}).logits


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A tuned classifier, the folder of its dense base, and the three folders it is saved in."""
    root = tmp_path_factory.mktemp("cut")
    classifier().unload().save_pretrained(root / "dense")
    model = tuned(classifier(), batch())
    for form in ("merged", "adapter", "delta"):
        save(root / form, model, form=form)
    return model, root


@pytest.mark.parametrize("form", ["adapter", "delta"])
def test_what_is_loaded_computes_the_same_bits(form, cut):
    model, root = cut
    again = from_pretrained(root / form, root / "dense")
    assert torch.equal(logits(again, batch()), logits(model, batch()))


def test_the_merged_model_computes_the_same_and_loads_three_ways(cut):
    import transformers

    import compress3g.transformer

    model, root = cut
    ways = [
        from_pretrained(root / "merged"),
        compress3g.transformer.from_pretrained(root / "merged"),
        transformers.AutoModelForSequenceClassification.from_pretrained(root / "merged"),
    ]
    outs = [logits(m, batch()) for m in ways]
    assert all(torch.equal(out, outs[0]) for out in outs)
    # W + BA is rounded once, W x + B A x at every step
    assert torch.allclose(outs[0], logits(model, batch()), atol=1e-6)


def test_the_adapter_loads_with_stock_peft_on_the_cut_base(cut):
    import peft

    import compress3g.transformer

    model, root = cut
    base = compress3g.transformer.from_pretrained(root / "adapter")
    again = peft.PeftModel.from_pretrained(base, root / "adapter" / "adapter").eval()
    assert torch.equal(logits(again, batch()), logits(model, batch()))


def test_merging_later_gives_the_merged_model(cut, tmp_path):
    _, root = cut
    for form in ("adapter", "delta"):
        light_peft.merge(root / form, tmp_path / form, root / "dense")
        found = logits(from_pretrained(tmp_path / form), batch())
        assert torch.equal(found, logits(from_pretrained(root / "merged"), batch()))


def test_rank_stabilised_adapters_keep_their_scale(tmp_path):
    model = tuned(classifier(use_rslora=True, r=8), batch())
    save(tmp_path / "small", model, form="adapter")
    again = from_pretrained(tmp_path / "small")
    # alpha sqrt(r_n / r) / sqrt(r_n) is alpha / sqrt(r) up to the last bit
    assert torch.allclose(logits(again, batch()), logits(model, batch()), atol=1e-6)


def test_a_delta_is_smaller_than_the_model(cut):
    _, root = cut
    sizes = {
        form: sum(f.stat().st_size for f in (root / form).rglob("*.safetensors"))
        for form in ("merged", "delta")
    }
    assert sizes["delta"] < 0.5 * sizes["merged"]


def test_plain_transformers_refuses_a_cut_folder(cut):
    import transformers

    _, root = cut
    with pytest.raises(RuntimeError, match="mismatch"):
        transformers.BertForSequenceClassification.from_pretrained(root / "merged")


def test_an_auto_class_of_another_task_is_refused(cut):
    import transformers

    _, root = cut
    with pytest.raises(ConfigError, match="BertForSequenceClassification"):
        transformers.AutoModelForMaskedLM.from_pretrained(root / "merged")


def test_folders_without_the_key_load_as_ever(cut):
    import transformers

    _, root = cut
    found = transformers.AutoModelForSequenceClassification.from_pretrained(root / "dense")
    dense = transformers.BertForSequenceClassification.from_pretrained(root / "dense")
    assert torch.equal(logits(found.eval(), batch()), logits(dense.eval(), batch()))


def test_an_adapter_on_the_wrong_base_names_the_layer(cut):
    import transformers

    from compress3g.peft.folder import attach

    _, root = cut
    dense = transformers.BertForSequenceClassification.from_pretrained(root / "dense")
    with pytest.raises(CutError, match=r"bert\.encoder\.layer.*belongs to a base"):
        attach(dense, root / "adapter" / "adapter")


_ALONE = """
import sys, torch
from transformers import AutoModelForSequenceClassification as Auto
torch.set_num_threads(1)  # as many as the tests: sums depend on it
model = Auto.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert not any(name.startswith("compress3g") for name in sys.modules)
torch.save(model(**torch.load(sys.argv[2])).logits.detach(), sys.argv[3])
"""


def test_a_folder_with_its_own_code_loads_without_this_package(cut, tmp_path):
    _, root = cut
    words = ["peft", "merge", str(root / "adapter"), "-o", str(tmp_path / "own")]
    assert main([*words, "--with-remote-code"]) == 0
    part = {k: v for k, v in batch().items() if k != "labels"}
    torch.save(part, tmp_path / "batch.pt")
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _ALONE]
        + [str(tmp_path / name) for name in ("own", "batch.pt", "out.pt")],
        check=True,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    want = logits(from_pretrained(root / "merged"), batch())
    assert torch.equal(torch.load(tmp_path / "out.pt"), want)
    assert torch.equal(logits(from_pretrained(tmp_path / "own"), batch()), want)


def test_a_difference_needs_its_base(cut):
    _, root = cut
    with pytest.raises(ConfigError, match="give base=FOLDER"):
        from_pretrained(root / "delta")
    with pytest.raises(ConfigError, match="is pruned"):
        from_pretrained(root / "delta", root / "merged")


def test_a_model_that_was_not_cut_is_not_saved(tmp_path):
    with pytest.raises(ConfigError, match="was not cut"):
        save(tmp_path / "out", classifier())


def test_the_merged_model_exports(cut):
    _, root = cut
    model = from_pretrained(root / "merged")
    part = {k: v for k, v in batch().items() if k != "labels"}
    program = torch.export.export(model, (), part)
    with torch.no_grad():
        found = program.module()(**part)
    assert torch.allclose(found["logits"], logits(model, part), atol=1e-6)


def test_another_runtime_gives_the_merged_models_logits(cut):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    _, root = cut
    model = from_pretrained(root / "merged")
    part = {k: v for k, v in batch().items() if k != "labels"}
    with warnings.catch_warnings():  # of the exporter's own passes
        warnings.simplefilter("ignore")
        program = torch.onnx.export(model, (), kwargs=part, dynamo=True)
    assert program is not None
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    found = session.run(None, {k: v.numpy() for k, v in part.items()})[0]
    assert torch.allclose(torch.from_numpy(found), logits(model, part), atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
def test_generation_is_the_same_with_and_without_a_cache(name, tmp_path):
    import peft

    ids = torch.randint(6, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8)
    config = LightPeftConfig(estimation_steps=LOOK)
    model = light_peft.get_light_peft_model(build(name), lora, config)
    tuned(model, {"input_ids": ids, "labels": ids})
    save(tmp_path / "small", model)
    small = from_pretrained(tmp_path / "small")
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    cached = small.generate(ids[:1], **settings)
    assert torch.equal(cached, small.generate(ids[:1], use_cache=False, **settings))


def _rank(number, folder, queue):
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    model = classifier(lora_dropout=0.0)
    config = LightPeftConfig(estimation_steps=LOOK)
    units, _ = candidates(model, config)
    part = {k: v[number::2] for k, v in batch().items()}
    with Estimator(model, units, config, steps=LOOK) as estimator:
        for _ in range(LOOK):
            model.zero_grad()
            model(**part).loss.backward()
            estimator(1e-2)
        scores = estimator.scores()
    queue.put((number, make_plan(scores, units, config).digest))
    dist.destroy_process_group()


def test_two_processes_make_the_same_plan(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # where new processes find this module
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    both = [context.Process(target=_rank, args=(i, tmp_path, queue)) for i in range(2)]
    for process in both:
        process.start()
    digests = dict(queue.get(timeout=240) for _ in both)
    for process in both:
        process.join()
    assert digests[0] == digests[1]
    shutil.rmtree(tmp_path, ignore_errors=True)


def test_a_difference_on_a_wrong_base_names_the_tensor(cut, tmp_path):
    import transformers

    _, root = cut
    config = transformers.BertConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"word_embeddings\.weight of this shape"):
        from_pretrained(root / "delta", tmp_path / "other")
