"""Adapters: start at nothing, apply to the right rows, merge to the same thing, and go away without a trace."""

import pytest
import torch
from conftest import random_decoder

from star.finetune import finetune
from star.lora import ALL_LINEAR, add_lora, lora_modules, merged, remove_lora, reset, trainable, version
from star.problem import Example

IDS = torch.arange(12)[None] % 23


def stir(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in trainable(model).values():
            p += 0.2 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
    return model


SPLIT = tuple(t for t in ALL_LINEAR if t not in ("qkv_proj", "gate_up_proj"))  # families without fused linears


@pytest.mark.parametrize("targets", [SPLIT, ("q_proj",), ("k_proj", "up_proj"), ("v_proj", "o_proj", "gate_proj")])
@torch.no_grad()
def test_adds_scale_b_a_to_the_named_linears(targets):
    """Each part's own rows: a group keeps its parts in order, adapted or not."""
    plain, model = random_decoder(), stir(add_lora(random_decoder(), rank=3, alpha=6, targets=targets))
    weights, touched = dict(plain.tensors()), set()
    for path, module in lora_modules(model):
        for part, A, B in module.adapters():
            name = f"{path.rpartition('.')[0]}.{part}.weight"
            weights[name] += 2.0 * B @ A
            touched.add(part)
    assert touched == set(targets)
    torch.testing.assert_close(model(IDS), plain(IDS))
    torch.testing.assert_close(merged(model)(IDS), plain(IDS))
    assert not torch.equal(model(IDS), random_decoder()(IDS))


def test_starts_and_resets_to_the_base_bit_for_bit():
    base = random_decoder(dtype=torch.float32)(IDS)
    model = add_lora(random_decoder(dtype=torch.float32), rank=4)
    assert torch.equal(model(IDS), base)
    stir(model)
    assert not torch.equal(model(IDS), base)
    reset(model, seed=3)
    assert torch.equal(model(IDS), base)
    assert torch.equal(merged(model)(IDS), base)
    remove_lora(stir(model))
    assert torch.equal(model(IDS), base)
    assert not list(lora_modules(model))


def test_reset_draws_from_its_seed():
    draws = []
    for seed in (1, 1, 2):
        model = add_lora(random_decoder(), seed=seed)
        draws.append(torch.cat([module.A.flatten() for _, module in lora_modules(model)]))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_only_adapters_are_trainable_and_in_float32():
    model = add_lora(random_decoder(dtype=torch.bfloat16), rank=2, targets=("q_proj", "down_proj"))
    names = trainable(model)
    assert {n.split(".")[-1] if n.endswith("A") else n.split(".")[-2] for n in names} == {"A", "B"}
    assert all(p.dtype == torch.float32 for p in names.values())
    assert len(names) == 2 * 2 * 2  # layers, modules, A and B: the k and v parts have none
    assert model(IDS).dtype == torch.float32
    assert model.hidden(IDS).dtype == torch.bfloat16


def test_version_counts_every_write():
    model = add_lora(random_decoder(), rank=2)
    seen = {version(model)}
    train = lambda: finetune(model, [Example((1, 2, 3), 1)], steps=1)  # noqa: E731
    for change in (lambda: reset(model), lambda: stir(model), train, lambda: model(IDS)):
        change()
        seen.add(version(model))
    assert len(seen) == 4  # every change but the last, which writes nothing


def test_adapters_are_cast_once_for_each_writing_of_them():
    """Beside a bfloat16 base; where nothing is trained they are cast in place, as a recorded step would."""
    model = stir(add_lora(random_decoder(dtype=torch.bfloat16), rank=2))
    module = next(module for _, module in lora_modules(model))
    first = module.narrow(torch.bfloat16)
    assert [t.dtype for t in first] == [torch.bfloat16] * len(first)
    assert torch.equal(first[0], module.A.bfloat16())
    assert module.narrow(torch.bfloat16) is first
    stir(model, seed=2)
    assert module.narrow(torch.bfloat16) is not first
    assert torch.equal(module.narrow(torch.bfloat16)[1], module.B[0].bfloat16())
    with torch.no_grad():
        assert module.narrow(torch.bfloat16) is None
    assert next(m for _, m in lora_modules(add_lora(random_decoder()))).narrow(torch.float64) is None


def test_merging_again_keeps_the_buffers():
    model = stir(add_lora(random_decoder(), rank=2))
    twin = merged(model)
    addresses = [p.data_ptr() for p in twin.parameters()]
    stir(model, seed=2)
    assert merged(model, twin) is twin
    assert addresses == [p.data_ptr() for p in twin.parameters()]
    torch.testing.assert_close(twin(IDS), model(IDS))
    ours = {p.data_ptr() for _, m in lora_modules(model) for p in [m.weight]}
    assert not ours & set(addresses), "the base must not be merged into"


def test_a_twin_follows_adapters_on_other_linears():
    """The old twin has a buffer for q and none for o: it must share q again, and never write into the base."""
    model = stir(add_lora(random_decoder(), rank=2, targets=("q_proj",)))
    twin = merged(model)
    remove_lora(model)
    stir(add_lora(model, rank=3, targets=("o_proj",)))
    torch.testing.assert_close(merged(model, twin)(IDS), model(IDS))
    remove_lora(model)
    assert torch.equal(model(IDS), random_decoder()(IDS))


def test_bad_requests():
    with pytest.raises(ValueError, match="no linear named"):
        add_lora(random_decoder(), targets=("x_proj",))
    with pytest.raises(ValueError, match="no linear named"):
        add_lora(random_decoder(gated=False), targets=("gate_proj",))
    with pytest.raises(ValueError, match="rank is 0"):
        add_lora(random_decoder(), rank=0)
    with pytest.raises(ValueError, match="already"):
        add_lora(add_lora(random_decoder()))
