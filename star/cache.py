"""Where the keys a query may see come from. The decoder asks its `Context`; it never knows which kind it has.

`Causal`: whole rows, nothing kept (scoring). `Prefill` and `Decode` write into a `KVCache` and read from it (sampling).
star/batch has one more, `Packed`, for training. None of them knows about stopping or prompts: that is the sampler's.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.attention import attention, causal_attention, join, own_attention, shared_attention
from star.device import free_memory

MOST_SLOTS = 512  # when slots are chosen: past this a step takes longer in proportion, or nearly


def visible(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """(B, T) query and (S,) key positions -> (B, T, S) bool: key j is seen from position i iff i - window < j <= i.

    window = 2, queries [[3]], keys [0 1 2 3 4] -> [[[False False True True False]]]: two keys, itself included.
    """
    q, k = queries[:, :, None], keys[None, None]
    seen = k <= q
    return seen if window is None else seen & (k > q - window)


class Shared:
    """Keys and values of U prompts that several rows have in front of their own, padded to one length.

    keys, values: a layer (U, K, P, hd) each. Without `seat` there is one prompt, and all rows of a batch are behind it.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor], lengths: list[int] | None = None):
        self.keys, self.values, self.mask, self.slots, self.n_keys = keys, values, None, None, sum(lengths or ())
        if lengths is not None:
            device = keys[0].device
            pads = torch.arange(max(lengths), device=device) >= torch.tensor(lengths, device=device)[:, None]  # (U, P)
            self.mask = keys[0].new_zeros(pads.shape).masked_fill_(pads, float("-inf"))[:, None, None]

    def seat(self, slots: list[list[int]]) -> None:
        """slots[u]: where the rows of prompt u run now. [[4, 0], [7]]: three rows; the second prompt has one.

        All prompts look for as many rows: `looking` is then [4, 0, 7, 0], and of what comes out `places` [0, 1, 2] go
        to the slots [4, 0, 7].
        """
        most = max(map(len, slots))  # a prompt with fewer rows looks for some row again, and that goes nowhere
        padded, device = [(s + [0] * most)[:most] for s in slots], self.keys[0].device
        self.looking = torch.tensor(padded, device=device).flatten()  # (U * most,)
        self.slots = torch.tensor([b for s in slots for b in s], device=device)  # (n,)
        self.places = torch.tensor([u * most + i for u, s in enumerate(slots) for i in range(len(s))], device=device)

    def join(self, layer: int, q: Tensor, scale: float, own: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Attention of q (B, H, T, hd) and its log-sum-exp, after these keys have been added to what `own` saw.

        With seats, `own` is changed in place.
        """
        keys, values = self.keys[layer], self.values[layer]
        if self.slots is None:
            return join(own, shared_attention(q, keys, values, scale))
        more = shared_attention(q[self.looking], keys, values, scale, self.mask)
        joined = join([t[self.slots] for t in own], [t[self.places] for t in more])
        for t, rows in zip(own, joined, strict=True):
            t[self.slots] = rows
        return own


class Context:
    """What a forward pass asks: which keys and values its queries meet, and which rows anything later reads.

    positions (B or 1, T): of the queries. n_keys: keys at the positions 0, 1, ... that they may see; the last of them
    are the row's own, the first those of `behind`.
    """

    behind: Sequence[Shared] = ()  # what rows have in front of their own keys
    long: bool | None = None  # what `longer` says; None: it counts

    def __init__(self, positions: Tensor, n_keys: int):
        self.positions, self.n_keys = positions, n_keys
        self._masks: dict[int | str | None, Tensor] = {}

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Take in this forward's k, v (B, K, T, hd); the own keys and values that its queries meet."""
        return k, v

    def longer(self, than: int) -> bool | Tensor:
        """Does the sequence that a query stands in, as far as it goes now, have more tokens than this?

        One answer for all, or (B or 1, T): a rope may have other frequencies for long sequences.
        """
        return self.n_keys > than if self.long is None else self.long

    def read(self, layer: int, x: Tensor) -> Tensor:
        """The rows of x (B, T, ...) that anything after this layer's attention reads: all, unless a context knows less.

        Where only some last hidden states are wanted, the last block need not compute the others.
        """
        return x

    def mask(self, like: Tensor, scale: float, window: int | None, slopes: Tensor | None) -> Tensor:
        """(B or 1, H, T, n_keys) for queries `like` (B, H, T, hd): -inf where they must not look, else 0 or alibi."""
        if window not in self._masks:  # layers share it: built once a forward for each window
            keys = torch.arange(self.n_keys, device=like.device)
            seen = visible(self.positions, keys, window)[:, None]  # (B or 1, 1, T, n_keys)
            bias = like.new_zeros(1, 1, 1) if slopes is None else (slopes[:, None, None] * keys).to(like) * scale
            mask = torch.where(seen, bias, float("-inf"))  # (B or 1, H or 1, T, n_keys)
            self._masks[window] = mask.expand(-1, like.shape[1], -1, -1).contiguous()
        return self._masks[window]

    def own_mask(self, like: Tensor, n: int) -> Tensor:
        """(B or 1, 1, T, n): as `mask` for the n own keys, where there is no window and no alibi."""
        if "own" not in self._masks:
            seen = visible(self.own_positions(n), torch.arange(n, device=like.device), None)
            self._masks["own"] = torch.where(seen, like.new_zeros(()), float("-inf"))[:, None]
        return self._masks["own"]

    def own_positions(self, n: int) -> Tensor:
        """(B or 1, T): where among the n own keys the queries stand."""
        return self.positions - (self.n_keys - n)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float, window: int | None,
               slopes: Tensor | None) -> Tensor:
        """q (B, H, T, hd) and this forward's k, v (B, K, T, hd) -> (B, H, T, hd)."""
        k, v = self.update(layer, k, v)
        whole = k.shape[2] == q.shape[2] > 1  # each row from its first own token on
        plain = not cap and slopes is None and (window is None or window >= self.n_keys)
        if plain and self.behind:
            seen = own_attention(q, k, v, scale, None if whole else self.own_mask(q, k.shape[2]))
            for shared in self.behind:
                seen = shared.join(layer, q, scale, seen)
            return seen[0]
        if plain and whole and (q.dtype.itemsize >= 4 or q.device.type != "cpu"):
            return causal_attention(q, k, v, scale)
        prefix = (self.behind[0].keys[layer][0], self.behind[0].values[layer][0]) if self.behind else None
        return attention(q, k, v, self.mask(q, scale, window, slopes), scale, cap, prefix)


