from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
import transformers

from compress3g.cli.main import main
from compress3g.core import gated, price
from compress3g.criteria import CRITERIA
from compress3g.engine.folder import atomic_folder
from compress3g.errors import BudgetError, ConfigError, FormatError
from compress3g.transformer import PruneConfig, from_pretrained, prune, save_pretrained, units_of
from compress3g.transformer.depth import drop_layers, droppable, influence

from . import folders

KINDS = ("decoder", "encoder", "masked", "classifier", "vision")


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def given(where):
    """Model folders and calibration data."""
    made = {kind: folders.folder(where / kind, kind) for kind in KINDS}
    return {
        **made,
        "text": folders.text(where / "text.txt"),
        "images": folders.images(where / "im"),
    }


def options(given, kind, *words):
    data = given["images" if kind == "vision" else "text"]
    sizes = ("--samples", "12", "--length", "10", "--batch", "4", "--steps", "6")
    return ["prune", str(given[kind]), "--calibrate", str(data), *sizes, *words]


def outputs(model, kind):
    g = torch.Generator().manual_seed(5)
    if kind == "vision":
        return model(pixel_values=torch.randn(2, 3, 16, 16, generator=g))[0]
    ids = torch.randint(5, 20, (2, 9), generator=g)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return model(input_ids=ids, attention_mask=mask)[0]


_FRESH = """
import sys, torch
torch.set_num_threads(1)
import compress3g.transformer
model = compress3g.transformer.from_pretrained(sys.argv[1])
ids = torch.tensor([[5, 9, 7, 12]])
with torch.no_grad():
    logits = model(input_ids=ids).logits
text = model.generate(ids, max_new_tokens=10, do_sample=False, pad_token_id=0)
torch.save((logits, text), sys.argv[2])
"""


