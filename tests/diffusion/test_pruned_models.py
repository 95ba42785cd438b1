"""Pruned denoisers and pipelines on disk: the same bits in a fresh process, or one clear line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import compress3g.diffusion as cd
from compress3g.diffusion.prune import prune
from compress3g.diffusion.pruned_models import class_of, save
from compress3g.diffusion.units import units_of
from compress3g.errors import ConfigError, FormatError

from .tiny import ARCHITECTURES, FAMILIES, Pipe, captions, classes, dense_copy, random_scores

quiet = pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")


def pruned(name, ratio=0.15):
    model = dense_copy(name)
    prune(Pipe(model), random_scores(units_of(model)), ratio=ratio, round_to=4)
    return model


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory):
    """A pruned Stable Diffusion pipeline in both kinds of folders, and its latents."""
    folder, pipe = tmp_path_factory.mktemp("pruned"), captions()
    prune(pipe, random_scores(units_of(pipe.unet)), ratio=0.2, round_to=4)
    save(pipe, folder / "plain")
    save(pipe, folder / "alone", self_contained=True)
    latents = cd.generate(pipe, ["a red seven"], steps=3, output="latent")
    torch.save(latents, folder / "latents.pt")
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_denoiser_loads_bit_for_bit(name, tmp_path):
    case, model = ARCHITECTURES[name], pruned(name)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = type(model).from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(case.run(model, 2), case.run(again, 2))
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


@quiet
def test_another_dtype_and_memory_hungry_loading_work(tmp_path):
    model = pruned("SD3Transformer2DModel")
    model.save_pretrained(tmp_path)
    half = type(model).from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    slow = type(model).from_pretrained(tmp_path, low_cpu_mem_usage=False)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), slow.parameters(), strict=True)
    )


_FRESH = """
import sys, torch
torch.set_num_threads(1)
if sys.argv[2] == "alone":
    sys.modules["compress3g"] = None  # as on a machine without it
    options = {"trust_remote_code": True}
else:
    import compress3g.diffusion
    options = {}
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(sys.argv[1] + "/" + sys.argv[2], **options)
generator = [torch.Generator().manual_seed(0)]
how = {"num_inference_steps": 3, "output_type": "latent"}
made = pipe(["a red seven"], generator=generator, **how).images
assert torch.equal(made, torch.load(sys.argv[1] + "/latents.pt")), "not the same latents"
print(type(pipe.unet).__name__)
"""


@pytest.mark.parametrize("kind", ["plain", "alone"])
def test_plain_diffusers_loads_it_in_a_fresh_process(pipeline_folder, kind, tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", _FRESH, str(pipeline_folder), kind]
    # Code of a folder is copied to where diffusers keeps such: not into the user's own cache.
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "PrunedUNet2DConditionModel"


def test_a_pipeline_of_classes_makes_the_same_image_again(tmp_path):
    pipe = classes()
    before = cd.generate(pipe, ["3"], steps=2)
    prune(pipe, random_scores(units_of(pipe.transformer)), ratio=0.15, round_to=4)
    made = cd.generate(pipe, ["3"], steps=2)
    assert made.shape == (1, 3, 8, 8)
    assert not torch.equal(before, made)
    save(pipe, tmp_path / "small")
    again = cd.open_pipeline(tmp_path / "small")
    assert torch.equal(made, cd.generate(again, ["3"], steps=2))


def test_nothing_is_pickled_and_nothing_is_overwritten(pipeline_folder):
    suffixes = {p.suffix for p in pipeline_folder.rglob("plain/**/*") if p.is_file()}
    assert suffixes <= {".json", ".safetensors", ".txt", ".jinja"}
    with pytest.raises(ConfigError, match="exists already"):
        save(captions(), pipeline_folder / "plain")


def test_a_failing_save_leaves_nothing_behind(tmp_path):
    pipe = captions()
    pipe.unet.register_to_config(broken=object())
    with pytest.raises(TypeError):
        save(pipe, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def edited(folder, change):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def rename(c):
    groups = c["compress3g"]["groups"]
    groups["elsewhere"] = groups.pop(next(iter(groups)))


def set_first(key, value):
    return lambda c: next(iter(c["compress3g"]["groups"].values())).update({key: value})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(num_layers=3), "sizes are not those of the model"),
        (lambda c: c["compress3g"].update(version=9), "format 9"),
        (lambda c: c["compress3g"].pop("groups"), "no groups"),
        (rename, "no group 'elsewhere'"),
        (set_first("units", 999), "has 999 units"),
        (set_first("keep", "AAAA"), "units, the model has|keeps no unit"),
        (set_first("keep", "not base64!"), "no list of kept units"),
        (lambda c: c["compress3g"].update(biases=["nowhere"]), "no nowhere"),
    ],
)
def test_a_folder_edited_by_hand_gives_one_line(change, says, tmp_path):
    model = pruned("DiTTransformer2DModel")
    model.save_pretrained(tmp_path)
    edited(tmp_path, change)
    with pytest.raises(FormatError, match=says) as caught:
        type(model).from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_bias_that_surgery_made_is_loaded_too(tmp_path):
    name = "SanaTransformer2DModel"  # its conv_point has no bias
    case, model = ARCHITECTURES[name], dense_copy(name)
    units = [u for u in units_of(model) if u.name.endswith("neurons")]
    readers = {c.module: model.get_submodule(c.module) for u in units for c in u.reads}
    means = {n: torch.rand(m.in_channels) for n, m in readers.items()}
    prune(Pipe(model), random_scores(units), ratio=0.15, round_to=1, means=means)
    assert set(model.config["compress3g"]["biases"]) == set(readers)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(case.run(model, 2), case.run(again, 2))


def test_classes_are_named_after_their_base():
    import diffusers

    assert cd.PrunedUNet2DConditionModel is class_of(diffusers.UNet2DConditionModel)
    assert cd.ModelMixin is diffusers.ModelMixin
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = cd.Nothing
    with pytest.raises(AttributeError, match="has no Nothing"):
        _ = cd.PrunedNothing


def test_what_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        cd.open_pipeline(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"no model_index\.json"):
        cd.open_pipeline(tmp_path)
    with pytest.raises(ConfigError, match="is not pruned"):
        save(captions(), tmp_path / "out", self_contained=True)
