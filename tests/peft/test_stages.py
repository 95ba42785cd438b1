"""Three runs make what one makes, to the bit; what is not a stage is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from compress3g.cli.main import main
from compress3g.errors import ScoreError
from compress3g.peft import LightPeftCallback, LightPeftConfig, from_pretrained, make_plan
from compress3g.peft.estimate import Estimator

from .test_cli import SHORT, said
from .test_light import LOOK, batch, classifier

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stages(model, data, tmp_path_factory):
    """Folders of the three runs, the last in all forms."""
    root = tmp_path_factory.mktemp("stages")
    look = ["peft", "estimate", str(model), str(data), "-o", str(root / "looked"), *SHORT]
    assert main(look) == 0
    assert main(["peft", "cut", str(root / "looked"), "-o", str(root / "cut")]) == 0
    for form in ("merged", "adapter", "delta"):
        words = ["peft", "finish", str(root / "cut"), "-o", str(root / form), "--form", form]
        assert main(words) == 0
    return root


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 6, 7, 9]])).logits


def test_three_runs_end_with_the_bits_of_one(stages, model, data, tmp_path):
    one = tmp_path / "one"
    assert main(["peft", "train", str(model), str(data), "-o", str(one), *SHORT]) == 0
    expected = from_pretrained(one).state_dict()
    found = from_pretrained(stages / "merged").state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_every_form_of_the_last_run_computes_the_same(stages, model):
    merged = logits(from_pretrained(stages / "merged"))
    for form in ("adapter", "delta"):
        found = logits(from_pretrained(stages / form, model))
        # W + BA is rounded once, W x + B A x at every step
        assert torch.allclose(found, merged, atol=1e-5), form


def test_the_report_says_how_the_step_time_fell(stages):
    report = json.loads((stages / "merged" / "report.json").read_text())
    assert all(ms > 0 for ms in report["step_ms"])
    assert report["params"][1] < report["params"][0]


def test_what_the_cut_left_loads_by_itself(stages):
    report = json.loads((stages / "cut" / "small" / "report.json").read_text())
    found = from_pretrained(stages / "cut" / "small")
    neurons = found.get_submodule("base_model.model.bert.encoder.layer.0.intermediate.dense")
    name = "bert.encoder.layer.0.neurons"
    assert neurons.out_features == report["kept"][name][0] < report["kept"][name][1]


def test_the_criterion_that_looks_at_data_decides_as_in_one_run(model, data, tmp_path):
    options = [*SHORT, "--criterion", "flap", "--samples", "8"]
    look = ["peft", "estimate", str(model), str(data), "-o", str(tmp_path / "looked"), *options]
    assert main(look) == 0
    assert main(["peft", "cut", str(tmp_path / "looked"), "-o", str(tmp_path / "cut")]) == 0
    one = ["peft", "train", str(model), str(data), "-o", str(tmp_path / "one"), *options]
    assert main([*one, "--form", "delta"]) == 0
    digest = json.loads((tmp_path / "one" / "plan.json").read_text())
    assert main(["peft", "finish", str(tmp_path / "cut"), "-o", str(tmp_path / "three"),
                 "--form", "delta"]) == 0  # fmt: skip
    assert json.loads((tmp_path / "three" / "plan.json").read_text()) == digest


def test_two_processes_estimate_and_finish(model, data, tmp_path):
    def launch(*words):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        started = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "compress3g.cli.main", *words],
                env={
                    **os.environ,
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": "2",
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "OMP_NUM_THREADS": "1",
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=ROOT,
            )
            for rank in range(2)
        ]
        outs = [p.communicate(timeout=240)[0] for p in started]
        assert [p.returncode for p in started] == [0, 0], outs
        return outs

    looked, cut, tuned = (str(tmp_path / n) for n in ("looked", "cut", "tuned"))
    short = [*SHORT, "--device", "cpu"]
    outs = launch("peft", "estimate", str(model), str(data), "-o", looked, *short)
    assert "peft cut" in outs[0]
    assert "peft cut" not in outs[1]
    assert main(["peft", "cut", looked, "-o", cut]) == 0
    launch("peft", "finish", cut, "-o", tuned, "--device", "cpu")
    assert torch.isfinite(logits(from_pretrained(tuned))).all()


def looked_at(parts, folder, average=lambda trained: None):
    """Saves what some steps over these parts showed, as the Trainer's callback does."""
    model = classifier(lora_dropout=0.0)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)  # Adam makes whole steps of what is rounded
    model.light.begin(LOOK + 1)
    for m in model.modules():
        if isinstance(m, torch.nn.Dropout):
            m.p = 0.0
    model.train()
    for _ in range(LOOK):
        for part in parts:
            (model(**part).loss / len(parts)).backward()
        average(trained)
        model.light.observe(1e-2, batches=list)
        optimizer.step()
        optimizer.zero_grad()
    callback = LightPeftCallback(cut=False)
    callback.light = model.light
    zero = folder.joinpath(f"checkpoint-{LOOK}").is_dir()
    state = SimpleNamespace(global_step=LOOK, is_world_process_zero=zero)
    callback.on_save(SimpleNamespace(output_dir=str(folder)), state, None)


