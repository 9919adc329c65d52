"""Each kernel against a formula that shares no code with it, in float64, and its gradient by finite differences."""

import itertools
import math

import pytest
import torch
import torch.utils._python_dispatch

import kernels.attention
from kernels import packed
from kernels.attention import (
    attention,
    attention_reference,
    causal_attention,
    join,
    own_attention,
    shared_attention,
)
from kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_reference, most_rows
from kernels.gated import silu_gated, silu_gated_reference
from kernels.lora import lora_linear, lora_linear_reference
from kernels.norm import rms_norm, rms_norm_reference
from kernels.packed import packed_attention, packed_attention_reference, packs

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


@pytest.mark.parametrize("by_scores", [False, True], ids=["kernel", "scores"])
@pytest.mark.parametrize(("H", "K", "T"), [(4, 2, 5), (6, 2, 1), (3, 3, 2), (5, 1, 3)])
def test_attention_to_blocks_that_are_joined(monkeypatch, by_scores, H, K, T):
    """Own keys, then those of two prompts of other lengths with three rows each, then a prefix: as all in one row."""
    if by_scores:  # what a device without the kernel does
        monkeypatch.setattr(kernels.attention, "has_flash", lambda *_: False)
    torch.manual_seed(0)
    q, k, v = rand(6, H, T, 5), rand(6, K, T, 5), rand(6, K, T, 5)
    prefix, prompts, lengths = (rand(K, 7, 5), rand(K, 7, 5)), (rand(2, K, 4, 5), rand(2, K, 4, 5)), (4, 2)
    pads = torch.zeros(2, 1, 1, 4, **DOUBLE)
    pads[1, ..., lengths[1] :] = -math.inf
    causal = torch.full((1, 1, T, T), -math.inf, **DOUBLE).triu(1)
    for mask in (None, causal):
        seen = own_attention(q, k, v, 0.4, mask)
        seen = join(seen, shared_attention(q, *prompts, 0.4, pads))
        found, total = join(seen, shared_attention(q, *(p[None] for p in prefix), 0.4))
        for row in range(6):
            n, u = lengths[row // 3], row // 3
            before = [torch.cat([p, t[u, :, :n]], dim=1) for p, t in zip(prefix, prompts, strict=True)]
            whole = torch.cat([torch.zeros(1, 1, T, 7 + n, **DOUBLE), causal], dim=-1)
            one = slice(row, row + 1)
            wanted = attention_reference(q[one], k[one], v[one], whole, 0.4, 0.0, before)
            torch.testing.assert_close(found[one], wanted)
            keys = torch.cat([before[0], k[row]], dim=1).repeat_interleave(H // K, dim=0)  # (H, S, 5)
            scores = q[row] @ keys.transpose(1, 2) * 0.4 + whole[0]
            torch.testing.assert_close(total[row], scores.logsumexp(-1), check_dtype=False, rtol=1e-6, atol=1e-6)


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


RUNS = [(2, 5), (1, 4), (3, 1)]  # 17 tokens


def starts_of(runs):
    lengths = [length for n, length in runs for _ in range(n)]
    return torch.tensor([0, *lengths]).cumsum(0).int()


@pytest.mark.parametrize(("H", "K", "runs"), [(4, 2, RUNS), (3, 1, RUNS), (2, 2, [(1, 6)]), (5, 5, [(4, 1)])])
def test_packed_attention(H, K, runs):
    """Each sequence alone, by loops; and values that are a part of a larger tensor, as the decoder's are."""
    torch.manual_seed(0)
    T = sum(n * length for n, length in runs)
    q, k, both = rand(1, T, H, 3).transpose(1, 2), rand(1, T, K, 3).transpose(1, 2), rand(1, T, H + K, 3)
    v = both[:, :, H:].transpose(1, 2)
    got = packed_attention(q, k, v, runs, 0.4, starts_of(runs))
    torch.testing.assert_close(got, packed_attention_reference(q, k, v, runs, 0.4))
    ends = starts_of(runs).tolist()
    for a, b in itertools.pairwise(ends):
        mask = torch.full((1, 1, b - a, b - a), -math.inf, **DOUBLE).triu(1)
        alone = attention_by_loops(*(t[:, :, a:b] for t in (q, k, v)), mask, 0.4, 0.0, None)
        torch.testing.assert_close(got[:, :, a:b], alone)
    inputs = [t.detach().requires_grad_() for t in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *t: packed_attention(*t, runs, 0.4, starts_of(runs)), inputs)


def test_packed_attention_keeps_its_inputs_and_its_output_once():
    q, k, heads = (torch.randn(1, 17, n, 4, requires_grad=True) for n in (4, 2, 9))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = packed_attention(*(t.transpose(1, 2) for t in (q, k, heads[:, :, 7:])), RUNS, 0.5, starts_of(RUNS))
    sizes = sorted(t.untyped_storage().nbytes() // 4 // 17 for t in kept if t.numel() > 17 * 4)
    assert sizes == [8, 8, 16, 16]  # k, v, q, out: not the 36 numbers a token that v was a part of
    assert any(t.data_ptr() == out.data_ptr() for t in kept)  # as the next linear keeps it: no second copy


@pytest.mark.parametrize("causal_by", ["window_size", "is_causal"])
@pytest.mark.parametrize(("H", "K"), [(4, 2), (3, 3)])
def test_on_a_gpu_one_call_takes_all_sequences(monkeypatch, H, K, causal_by):
    """A stand-in with torch's arguments, computed by the formula: of torch 2.13, and as it was before."""

    def attend(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, causal, enable_gqa):
        assert causal
        assert enable_gqa == (H != K)
        assert cu_seq_q is cu_seq_k
        assert (cu_seq_q.dtype, max_q, max_k) == (torch.int32, 5, 5)
        outs = []
        for a, b in zip(cu_seq_q.tolist(), cu_seq_k[1:].tolist(), strict=False):
            mask = torch.full((1, 1, b - a, b - a), -math.inf, **DOUBLE).triu(1)
            outs.append(attention_reference(*(t[None, a:b].transpose(1, 2) for t in (query, key, value)), mask, scale))
        return torch.cat(outs, dim=2)[0].transpose(0, 1)

    class Now:
        @staticmethod
        def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1),
                        enable_gqa=False):
            return attend(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, window_size == (-1, 0),
                          enable_gqa)

    class Before:
        @staticmethod
        def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, scale=None,
                        enable_gqa=False):
            return attend(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, is_causal, enable_gqa)

    class OnGpu(torch.Tensor):  # says that it is there; its values are here
        is_cuda = True

    monkeypatch.setattr(packed, "varlen", lambda: Now if causal_by == "window_size" else Before)
    packed.options.cache_clear()
    torch.manual_seed(0)
    q, k, v = (rand(1, 17, n, 3).transpose(1, 2) for n in (H, K, K))
    got = packed_attention(q.as_subclass(OnGpu), k, v, RUNS, 0.4, starts_of(RUNS))
    packed.options.cache_clear()
    torch.testing.assert_close(got.as_subclass(torch.Tensor), packed_attention_reference(q, k, v, RUNS, 0.4))


