"""Where the keys a query may see come from. The decoder asks its `Context`; it never knows which kind it has.

`Causal`: whole rows, nothing kept (scoring). `Prefill` and `Decode` write into a `KVCache` and read from it (sampling).
star/batch has one more, `Packed`, for training. None of them knows about stopping or prompts: that is the sampler's.
"""

import torch
from torch import Tensor

from kernels.attention import attention, attention_behind, causal_attention
from star.device import free_memory

MOST_SLOTS = 512  # when slots are chosen: past this a step takes longer in proportion, or nearly


def visible(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """(B, T) query and (S,) key positions -> (B, T, S) bool: key j is seen from position i iff i - window < j <= i.

    window = 2, queries [[3]], keys [0 1 2 3 4] -> [[[False False True True False]]]: two keys, itself included.
    """
    q, k = queries[:, :, None], keys[None, None]
    seen = k <= q
    return seen if window is None else seen & (k > q - window)


class Context:
    """What a forward pass asks: which keys and values its queries meet, and which rows anything later reads.

    positions (B or 1, T): of the queries. n_keys: keys at the positions 0, 1, ... that they may see.
    """

    def __init__(self, positions: Tensor, n_keys: int):
        self.positions, self.n_keys = positions, n_keys
        self._masks: dict[int | str | None, Tensor] = {}

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """Take in this forward's k, v (B, K, T, hd); (keys, values, shared prefix) that its queries meet."""
        return k, v, None

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
        """(B or 1, 1, T, n): the mask's part for the last n keys, where there is no window and no alibi."""
        if "own" not in self._masks:
            seen = visible(self.positions, torch.arange(self.n_keys - n, self.n_keys, device=like.device), None)
            self._masks["own"] = torch.where(seen, like.new_zeros(()), float("-inf"))[:, None]
        return self._masks["own"]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float, window: int | None,
               slopes: Tensor | None) -> Tensor:
        """q (B, H, T, hd) and this forward's k, v (B, K, T, hd) -> (B, H, T, hd)."""
        k, v, prefix = self.update(layer, k, v)
        whole = k.shape[2] == q.shape[2] > 1  # each row from its first own token on
        plain = not cap and slopes is None and (window is None or window >= self.n_keys)
        if plain and prefix is not None:
            return attention_behind(q, k, v, scale, prefix, None if whole else self.own_mask(q, k.shape[2]))
        if plain and whole and (q.dtype.itemsize >= 4 or q.is_cuda):
            return causal_attention(q, k, v, scale)
        return attention(q, k, v, self.mask(q, scale, window, slopes), scale, cap, prefix)


class Causal(Context):
    """Whole rows of `length` tokens that start at position 0 and see what stands before them. Pads stand on the right.
    """

    def __init__(self, length: int, device: torch.device):
        super().__init__(torch.arange(length, device=device)[None], length)


class KVCache:
    """Keys and values of `slots` rows, `length` own tokens each, and at most one prefix that all rows share.

    Slot b's own token i stands at position P + i. Zeroed, for a masked NaN would still poison a weighted sum.
    """

    def __init__(self, config, slots: int, length: int, device: torch.device, dtype: torch.dtype):
        shape = (slots, config.n_kv, length, config.head_dim)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layers)]
        self.slots, self.length, self.device = slots, length, device
        self.prefix: list[tuple[Tensor, Tensor]] = []  # a layer: (K, P, hd) twice
        self.n_prefix = 0

    @staticmethod
    def bytes_a_token(config, dtype: torch.dtype) -> int:
        """Keys and values of one token in all layers."""
        return 2 * config.n_layers * config.n_kv * config.head_dim * dtype.itemsize

    def use_prefix(self, other: "KVCache | None") -> None:
        """Take other's row 0 as the prefix of all rows: views, no copy. None: no prefix."""
        self.prefix = [] if other is None else [(k[0], v[0]) for k, v in zip(other.keys, other.values, strict=True)]
        self.n_prefix = 0 if other is None else other.length

    def move(self, rows: Tensor) -> None:
        """Move these rows (n,) to the slots 0..n-1, in place: addresses stay."""
        for t in [*self.keys, *self.values]:
            t[: len(rows)] = t[rows]


class Prefill(Context):
    """Whole prompts on their way into a cache: row i goes to the slots where source == i.

    slots, source, lengths (n,) int64: with slots [4, 0, 7] and source [0, 0, 1], the first prompt is computed once and
    stored in slots 4 and 0 (several samples of one prompt), the second in slot 7. The last hidden states come out as
    (n, 1, D): of the last token of each slot's prompt.
    """

    def __init__(self, cache: KVCache, slots: Tensor, source: Tensor, lengths: Tensor, width: int):
        super().__init__(torch.arange(cache.n_prefix, cache.n_prefix + width, device=cache.device)[None],
                         cache.n_prefix + width)
        self.cache, self.slots, self.source, self.last = cache, slots, source, lengths - 1

    def read(self, layer: int, x: Tensor) -> Tensor:
        return x[self.source, self.last][:, None] if layer == len(self.cache.keys) - 1 else x

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        width = k.shape[2]
        self.cache.keys[layer][self.slots, :, :width] = k[self.source]
        self.cache.values[layer][self.slots, :, :width] = v[self.source]
        return k, v, self.cache.prefix[layer] if self.cache.prefix else None


class Decode(Context):
    """One new token for each of the slots 0..B-1; slot b's goes to own index `index[b]` (B,).

    used: own keys that any of these rows looks at; a host number, so that no tensor has to be read. Behind a prefix of
    P = 10, index [3, 0] and used 4: slot 0 stands at position 13, writes its key to own index 3 and sees the prefix and
    own keys 0-3; slot 1 stands at position 10, writes to 0 and sees the prefix and itself; 1-3 are masked for it.
    """

    def __init__(self, cache: KVCache, index: Tensor, used: int):
        super().__init__(index[:, None] + cache.n_prefix, cache.n_prefix + used)
        self.cache, self.used, self.index = cache, used, index
        self.rows = torch.arange(len(index), device=index.device)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        B = k.shape[0]
        keys, values = self.cache.keys[layer][:B], self.cache.values[layer][:B]  # (B, K, length, hd): views
        keys[self.rows, :, self.index], values[self.rows, :, self.index] = k[:, :, 0], v[:, :, 0]
        prefix = self.cache.prefix[layer] if self.cache.prefix else None
        return keys[:, :, : self.used], values[:, :, : self.used], prefix


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