def halves():
    return [{k: v[i::2] for k, v in batch().items()} for i in range(2)]


def _half(rank, folder, queue):
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)

    def average(trained):
        for p in trained:
            dist.all_reduce(p.grad)
            p.grad /= 2

    looked_at(halves()[rank : rank + 1], folder / str(rank), average)
    queue.put(_silent(rank))
    dist.destroy_process_group()


def _silent(rank):
    """What is said when one site has a gradient on one process only, and another on none."""
    model = classifier()
    units = model.light.units
    with Estimator(model, units, LightPeftConfig(), steps=4) as estimator:
        model(**batch()).loss.backward()
        estimator._leaves[units[1].name].grad = None
        if rank:
            estimator._leaves[units[0].name].grad = None
        estimator(1e-2)
        try:
            estimator.scores()
        except ScoreError as error:
            return str(error).split()[0] == units[1].name
    return False


def test_two_processes_leave_the_scores_of_one_that_sees_the_data_of_both(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)  # where new processes find this module
    for name in ("0", "1", "one"):
        (tmp_path / name).mkdir()
    for name in ("0", "one"):  # the first process saves alone
        (tmp_path / name / f"checkpoint-{LOOK}").mkdir()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    both = [context.Process(target=_half, args=(i, tmp_path, queue)) for i in range(2)]
    for process in both:
        process.start()
    named = [queue.get(timeout=240) for _ in both]
    for process in both:
        process.join()
    assert named == [True, True]
    looked_at(halves(), tmp_path / "one")
    plans, scores = [], []
    for name in ("0", "one"):
        light = classifier(lora_dropout=0.0).light
        light.restore(tmp_path / name / f"checkpoint-{LOOK}")
        scores.append(light.estimator.scores())
        plans.append(make_plan(scores[-1], light.units, light.config))
    for found, wanted in [
        *((scores[0].units[n], scores[1].units[n]) for n in scores[1].units),
        (scores[0].modules, scores[1].modules),
        (scores[0].ranks, scores[1].ranks),
    ]:
        for name, want in wanted.items():
            # float32 sums in another order, through four steps
            assert torch.allclose(found[name], want, rtol=1e-3, atol=1e-6), name
    assert plans[0].dropped == plans[1].dropped


@pytest.mark.parametrize(
    ("command", "folder", "message"),
    [
        ("cut", "cut", "is cut already: go on with compress3g peft finish"),
        ("finish", "looked", "is estimated already: go on with compress3g peft cut"),
        ("cut", "merged", "no folder of a stage"),
    ],
)
def test_stages_out_of_order_are_refused(command, folder, message, stages, tmp_path, capsys):
    words = ["peft", command, str(stages / folder), "-o", str(tmp_path / "out")]
    assert main(words) == 2
    assert message in said(capsys)
    assert not (tmp_path / "out").exists()


def test_data_that_changed_between_stages_is_refused(model, data, tmp_path, capsys):
    mine = tmp_path / "texts.tsv"
    mine.write_text(data.read_text())
    look = ["peft", "estimate", str(model), str(mine), "-o", str(tmp_path / "looked"), *SHORT]
    assert main(look) == 0
    mine.write_text(data.read_text() + "one more dog\tdog\nand a cat\tcat\n")
    capsys.readouterr()
    assert main(["peft", "cut", str(tmp_path / "looked"), "-o", str(tmp_path / "cut")]) == 2
    assert "the first stage had 36" in said(capsys)


def test_the_cut_in_several_processes_is_refused(stages, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ["peft", "cut", str(stages / "looked"), "-o", str(tmp_path / "out")]
    assert main(words) == 2
    assert "without torchrun" in said(capsys)