class Causal(Context):
    """Whole rows of `length` tokens that start at position 0 and see what stands before them. Pads stand on the right.
    """

    def __init__(self, length: int, device: torch.device):
        super().__init__(torch.arange(length, device=device)[None], length)


class KVCache:
    """Keys and values of `slots` rows, `length` own tokens each, behind at most one prefix that all rows share.

    Slot b's own token i stands at position P + i. Zeroed, for a masked NaN would still poison a weighted sum.
    """

    def __init__(self, config, slots: int, length: int, device: torch.device, dtype: torch.dtype):
        shape = (slots, config.n_kv, length, config.head_dim)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layers)]
        self.slots, self.length, self.device = slots, length, device
        self.prefix: tuple[Shared, ...] = ()
        self.n_prefix = 0
        self.long = False  # are its rows longer than where a rope has other frequencies? All are, or none

    @staticmethod
    def bytes_a_token(config, dtype: torch.dtype) -> int:
        """Keys and values of one token in all layers."""
        return 2 * config.n_layers * config.n_kv * config.head_dim * dtype.itemsize

    def use_prefix(self, other: "KVCache | None", length: int = 0) -> None:
        """Take other's first slot, `length` tokens of it, as the prefix of all rows: views. None: no prefix."""
        both = [] if other is None else [[t[:1, :, :length] for t in part] for part in (other.keys, other.values)]
        self.prefix, self.n_prefix = (Shared(*both),) if both else (), length

    def move(self, rows: Tensor, slots: Tensor, used: int) -> None:
        """Move the first `used` keys and values of these rows (n,) to other slots (n,), in place: addresses stay."""
        for t in [*self.keys, *self.values]:
            t[slots, :, :used] = t[rows, :, :used]


