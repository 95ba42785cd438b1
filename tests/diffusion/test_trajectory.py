from __future__ import annotations

import copy

import pytest
import torch

from compress3g.core import HardConcrete, Masks, gated
from compress3g.diffusion import rollout, units_of
from compress3g.errors import ConfigError
from compress3g.profile import measure_memory

from . import denoisers
from .denoisers import DENOISERS, SCHEDULERS, denoiser, first_latent, guided_step, noise

# Schedulers of diffusers hand tensors to numpy in a way that numpy 2 does not like.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


def backprop(step, z, steps, inputs, state):
    """The reference: one graph over all steps."""
    for i in range(steps):
        z = step(z, i)
    return z


def checkpointed(**options):
    def run(step, z, steps, inputs, state):
        return rollout(step, z, steps=steps, inputs=inputs, state=state, **options)

    return run


def gradients(run, name, kind, *, steps=4, model=None):
    """Last latent, and gradients at z and at the gates of every unit."""
    model = model or denoiser(name)
    units = units_of(model)
    g = torch.Generator().manual_seed(5)
    gates = {
        u.name: (0.5 + torch.rand(u.size, generator=g, dtype=torch.float64)).requires_grad_()
        for u in units
    }
    torch.manual_seed(0)  # of schedulers that add noise
    schedule = denoisers.scheduler(kind, steps)
    step = guided_step(name, model, schedule, kind)
    z = first_latent(name).requires_grad_()
    with gated(model, units, gates):
        out = run(step, z, len(schedule.timesteps), list(gates.values()), [schedule])
        (out * noise(*out.shape, seed=9)).sum().backward()
    return [out.detach(), z.grad, *(gate.grad for gate in gates.values())]


def assert_equal(ours, theirs):
    """Bit for bit: the same operators run on the same numbers in the same order."""
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def assert_close(ours, theirs, tolerance):
    """Kept steps and the others are summed apart, which rounds differently."""
    for a, b in zip(ours, theirs, strict=True):
        assert float((a - b).abs().max()) <= tolerance * float(b.abs().max())


@pytest.mark.parametrize("name", DENOISERS)
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_gradient_equals_backpropagation(name, kind):
    theirs = gradients(backprop, name, kind)
    assert_equal(gradients(checkpointed(), name, kind), theirs)
    assert all(bool(grad.abs().max() > 0) for grad in theirs)


@pytest.mark.parametrize("kind", ["DPM-Solver++ 3M, Karras", "PNDM", "Heun", "DDIM, noise"])
@pytest.mark.parametrize("keep", [1, 3, 40, "auto"])
def test_steps_that_keep_their_graph_change_nothing(kind, keep):
    theirs = gradients(backprop, "SD3", kind)
    assert_close(gradients(checkpointed(keep_last=keep), "SD3", kind), theirs, 1e-12)


def test_kept_steps_are_those_that_fit(monkeypatch):
    """By the bytes that one step saves for its backward pass, measured here by a hook."""
    w = torch.ones(1000, requires_grad=True)
    ran = []

    def step(z, i):
        if torch.is_grad_enabled():
            ran.append(i)
        return (z * w).sin()  # saves z and the argument of sin, 4000 bytes each; w is no copy

    monkeypatch.setattr("compress3g.diffusion.trajectory._free", lambda device: 60_000)
    out = rollout(step, torch.rand(1000), steps=9, inputs=[w], keep_last="auto")
    # 0.8 of 60,000 bytes hold 4 steps of 12,000 (z, w and the argument of sin); one is reserved.
    assert ran == [0, 6, 7, 8]
    out.sum().backward()
    assert ran == [0, 6, 7, 8, 5, 4, 3, 2, 1, 0]


def test_stored_on_the_cpu_changes_nothing():
    theirs = gradients(backprop, "UNet", "UniPC")
    assert_equal(gradients(checkpointed(offload_latents=True), "UNet", "UniPC"), theirs)


@pytest.mark.gpu
def test_stored_latents_leave_the_gpu():
    w = torch.ones(1, device="cuda", requires_grad=True)
    z = torch.rand(1 << 20, device="cuda")
    used = []
    for offload in (False, True):
        before = torch.cuda.memory_allocated()
        out = rollout(lambda z, i: z * w, z, steps=16, inputs=[w], offload_latents=offload)
        used.append(torch.cuda.memory_allocated() - before)
        out.sum().backward()
    assert used[1] < used[0] / 8
    assert torch.allclose(w.grad, 32 * z.sum())


@pytest.mark.parametrize("name", DENOISERS)
def test_checkpointed_blocks_change_nothing(name):
    model = copy.deepcopy(denoiser(name))
    theirs = gradients(checkpointed(), name, "Euler", model=model)
    model.enable_gradient_checkpointing()
    assert_equal(gradients(checkpointed(), name, "Euler", model=model), theirs)


