"""Each kernel against a formula that shares no code with it, in float64, and its gradient by finite differences."""

import math

import pytest
import torch
import torch.utils._python_dispatch

from kernels.attention import attention, attention_reference, causal_attention
from kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
from kernels.lora import lora_linear, lora_linear_reference
from kernels.norm import rms_norm, rms_norm_reference

DOUBLE = {"dtype": torch.float64}


def rand(*shape, grad=False):
    return torch.randn(*shape, **DOUBLE, requires_grad=grad)


def attention_by_loops(q, k, v, mask, scale, cap, prefix):
    B, H, T, _ = q.shape
    out = torch.zeros_like(q)
    for b in range(B):
        for h in range(H):
            head = h // (H // k.shape[1])
            keys = torch.cat([prefix[0][head], k[b, head]]) if prefix else k[b, head]
            values = torch.cat([prefix[1][head], v[b, head]]) if prefix else v[b, head]
            for t in range(T):
                scores = [float(q[b, h, t] @ key) * scale for key in keys]
                scores = [cap * math.tanh(s / cap) if cap else s for s in scores]
                added = mask[b if len(mask) > 1 else 0, h if mask.shape[1] > 1 else 0, t].tolist()
                weights = [math.exp(s + m) for s, m in zip(scores, added, strict=True)]
                out[b, h, t] = sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)
    return out


@pytest.mark.parametrize("fn", [attention, attention_reference])
@pytest.mark.parametrize(
    ("B", "H", "K", "T", "S", "P", "cap", "alibi"),
    [
        (2, 4, 2, 3, 5, 0, 0.0, False),
        (2, 4, 2, 3, 5, 4, 0.0, False),
        (3, 3, 1, 1, 2, 7, 2.0, False),
        (1, 5, 5, 2, 3, 1, 0.0, True),
        (2, 6, 2, 1, 1, 0, 1.5, True),
        (1, 7, 1, 1, 1, 0, 0.0, False),
    ],
)
def test_attention(fn, B, H, K, T, S, P, cap, alibi):
    torch.manual_seed(0)
    q, k, v = rand(B, H, T, 5), rand(B, K, S, 5), rand(B, K, S, 5)
    prefix = (rand(K, P, 5), rand(K, P, 5)) if P else None
    seen = torch.rand(B, 1, T, P + S) > 0.4
    seen[..., -1] = True
    mask = torch.where(seen, rand(H, 1, P + S) if alibi else torch.zeros((), **DOUBLE), -math.inf)
    args = (q, k, v, mask, 0.3, cap, prefix)
    torch.testing.assert_close(fn(*args), attention_by_loops(*args))


@pytest.mark.parametrize(("H", "K", "T"), [(4, 2, 7), (3, 1, 5), (5, 5, 1)])
def test_causal_attention(H, K, T):
    torch.manual_seed(0)
    q, k, v = rand(3, H, T, 5), rand(3, K, T, 5), rand(3, K, T, 5)
    mask = torch.full((1, 1, T, T), -math.inf, **DOUBLE).triu(1)
    torch.testing.assert_close(causal_attention(q, k, v, 0.4), attention_reference(q, k, v, mask, 0.4))


@pytest.mark.parametrize("cap", [0.0, 3.0])
def test_attention_gradient(cap):
    mask = torch.full((1, 1, 3, 5), -math.inf, **DOUBLE).triu(3)
    inputs = rand(2, 4, 3, 2, grad=True), rand(2, 2, 3, 2, grad=True), rand(2, 2, 3, 2, grad=True)
    prefix = rand(2, 2, 2, grad=True), rand(2, 2, 2, grad=True)
    assert torch.autograd.gradcheck(
        lambda q, k, v, a, b: attention(q, k, v, mask, 0.5, cap, (a, b)), (*inputs, *prefix)
    )
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, mask[..., 2:], 0.5, cap), inputs)
    assert torch.autograd.gradcheck(lambda q, k, v: causal_attention(q, k, v, 0.5), inputs)


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 5), (1, 1), (0, 4)])
def test_rms_norm(shape):
    torch.manual_seed(0)
    x, weight = rand(*shape, grad=True), rand(shape[-1], grad=True)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5))
    if x.numel():
        assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-5), (x, weight))
        assert torch.autograd.gradcheck(lambda x: rms_norm(x, weight.detach(), 1e-5), (x,))


@pytest.mark.parametrize("lora", [lora_linear, lora_linear_reference])
@pytest.mark.parametrize("ranks", [(2,), (1,), (3, 0, 2), (4, 4)])
@pytest.mark.parametrize("rows", [(2, 3), (1,), (0,)])
def test_lora_linear(lora, ranks, rows):
    """Against the definition: add scale * B_i A_i to the rows of part i and multiply."""
    torch.manual_seed(0)
    outs = [5, 2, 3][: len(ranks)]
    x, weight, bias = rand(*rows, 7), rand(sum(outs), 7), rand(sum(outs))
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


@pytest.mark.parametrize("chunk", [1, 2, 1024])
@pytest.mark.parametrize(("scale", "cap"), [(0.5, 2.0), (1.0, 0.0), (3.0, 0.5)])
def test_cross_entropy_gradient(scale, cap, chunk):
    torch.manual_seed(0)
    targets = torch.tensor([0, 3, 2, 3, 3])
    args = rand(5, 4, grad=True), rand(6, 4, grad=True), rand(6, grad=True)
    fns = [lambda h, w, b, fn=fn, more=more: 0.7 * fn(h, w, targets, b, scale, cap, *more)
           for fn, more in ((linear_cross_entropy, [chunk]), (linear_cross_entropy_reference, []))]  # fmt: skip
    assert torch.autograd.gradcheck(fns[0], args)
    got, wanted = (torch.autograd.grad(fn(*args), args) for fn in fns)
    torch.testing.assert_close(got, wanted)
    frozen = args[0], args[1].detach(), args[2].detach()
    torch.testing.assert_close(torch.autograd.grad(fns[0](*frozen), frozen[0])[0], wanted[0])


def test_cross_entropy_of_no_rows():
    hidden, weight = rand(0, 4, grad=True), rand(6, 4)
    nothing = torch.zeros(0, dtype=torch.int64)
    loss = linear_cross_entropy(hidden, weight, nothing)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, hidden)[0].shape == (0, 4)
    with torch.no_grad():
        assert float(linear_cross_entropy(hidden, weight, nothing)) == 0


def test_cross_entropy_never_holds_the_full_logits():
    """The largest tensor that forward and backward make is a chunk's logits, not all rows'."""
    hidden, weight = torch.randn(64, 3, requires_grad=True), torch.randn(500, 3)
    targets, largest = torch.randint(0, 500, (64,)), 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else [out]:
                largest = max(largest, t.numel() if isinstance(t, torch.Tensor) else 0)
            return out

    for fn, most in ((linear_cross_entropy, 4 * 500), (linear_cross_entropy_reference, 64 * 500)):
        largest = 0
        with Watch():
            fn(hidden, weight, targets, **({"chunk": 4} if fn is linear_cross_entropy else {})).backward()
        assert largest == most
