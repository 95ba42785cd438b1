"""Batches, changes to pictures, and the clock of training."""

from __future__ import annotations

import copy
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from compress3g.errors import ConfigError
from compress3g.mamba import apply_patch, create_model
from compress3g.mamba.data import Arrays, Resident
from compress3g.mamba.patch import pruning_of
from compress3g.mamba.pictures import Preprocess
from compress3g.mamba.step import Stepper, distilled
from compress3g.mamba.train import TrainConfig, _endless, _groups, accuracy, train, varied

from .small_models import plain_model

LOOK = Preprocess(size=(8, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


@pytest.fixture
def pictures():
    """Two classes that a model can tell apart: dark above, or dark below."""
    rng = np.random.default_rng(0)
    images = rng.integers(90, 166, (40, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(40) % 2
    images[labels == 0, :4] //= 4
    images[labels == 1, 4:] //= 4
    return Arrays(images, labels.astype(np.int64))


def small():
    torch.manual_seed(0)
    return create_model("vim_cifar10", image=(8, 8), width=16, depth=2, classes=2)


def test_pictures_on_a_device_are_those_in_memory(pictures):
    index = [3, 0, 7]
    resident = Resident(pictures, "cpu")
    assert len(resident) == 40
    torch.testing.assert_close(
        resident.tensors(index, LOOK), pictures.tensors(index, LOOK), rtol=0, atol=1e-6
    )


def test_pictures_on_a_device_are_not_resized(pictures):
    with pytest.raises(ConfigError, match=r"\(3, 9, 9\), got \(3, 8, 8\)"):
        Resident(pictures, "cpu").tensors([0], Preprocess(size=(9, 9), mean=(0.5,) * 3))


def test_a_shift_moves_pictures_and_repeats_their_border():
    images = torch.arange(64.0).view(1, 1, 8, 8).expand(200, 1, 8, 8)
    moved = varied(images, TrainConfig(flip=False, shift=2), torch.Generator().manual_seed(0))
    row, column = torch.arange(8)[:, None], torch.arange(8)[None]
    wanted = {
        (dy, dx): (row + dy).clamp(0, 7) * 8 + (column + dx).clamp(0, 7)
        for dy in range(-2, 3)
        for dx in range(-2, 3)
    }
    seen = set()
    for one in moved[:, 0]:
        matches = [at for at, picture in wanted.items() if bool((picture == one).all())]
        assert len(matches) == 1
        seen.add(matches[0])
    assert seen == set(wanted)


def test_erased_squares_have_the_mean_colour_and_their_side():
    images = torch.ones(100, 3, 16, 16)
    config = TrainConfig(flip=False, erase=4)
    gone = varied(images, config, torch.Generator().manual_seed(0)) == 0
    assert bool((gone == gone[:, :1]).all())
    counts = gone[:, 0].sum((1, 2))
    assert int(counts.max()) == 16
    assert int(counts.min()) >= 4  # a corner of it at least


def test_the_loss_of_a_teacher_that_is_right_is_least():
    labels, logits = torch.tensor([1, 0]), torch.tensor([[0.1, 0.4], [2.0, -1.0]])
    same = distilled(logits, labels, logits.clone(), weight=1.0, smoothing=0.0)
    other = distilled(logits, labels, logits.flip(1), weight=1.0, smoothing=0.0)
    assert float(same) == pytest.approx(0, abs=1e-6)
    assert float(other) > 0.1
    plain = torch.nn.functional.cross_entropy(logits, labels)
    half = distilled(logits, labels, logits.flip(1), weight=0.5, smoothing=0.0)
    assert float(half) == pytest.approx(float(plain + other) / 2)


def test_training_learns_and_watches(pictures):
    model, seen = small(), []
    config = TrainConfig(epochs=30, lr=3e-3, warmup=5, batch=16, flip=True, shift=1)
    done = train(model, pictures, LOOK, config, watch=seen.append, every=0.0)
    assert done.steps == 75
    assert seen == list(range(1, 76))
    assert accuracy(model, pictures, LOOK) > 90


def gated():
    """With batch norms in its stem, and with gates of holes."""
    model = plain_model(image=(8, 8), patch=2, classes=2)
    apply_patch(model, keep_ratio=0.5, layers=(1,), align="learned")
    return model


def trained(model):
    return [*model.parameters(), pruning_of(model).gates]


def test_an_average_has_the_weights_of_all_steps_and_the_last_statistics(pictures):
    config = TrainConfig(epochs=2, lr=0.01, warmup=0, batch=16)
    last, averaged = gated(), gated()
    wanted = [p.detach().double() for p in trained(last)]

    def watch(steps):
        decay = min(0.9, steps / (9 + steps))
        for mean, p in zip(wanted, trained(last), strict=True):
            mean += (1 - decay) * (p.detach().double() - mean)

    train(last, pictures, LOOK, config, watch=watch, every=0.0)
    train(averaged, pictures, LOOK, replace(config, ema=0.9))
    for mean, p in zip(wanted, trained(averaged), strict=True):
        torch.testing.assert_close(p.detach().double(), mean, rtol=1e-6, atol=1e-6)
    assert float((trained(last)[-1].detach() - 4).abs().max()) > 1e-3  # gates have moved
    theirs = dict(last.named_buffers())
    assert any(bool(t.any()) for name, t in theirs.items() if name.endswith("running_mean"))
    for name, buffer in averaged.named_buffers():
        assert torch.equal(buffer, theirs[name]), name


def test_gates_are_clipped_with_the_weights(pictures):
    model = gated()
    with torch.no_grad():
        model.head.fc.weight.mul_(1e4)
    images, labels = pictures.tensors(range(40), LOOK), torch.from_numpy(pictures.labels)
    same = copy.deepcopy(model)
    distilled(same(images), labels, None, weight=0.0, smoothing=0.0).backward()
    norm = torch.stack([p.grad.norm() for p in trained(same)]).norm()
    assert float(norm) > 10
    stepper = Stepper(model, _groups(model, 0.0), None, distill=0.0, smoothing=0.0)
    stepper(images, labels, 1e-3)
    for p, raw in zip(trained(model), trained(same), strict=True):
        torch.testing.assert_close(p.grad, raw.grad / norm, rtol=1e-4, atol=0)
    assert bool(trained(model)[-1].grad.any())


def test_minutes_end_the_run_whatever_the_epochs_are(pictures):
    began = time.monotonic()
    config = TrainConfig(epochs=10_000, minutes=0.02, batch=16, warmup=1)
    done = train(small(), pictures, LOOK, config)
    assert 1 <= done.steps < 25_000
    assert time.monotonic() - began < 30


def test_batches_have_one_size_and_every_picture_comes_once_a_pass(pictures):
    numbered = Arrays(pictures.images, np.arange(40))
    stream = _endless(numbered, LOOK, TrainConfig(batch=16))
    labels = torch.cat([next(stream)[1] for _ in range(5)])
    assert len(labels) == 80
    assert sorted(labels[:40].tolist()) == list(range(40))
    assert sorted(labels[40:].tolist()) == list(range(40))


@pytest.mark.gpu
def test_a_captured_step_is_the_eager_one(pictures):
    losses = []
    for capture in (True, False):
        model = small().cuda()
        groups = [{"params": list(model.parameters())}]
        stepper = Stepper(model, groups, None, distill=0.0, smoothing=0.0)
        stepper._capture = capture
        images = pictures.tensors(range(40), LOOK).cuda()
        labels = torch.from_numpy(pictures.labels).cuda()
        losses.append([float(stepper(images, labels, 1e-3)) for _ in range(12)])
        assert (stepper._graph is not None) == capture
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
