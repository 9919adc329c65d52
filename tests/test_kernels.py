"""Each kernel against a formula that shares no code with it, in float64, and its gradient by finite differences."""

import math

import pytest
import torch

from kernels.attention import attention
from kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
from kernels.lora import lora_linear, lora_linear_reference

DOUBLE = {"dtype": torch.float64}


def rand(*shape, grad=False):
    return torch.randn(*shape, **DOUBLE, requires_grad=grad)


def attention_by_loops(q, k, v, mask, scale, cap, prefix, bias):
    B, H, T, _ = q.shape
    out = torch.zeros_like(q)
    for b in range(B):
        for h in range(H):
            head = h // (H // k.shape[1])
            keys = torch.cat([prefix[0][head], k[b, head]]) if prefix else k[b, head]
            values = torch.cat([prefix[1][head], v[b, head]]) if prefix else v[b, head]
            for t in range(T):
                scores = [
                    (q[b, h, t] @ key + (bias[h, j] if bias is not None else 0)) * scale for j, key in enumerate(keys)
                ]
                scores = [cap * math.tanh(s / cap) if cap else float(s) for s in scores]
                seen = mask[b if mask.shape[0] > 1 else 0, t].tolist()
                weights = [math.exp(s) if ok else 0.0 for s, ok in zip(scores, seen, strict=True)]
                out[b, h, t] = sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)
    return out


@pytest.mark.parametrize(
    ("B", "H", "K", "T", "S", "P", "cap", "alibi"),
    [
        (2, 4, 2, 3, 5, 0, 0.0, False),
        (2, 4, 2, 3, 5, 4, 0.0, False),
        (3, 3, 1, 1, 2, 7, 2.0, False),
        (1, 5, 5, 2, 3, 1, 0.0, True),
        (2, 6, 2, 1, 1, 0, 1.5, True),
    ],
)
def test_attention(B, H, K, T, S, P, cap, alibi):
    torch.manual_seed(0)
    q, k, v = rand(B, H, T, 4), rand(B, K, S, 4), rand(B, K, S, 4)
    prefix = (rand(K, P, 4), rand(K, P, 4)) if P else None
    bias = rand(H, P + S) if alibi else None
    mask = torch.rand(B, T, P + S) > 0.4
    mask[..., -1] = True
    args = (q, k, v, mask, 0.3, cap, prefix, bias)
    torch.testing.assert_close(attention(*args), attention_by_loops(*args))


def test_attention_gradient():
    mask = torch.ones(1, 3, 5, dtype=torch.bool).tril(2)
    inputs = rand(2, 4, 3, 2, grad=True), rand(2, 2, 3, 2, grad=True), rand(2, 2, 3, 2, grad=True)
    prefix = rand(2, 2, 2, grad=True), rand(2, 2, 2, grad=True)
    assert torch.autograd.gradcheck(
        lambda q, k, v, a, b: attention(q, k, v, mask, 0.5, 3.0, (a, b)), (*inputs, *prefix)
    )


@pytest.mark.parametrize("lora", [lora_linear, lora_linear_reference])
@pytest.mark.parametrize("ranks", [(2,), (1,), (3, 0, 2), (4, 4)])
def test_lora_linear(lora, ranks):
    """Against the definition: add scale * B_i A_i to the rows of part i and multiply."""
    torch.manual_seed(0)
    outs = [5, 2, 3][: len(ranks)]
    x, weight, bias = rand(2, 3, 7), rand(sum(outs), 7), rand(sum(outs))
    A, Bs = rand(sum(ranks), 7), [rand(out, r) for out, r in zip(outs, ranks, strict=True)]
    delta = torch.cat([b @ a for b, a in zip(Bs, A.split(list(ranks)), strict=True)])
    expected = x @ (weight + 0.7 * delta).T + bias
    torch.testing.assert_close(lora(x, weight, bias, A, Bs, 0.7), expected)
    if len(ranks) == 1:
        torch.testing.assert_close(lora(x, weight, bias, A, Bs[0], 0.7), expected)


def test_lora_linear_gradient():
    args = rand(3, 4, grad=True), rand(5, 4), None, rand(3, 4, grad=True), rand(3, 1, grad=True), rand(2, 2, grad=True)
    assert torch.autograd.gradcheck(lambda x, w, b, A, B1, B2: lora_linear(x, w, b, A, [B1, B2], 0.5), args)


@pytest.mark.parametrize(("scale", "cap", "biased"), [(1.0, 0.0, False), (0.25, 0.0, True), (2.0, 3.0, True)])
@pytest.mark.parametrize("chunk", [1, 4, 1024])
def test_cross_entropy(scale, cap, biased, chunk):
    torch.manual_seed(0)
    hidden, weight, targets = rand(10, 6), rand(9, 6), torch.randint(0, 9, (10,))
    bias = rand(9) if biased else None
    expected = 0.0
    for h, t in zip(hidden, targets, strict=True):
        logits = [scale * (float(h @ w) + (float(bias[i]) if biased else 0.0)) for i, w in enumerate(weight)]
        logits = [cap * math.tanh(z / cap) if cap else z for z in logits]
        expected += math.log(sum(map(math.exp, logits))) - logits[int(t)]
    for fn in (
        lambda: linear_cross_entropy(hidden, weight, targets, bias, scale, cap, chunk),
        lambda: linear_cross_entropy_reference(hidden, weight, targets, bias, scale, cap),
    ):
        assert float(fn()) == pytest.approx(expected, rel=1e-12)


def test_cross_entropy_gradient():
    targets = torch.tensor([0, 3, 2])
    args = rand(3, 4, grad=True), rand(5, 4, grad=True), rand(5, grad=True)
    assert torch.autograd.gradcheck(lambda h, w, b: linear_cross_entropy(h, w, targets, b, 0.5, 2.0, 2), args)