class Noisy:
    """A scheduler that remembers in place, in containers, and draws from everything there is."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(3)
        self.history = {"sums": [torch.zeros(6)], "count": 0}
        self.momentum = None
        self.table = torch.linspace(1, 2, 100)

    def step(self, z, drift, i):
        self.history["sums"][0] += drift
        self.history["count"] += 1
        self.momentum = drift if i % 2 else None
        noise = torch.rand(6) + torch.rand(6, generator=self.generator)
        pull = 0 if self.momentum is None else self.momentum
        return z + drift * noise + 0.1 * self.history["sums"][0] / self.table[i] - 0.3 * pull


@pytest.mark.parametrize("keep", [0, 2])
def test_state_and_random_numbers_are_those_of_the_first_pass(keep):
    w = torch.linspace(-1, 1, 6, requires_grad=True)
    dropout = torch.nn.Dropout(0.5)
    grads, draws = [], []
    for ours in (False, True):
        torch.manual_seed(0)
        noisy = Noisy()

        def step(z, i, noisy=noisy):
            return noisy.step(z, dropout(w * z), i)

        z = torch.ones(6, requires_grad=True)
        if ours:
            more = {"state": [noisy], "generators": [noisy.generator], "keep_last": keep}
            out = rollout(step, z, steps=5, inputs=[w], **more)
        else:
            out = backprop(step, z, 5, [], [])
        ahead = torch.rand(1), noisy.history["sums"][0].detach().clone()
        out.square().sum().backward()
        grads.append([out.detach(), z.grad, w.grad])
        # A backward pass is invisible: what is drawn and remembered next is the same.
        draws.append([*ahead, torch.rand(1), torch.rand(1, generator=noisy.generator)])
        assert torch.equal(noisy.history["sums"][0], ahead[1])
        assert noisy.history["count"] == 5
        w.grad = None
    assert_close(grads[1], grads[0], 1e-6 if keep else 0.0)
    assert_equal(draws[1], draws[0])
    assert not noisy.history["sums"][0].requires_grad


def test_static_tables_stay_the_same_objects():
    noisy = Noisy()
    table, w = noisy.table, torch.ones(6, requires_grad=True)
    out = rollout(
        lambda z, i: noisy.step(z, w * z, i), torch.ones(6), steps=3, inputs=[w], state=[noisy]
    )
    out.sum().backward()
    assert noisy.table is table


def test_logits_behind_the_gates_get_gradients():
    model = denoiser("SD3")
    units = units_of(model)
    masks = Masks(units, HardConcrete(), init=0.5)
    found = []
    for ours in (False, True):
        masks.zero_grad()
        gates = masks.sample(torch.Generator().manual_seed(0))
        schedule = denoisers.scheduler("DPM-Solver++ 2M", 4)
        step = guided_step("SD3", model, schedule, "")
        run = checkpointed() if ours else backprop
        with gated(model, units, gates):
            out = run(step, first_latent("SD3"), 4, list(gates.values()), [schedule])
            out.square().sum().backward()
        found.append([p.grad.clone() for p in masks.parameters()])
    assert_equal(found[1], found[0])


def test_weights_get_gradients_under_autocast():
    """Autocast caches casts of weights; one made without a graph must not serve the second pass."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8))
    grads = []
    for ours in (False, True):
        net.zero_grad()
        z = torch.linspace(-1, 1, 8)[None]
        with torch.autocast("cpu", torch.bfloat16):
            if ours:
                out = rollout(lambda z, i: net(z), z, steps=3, inputs=list(net.parameters()))
                out.square().sum().backward()
            else:
                out = backprop(lambda z, i: net(z), z, 3, [], [])
                out.square().sum().backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    for a, b in zip(*grads, strict=True):
        # bfloat16 has 8 bits; both sum the same three terms in another order.
        assert float((a - b).abs().max() / b.abs().max()) < 2**-6


def test_memory_does_not_grow_with_the_steps():
    net = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.Tanh(), torch.nn.Linear(512, 64))

    def run(steps, ours):
        z, inputs = torch.ones(256, 64), list(net.parameters())
        step = lambda z, i: net(z)  # noqa: E731
        out = (
            rollout(step, z, steps=steps, inputs=inputs)
            if ours
            else backprop(step, z, steps, [], [])
        )
        torch.autograd.grad(out.sum(), inputs)

    few, many, naive = (
        measure_memory(lambda s=s, o=o: run(s, o), model=net).peak
        for s, o in ((5, True), (20, True), (20, False))
    )
    latent = 4 * 256 * 64
    assert many - few <= 15 * latent + 15 * 5056  # and as many states of the random generator
    assert naive > 2 * many


def test_unused_and_frozen_inputs_get_nothing():
    used, unused, frozen = torch.ones(2, requires_grad=True), torch.ones(2), torch.ones(2)
    unused.requires_grad_()
    out = rollout(
        lambda z, i: z * used * frozen, torch.ones(2), steps=2, inputs=[used, unused, frozen]
    )
    out.sum().backward()
    assert torch.equal(used.grad, torch.full((2,), 2.0))
    assert unused.grad is None
    assert frozen.grad is None


def test_nothing_is_recorded_without_gradients():
    w = torch.ones(1, requires_grad=True)
    with torch.no_grad():
        assert rollout(lambda z, i: w * z, torch.ones(1), steps=2, inputs=[w]).grad_fn is None


def test_a_second_backward_pass_says_what_to_do():
    w = torch.ones(1, requires_grad=True)
    out = rollout(lambda z, i: w * z, torch.ones(1), steps=2, inputs=[w])
    out.backward(retain_graph=True)
    with pytest.raises(ConfigError, match="run it again"):
        out.backward()


BAD = [({"steps": 0}, "one step"), ({"steps": 2, "keep_last": -1}, "-1")]


@pytest.mark.parametrize(("options", "says"), BAD)
def test_bad_counts_are_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        rollout(lambda z, i: z, torch.ones(1), **options)