def test_where_torch_has_no_kernel_for_packed_rows(monkeypatch):
    """A torch whose varlen_attn takes no scale, or groups no heads, is not asked; nor one for float32 on a GPU."""
    on = type("Like", (), {"device": torch.device("cuda"), "is_cuda": True, "dtype": torch.bfloat16})

    def heads(n, size=64, **more):
        return type("Like", (on,), {"shape": (1, n, 9, size), **more})

    for known, alone, grouped in (
        ({"scale", "enable_gqa"}, True, True), ({"scale"}, True, False), (set(), False, False)
    ):
        monkeypatch.setattr(packed, "options", lambda known=known: frozenset(known))
        assert packs(heads(4), heads(4)) == alone
        assert packs(heads(4), heads(2)) == grouped
        assert not packs(heads(4, dtype=torch.float32), heads(4))
        assert not packs(heads(4, size=512), heads(4))
    for dtype, expected in ((torch.float32, True), (torch.float64, True), (torch.bfloat16, False)):
        q = torch.zeros(1, 2, 3, 4, dtype=dtype)
        assert packs(q, q) == expected


def test_what_varlen_attn_is_asked_for_is_there():
    """Of the torch that is installed."""
    assert {"scale", "enable_gqa"} <= packed.options()
    assert packed.options() & {"is_causal", "window_size"}


@pytest.mark.parametrize("shape", [(3, 8), (1, 2, 4), (0, 6)])
def test_silu_gated(shape):
    torch.manual_seed(0)
    h = rand(*shape, grad=True)
    assert torch.equal(silu_gated(h), silu_gated_reference(h))
    if h.numel():
        assert torch.autograd.gradcheck(silu_gated, h)
        one, other = (h.detach().float().requires_grad_() for _ in range(2))
        for f, x in ((silu_gated, one), (silu_gated_reference, other)):
            f(x).square().sum().backward()
        assert torch.equal(one.grad, other.grad)  # the same bits


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


def test_lora_linear_makes_its_input_again():
    """Forward and backward as if the input had been kept; what is kept is what it is made of."""
    torch.manual_seed(0)
    inputs = rand(2, 3, 8, grad=True), rand(3, 4, grad=True), rand(5, 2, grad=True), rand(2, 1, grad=True)
    weight, norm = rand(7, 4), rand(8)

    def make(x):
        return silu_gated_reference(x * norm)

    def through(f, x, A, *B, **more):
        return f(x, weight, None, A, B, 0.5, **more)

    again = through(lora_linear, *inputs, make=make)
    kept = through(lora_linear, make(inputs[0]), *inputs[1:])
    assert torch.equal(again, kept)
    for got, wanted in zip(*(torch.autograd.grad(y.square().sum(), inputs) for y in (again, kept)), strict=True):
        assert torch.equal(got, wanted)
    assert torch.autograd.gradcheck(lambda *t: through(lora_linear, *t, make=make), inputs)
    frozen = inputs[0].detach(), *inputs[1:]
    torch.autograd.grad(through(lora_linear, *frozen, make=make).sum(), frozen[1:])
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        through(lora_linear, *inputs, make=make)
    assert (2, 3, 8) in saved
    assert not {(2, 3, 4), (6, 4)} & set(saved)


def test_lora_linear_takes_adapters_that_are_cast():
    torch.manual_seed(0)
    x, weight, A, B = (torch.randn(*s) for s in ((6, 4), (5, 4), (3, 4), (5, 3)))
    x, weight = x.bfloat16().requires_grad_(), weight.bfloat16()
    found = []
    for given in (False, True):
        a, b = A.clone().requires_grad_(), B.clone().requires_grad_()
        cast = [a.detach().bfloat16(), b.detach().bfloat16()] if given else None
        y = lora_linear(x, weight, None, a, b, 2.0, cast=cast)
        found.append([y, *torch.autograd.grad(y.float().square().sum(), (x, a, b))])
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert [t.dtype for t in found[1]] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]


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


def test_few_rows_of_a_large_vocabulary():
    assert [most_rows(v, True) for v in (21, 8192, 49_152, 151_936, 10**8)] == [1024, 1024, 170, 55, 1]
    assert most_rows(151_936, False) == 1024  # a GPU needs many


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