class Prefill(Context):
    """Whole prompts on their way into a cache: row i goes to the slots where source == i.

    slots, source, lengths (n,) int64: with slots [4, 0, 7] and source [0, 0, 1], the first prompt is computed once and
    stored in slots 4 and 0 (several samples of one prompt), the second in slot 7. The last hidden states come out as
    (n, 1, D): of the last token of each slot's prompt. keeps: nothing is stored in slots, `kept` has the prompts' keys
    and values instead, a layer (prompts, K, width, hd) each.
    """

    def __init__(self, cache: KVCache, slots: Tensor, source: Tensor, lengths: Tensor, width: int, keeps: bool = False):
        super().__init__(torch.arange(cache.n_prefix, cache.n_prefix + width, device=cache.device)[None],
                         cache.n_prefix + width)
        self.cache, self.slots, self.source, self.last, self.behind = cache, slots, source, lengths - 1, cache.prefix
        self.long = cache.long
        self.kept: tuple[list[Tensor], list[Tensor]] | None = ([], []) if keeps else None

    def read(self, layer: int, x: Tensor) -> Tensor:
        return x[self.source, self.last][:, None] if layer == len(self.cache.keys) - 1 else x

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        for i, (t, cache) in enumerate(((k, self.cache.keys), (v, self.cache.values))):
            if self.kept:
                self.kept[i].append(t.contiguous())  # not a view of all that the linear made
            else:
                cache[layer][self.slots, :, : t.shape[2]] = t[self.source]
        return k, v


class Decode(Context):
    """One new token for each of the slots 0..B-1; slot b's goes to own index `index[b]` (B,).

    used: own keys that any of these rows looks at; a host number, so that no tensor has to be read. Behind a prefix of
    P = 10, index [3, 0] and used 4: slot 0 stands at position 13, writes its key to own index 3 and sees the prefix and
    own keys 0-3; slot 1 stands at position 10, writes to 0 and sees the prefix and itself; 1-3 are masked for it.
    prompts: more keys in front of some rows' own, which then stand `apart` (B,) positions farther behind.
    """

    def __init__(self, cache: KVCache, index: Tensor, used: int, apart: Tensor, prompts: Sequence[Shared] = ()):
        super().__init__((index + apart)[:, None] + cache.n_prefix, cache.n_prefix + used)
        self.cache, self.used, self.index, self.behind = cache, used, index, (*cache.prefix, *prompts)
        self.long = cache.long
        self.rows = torch.arange(len(index), device=index.device)

    def own_positions(self, n: int) -> Tensor:
        return self.index[:, None]

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        B = k.shape[0]
        keys, values = self.cache.keys[layer][:B], self.cache.values[layer][:B]  # (B, K, length, hd): views
        keys[self.rows, :, self.index], values[self.rows, :, self.index] = k[:, :, 0], v[:, :, 0]
        return keys[:, :, : self.used], values[:, :, : self.used]


def keys_can_be_shared(config, n_keys: int) -> bool:
    """Can a row's keys lie in several places? Not where scores depend on where a key stands, but for its rope."""
    return not config.attn_cap and not config.alibi and all(w is None or w >= n_keys for w in config.windows)


def choose_slots(config, dtype: torch.dtype, device: torch.device, slots: int | None, max_len: int) -> int:
    """The slots asked for, or as many as half of the free memory holds. Raises ValueError if they cannot fit."""
    row = max_len * KVCache.bytes_a_token(config, dtype)
    free = free_memory(device)
    if slots is None:
        return MOST_SLOTS if free is None else max(1, min(MOST_SLOTS, free // 2 // row))
    if free is not None and slots * row > free:
        fits = f"slots={free // row} fits" if free >= row else f"max_len={free // (row // max_len)} fits one slot"
        raise ValueError(f"slots={slots} of max_len={max_len} need {slots * row / 2**30:.1f} GiB of cache, but "
                         f"{device} has {free / 2**30:.1f} GiB free: {fits}")
    return slots