@pytest.mark.parametrize("words", [(), ("--drop-layers", "2", "--keep", "0.4")])
def test_the_command_and_one_line_in_a_fresh_process(given, tmp_path, words):
    """The real command in a process of its own equals pruning in this one, bit for bit."""
    out, config = (
        tmp_path / "small",
        {"keep": 0.7, **({"drop_layers": 2, "keep": 0.4} if words else {})},
    )
    command = [sys.executable, "-W", "ignore", "-m", "compress3g.cli.main"]
    done = subprocess.run(
        [*command, *options(given, "decoder", *words, "-o", str(out), "--json")],
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["output"] == str(out)
    assert len(report["dropped"]) == (2 if words else 0)
    fresh = [sys.executable, "-W", "ignore", "-c", _FRESH, str(out), str(tmp_path / "out.pt")]
    subprocess.run(fresh, check=True)
    logits, text = torch.load(tmp_path / "out.pt")
    here = prune(
        folders.model("decoder"),
        given["decoder"],
        given["text"],
        PruneConfig(samples=12, length=10, batch=4, steps=6, **config),
    )
    assert (
        report["params_after"] == here.params[1] == sum(p.numel() for p in here.model.parameters())
    )
    ids = torch.tensor([[5, 9, 7, 12]])
    with torch.no_grad():
        assert torch.equal(here.model(input_ids=ids).logits, logits)
    settings = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(here.model.generate(ids, **settings), text)
    assert torch.equal(here.model.generate(ids, use_cache=False, **settings), text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_prunes_every_kind_of_model(given, tmp_path, kind, criterion, capsys):
    out = tmp_path / "small"
    code = main(options(given, kind, "--criterion", criterion, "-o", str(out), "--json"))
    printed = capsys.readouterr()
    if CRITERIA[criterion].signed and kind not in ("decoder", "masked"):
        assert code == 2
        assert "use fisher" in printed.err
        return
    assert code == 0, printed.err
    report = json.loads(printed.out.splitlines()[-1])
    assert 0.6 < report["share"] <= 0.7 + 1e-9
    model = from_pretrained(out)
    assert sum(p.numel() for p in model.parameters()) == report["params_after"]
    assert {u.name: u.size for u in units_of(model)} == {
        n: k for n, (k, _) in report["kept"].items()
    }
    dense = folders.model(kind)
    with torch.no_grad():
        assert outputs(model, kind).shape == outputs(dense, kind).shape


@pytest.mark.parametrize("kind", ["decoder", "encoder", "vision"])
def test_dropped_layers_equal_closed_ones(given, kind):
    """Layers out of the stack compute what gates at zero computed, caches included."""
    whole, small = folders.model(kind), folders.model(kind)
    blocks = [u for u in units_of(whole, depth=True) if u.bypass is not None]
    gone = [blocks[0].bypass, blocks[2].bypass]
    drop_layers(small, gone)
    gates = {u.name: torch.zeros(1) if u.bypass in gone else torch.ones(1) for u in blocks}
    with torch.no_grad(), gated(whole, blocks, gates):
        expected = outputs(whole, kind)
    with torch.no_grad():
        # an open gate computes s + 1 (o - s), a rounding away from o
        torch.testing.assert_close(outputs(small, kind), expected, rtol=1e-4, atol=1e-5)
    assert small.config.num_hidden_layers == 2


def test_a_layer_that_does_nothing_has_no_influence():
    model = folders.model("decoder")
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    ids = torch.randint(5, 20, (2, 9), generator=torch.Generator().manual_seed(0))
    found = influence(model, [{"input_ids": ids}], None)
    assert min(found, key=found.get) == "model.layers.1"
    assert found["model.layers.1"] == pytest.approx(0, abs=1e-6)


def test_influence_of_every_layer_is_that_on_the_stream_before_the_final_norm():
    """Against a Llama run layer by layer, cosines one by one."""
    model, inner = folders.model("decoder"), folders.model("decoder").model
    with torch.no_grad():
        for net in (model.model, inner):
            net.norm.weight.copy_(torch.linspace(-2, 2, 32))
    ids = torch.randint(5, 20, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(9) < torch.tensor([[9], [6], [4]])
    with torch.no_grad():
        state, expected = inner.embed_tokens(ids), []
        rotary = inner.rotary_emb(state, position_ids=torch.arange(9)[None])
        for layer in inner.layers:
            last, state = state, layer(state, attention_mask=None, position_embeddings=rotary)
            pairs = zip(last[mask].double(), state[mask].double(), strict=True)
            cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in pairs]
            expected.append(1 - sum(cosines) / len(cosines))
    batch = {"input_ids": ids, "attention_mask": mask.long()}
    found = influence(model, [batch], lambda b: b["attention_mask"].bool())
    assert list(found) == [f"model.layers.{i}" for i in range(4)]
    assert list(found.values()) == pytest.approx(expected, rel=1e-5)


def test_keeping_everything_changes_no_output(given, tmp_path, capsys):
    out = tmp_path / "same"
    assert (
        main(options(given, "encoder", "--criterion", "wanda", "--keep", "1", "-o", str(out))) == 0
    )
    from transformers import AutoModel

    with torch.no_grad():
        dense = outputs(AutoModel.from_pretrained(given["encoder"]).eval(), "encoder")
        assert torch.equal(outputs(from_pretrained(out), "encoder"), dense)
    assert "compress3g.transformer.from_pretrained" in capsys.readouterr().out


def test_a_pruned_folder_can_be_pruned_again(given, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(options(given, "decoder", "-o", str(first), "--keep", "0.8")) == 0
    words = options(given, "decoder", "-o", str(second), "--keep", "0.8", "--json")
    words[1] = str(first)
    capsys.readouterr()
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    model = from_pretrained(second)
    assert sum(p.numel() for p in model.parameters()) == report["params_after"]
    assert report["params_after"] < report["params_before"]


def test_flops_and_multiples(given, tmp_path, capsys):
    words = (
        "--budget",
        "flops",
        "--multiple-of",
        "8",
        "--criterion",
        "taylor",
        "--dry-run",
        "--json",
    )
    assert main(options(given, "decoder", *words)) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["output"] is None
    assert report["share"] <= 0.7
    neurons = [k for n, (k, _) in report["kept"].items() if n.endswith("neurons")]
    assert all(k % 8 == 0 for k in neurons)


def test_a_dry_run_prints_every_layer_and_writes_nothing(given, tmp_path, capsys):
    out = tmp_path / "none"
    assert main(options(given, "encoder", "--dry-run", "-o", str(out))) == 0
    printed = capsys.readouterr().out
    names = [u.name for u in units_of(folders.model("encoder"))]
    assert all(name in printed for name in names)
    assert not out.exists()
    assert not list(tmp_path.iterdir())


def test_the_budget_is_met_and_tight(given):
    model = folders.model("decoder")
    units = price(model, [u for u in units_of(model, depth=True) if u.bypass is None])
    whole = sum(u.cost["params"] * u.size for u in units)
    before = sum(p.numel() for p in model.parameters())
    config = PruneConfig(criterion="magnitude", keep=0.6)
    done = prune(model, given["decoder"], None, config)
    removed = before - sum(p.numel() for p in model.parameters())
    # within one neuron of each of the four layers
    neuron = max(u.cost["params"] for u in units if u.name.endswith("neurons"))
    assert 0.4 * whole <= removed < 0.4 * whole + 4 * neuron
    assert done.share == pytest.approx(1 - removed / whole)


def bad(given, tmp_path):
    """Name -> (words, what the one line says)."""
    empty, latin = tmp_path / "empty.txt", tmp_path / "latin.txt"
    empty.write_text("\n \n")
    latin.write_bytes(b"caf\xe9\n")
    nothing, taken, foreign = tmp_path / "nothing", tmp_path / "taken", tmp_path / "mamba"
    for path in (nothing, taken, foreign):
        path.mkdir()
    (foreign / "config.json").write_text(
        '{"model_type": "mamba", "architectures": ["NoSuchModelForCausalLM"]}'
    )
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    out = ("-o", str(tmp_path / "out"))
    replaced = options(given, "encoder", *out)

    def instead(path):
        return [replaced[0], str(path), *replaced[2:]]

    def data(path):
        return ["prune", str(given["encoder"]), "--calibrate", str(path), *out]

    return {
        "no folder": (instead(tmp_path / "absent"), "absent does not exist"),
        "no model": (instead(nothing), "has no config.json"),
        "broken config": (instead(broken), "config.json cannot be used"),
        "unknown class": (instead(foreign), "NoSuchModelForCausalLM"),
        "empty data": (data(empty), "holds no text"),
        "not UTF-8": (data(latin), "is not UTF-8"),
        "no data file": (data(tmp_path / "gone.txt"), "gone.txt does not exist"),
        "folder for text": (data(given["images"]), "is a folder"),
        "text for images": (
            ["prune", str(given["vision"]), "--calibrate", str(given["text"]), *out],
            "folder of images",
        ),
        "no images": (
            ["prune", str(given["vision"]), "--calibrate", str(nothing), *out],
            "holds no images",
        ),
        "no data": (["prune", str(given["encoder"]), *out], "fisher needs --calibrate"),
        "keep 0": (options(given, "encoder", *out, "--keep", "0"), "--keep 0.0"),
        "keep 1.5": (options(given, "encoder", *out, "--keep", "1.5"), "--keep 1.5"),
        "keep nan": (options(given, "encoder", *out, "--keep", "nan"), "--keep nan"),
        "criterion": (options(given, "encoder", *out, "--criterion", "x"), "known are random"),
        "infeasible": (
            options(given, "encoder", *out, "--keep", "0.02"),
            "smallest that is feasible",
        ),
        "all layers": (options(given, "encoder", *out, "--drop-layers", "4"), "at least one must"),
        "OUT exists": (options(given, "encoder", "-o", str(taken)), "taken exists already"),
        "no OUT": (options(given, "encoder"), "Give -o OUT"),
        "samples": (options(given, "encoder", *out, "--samples", "0"), "--samples 0"),
        "device": (options(given, "encoder", *out, "--device", "tpu"), "no device 'tpu'"),
    }


def test_bad_input_is_one_line_and_exit_code_2(given, tmp_path, capsys):
    for name, (words, line) in bad(given, tmp_path).items():
        code = main(words)
        err = capsys.readouterr().err
        assert code == 2, (name, err)
        assert err.count("\n") == 1, (name, err)
        assert line in err, (name, err)
        assert not (tmp_path / "out").exists(), name


def test_the_smallest_feasible_share_is_feasible(given, tmp_path, capsys):
    assert main(options(given, "encoder", "--dry-run", "--keep", "0.02")) == 2
    share = capsys.readouterr().err.rstrip().rsplit(" ", 1)[1]
    assert main(options(given, "encoder", "--dry-run", "--keep", share)) == 0


def test_a_model_without_known_sites_says_so(tmp_path, given, capsys):
    import transformers

    config = transformers.MambaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4
    )
    transformers.MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    words = options(given, "decoder", "-o", str(tmp_path / "out"))
    words[1] = str(tmp_path / "mamba")
    assert main(words) == 2
    assert "no attention or feed-forward layer with known projections" in capsys.readouterr().err


def test_damaged_and_foreign_folders_say_so(given, tmp_path):
    out = tmp_path / "small"
    model = folders.model("encoder")
    prune(model, given["encoder"], None, PruneConfig(criterion="magnitude"))
    save_pretrained(out, model, given["encoder"])
    with pytest.raises(FormatError, match="was not pruned"):
        from_pretrained(given["encoder"])
    with pytest.raises(ConfigError, match="exists already"):
        save_pretrained(out, model)
    config = json.loads((out / "config.json").read_text())
    for change, message in (
        ({"digest": "0"}, "another model"),
        ({"format": 9}, "has format 9"),
    ):
        wrong = {**config, "compress3g": {**config["compress3g"], **change}}
        (out / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(FormatError, match=message):
            from_pretrained(out)
    (out / "config.json").write_text(json.dumps(config))
    weights = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(FormatError, match="is damaged"):
        from_pretrained(out)
    (out / "model.safetensors").unlink()
    with pytest.raises(FormatError, match="does not exist"):
        from_pretrained(out)


def test_truncated_weights_of_a_dense_model_are_one_line(given, tmp_path, capsys):
    shutil.copytree(given["encoder"], tmp_path / "dense")
    file = tmp_path / "dense" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    out = tmp_path / "out"
    assert main(["prune", str(tmp_path / "dense"), "--criterion", "magnitude", "-o", str(out)]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert "dense cannot be loaded" in line
    assert not out.exists()


def test_the_library_itself_refuses_a_pruned_folder_loudly(given, tmp_path):
    """What the library does is not ours to decide; should it become silent, this says so.

    AutoModel would load it in a process that has imported compress3g.peft.
    """
    import transformers

    model = folders.model("encoder")
    prune(model, given["encoder"], None, PruneConfig(criterion="magnitude"))
    save_pretrained(tmp_path / "small", model, given["encoder"])
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        transformers.BertModel.from_pretrained(tmp_path / "small")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "small")


def test_nothing_is_left_behind_when_writing_fails(tmp_path):
    def fail(folder):
        (folder / "half").write_text("x")
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"), atomic_folder(tmp_path / "out") as folder:
        fail(folder)
    assert not list(tmp_path.iterdir())
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "whole").write_text("x")
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_flap_adds_biases_only_where_something_went(given):
    config = PruneConfig(criterion="flap", keep=1.0, samples=8, length=10)
    done = prune(folders.model("decoder"), given["decoder"], given["text"], config)
    assert done.params[0] == done.params[1]


def modernbert():
    """Layers of which the first has no norm, and two kinds of attention."""
    torch.manual_seed(0)
    config = transformers.ModernBertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=6,
        num_attention_heads=4, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1,
        sep_token_id=2, global_attn_every_n_layers=3, local_attention=8,
    )  # fmt: skip
    return transformers.ModernBertModel(config).eval()


def test_a_kind_of_attention_that_no_layer_is_of_any_more_is_forgotten(tmp_path):
    model = drop_layers(modernbert(), [f"layers.{i}" for i in (1, 2, 4, 5)])
    save_pretrained(tmp_path / "small", model)
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        found = from_pretrained(tmp_path / "small")(ids).last_hidden_state
        assert torch.equal(found, model(ids).last_hidden_state)


def test_a_layer_only_takes_the_place_of_one_like_it():
    model = modernbert()
    with pytest.raises(ConfigError, match="take the place of layers"):
        drop_layers(modernbert(), ["layers.0"])
    influences = {f"layers.{i}": float(i) for i in range(6)}
    assert droppable(model, influences, 2) == ["layers.1", "layers.2"]
    with pytest.raises(BudgetError, match="only 5 of 6"):
        droppable(model, influences, 6)


def test_a_budget_that_whole_units_leave_unused_is_said(tmp_path, capsys):
    small = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    config = transformers.LlamaConfig(
        vocab_size=40, num_hidden_layers=1, intermediate_size=8, **small
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "m")
    words = ["prune", str(tmp_path / "m"), "--criterion", "magnitude", "--dry-run", "--scope"]
    # A head is 2,048 of 4,864 parameters, a neuron 96: within half of them is one head; the other
    # head is the next best, and no neuron but the best comes before it.
    assert main([*words, "global", "--keep", "0.5"]) == 0
    assert f"budget    {100 * (0.5 - 2144 / 4864):.1f} points less stay" in capsys.readouterr().out
    assert main([*words, "global", "--keep", "0.9"]) == 0
    assert "points less" not in capsys.readouterr().out
