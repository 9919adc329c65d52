"""Where the keys a query may see come from. The decoder asks its context; it never knows which kind it has.

`Causal`: whole rows, nothing kept (scoring). `Prefill` and `Decode` write into a `KVCache` and read from it (sampling).
star/batch has one more, for training. None of them knows about stopping or prompts: that is the sampler's.
"""

import os
from pathlib import Path

import torch
from torch import Tensor

from kernels.attention import attention, causal_attention


def visible(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """(B, T) query and (S,) key positions -> (B, T, S) bool: key j is seen from position i iff i - window < j <= i.

    window = 2, queries [[3]], keys [0 1 2 3 4] -> [[[False False True True False]]]: two keys, itself included.
    """
    q, k = queries[:, :, None], keys[None, None]
    seen = k <= q
    return seen if window is None else seen & (k > q - window)


class Causal:
    """Rows of T tokens that start at position 0 and see what stands before them. Padding goes to the right."""

    def __init__(self, positions: Tensor, n_keys: int):
        self.positions = positions  # (B or 1, T)
        self.n_keys = n_keys  # of positions 0, 1, ...
        self._masks: dict[int | None, Tensor] = {}

    @classmethod
    def rows(cls, length: int, device: torch.device) -> "Causal":
        return cls(torch.arange(length, device=device)[None], length)

    def keys_and_values(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """(keys, values, prefix) that the queries of this forward meet."""
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

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float, window: int | None,
               slopes: Tensor | None) -> Tensor:
        """q (B, H, T, hd) and this forward's k, v (B, K, T, hd) -> (B, H, T, hd)."""
        k, v, prefix = self.keys_and_values(layer, k, v)
        whole = k.shape[2] == q.shape[2] > 1 and prefix is None  # each row from its first token on
        plain = not cap and slopes is None and (window is None or window >= q.shape[2])
        if whole and plain and (q.dtype.itemsize >= 4 or q.is_cuda):
            return causal_attention(q, k, v, scale)
        return attention(q, k, v, self.mask(q, scale, window, slopes), scale, cap, prefix)


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

    def share(self, other: "KVCache") -> None:
        """Take other's row 0 as the prefix of all rows: views, no copy."""
        self.prefix = [(k[0], v[0]) for k, v in zip(other.keys, other.values, strict=True)]
        self.n_prefix = other.length

    def keep(self, rows: Tensor) -> None:
        """Move these rows (n,) to the slots 0..n-1, in place: addresses stay."""
        for t in [*self.keys, *self.values]:
            t[: len(rows)] = t[rows]


class Prefill(Causal):
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

    def keys_and_values(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        width = k.shape[2]
        self.cache.keys[layer][self.slots, :, :width] = k[self.source]
        self.cache.values[layer][self.slots, :, :width] = v[self.source]
        return k, v, self.cache.prefix[layer] if self.cache.prefix else None


class Decode(Causal):
    """One new token for each of the slots 0..B-1; slot b's goes to own index `index[b]` (B,).

    used: own keys that any of these rows looks at; a host number, so that no tensor has to be read.
    """

    def __init__(self, cache: KVCache, index: Tensor, used: int):
        super().__init__(index[:, None] + cache.n_prefix, cache.n_prefix + used)
        self.cache, self.used, self.index = cache, used, index
        self.rows = torch.arange(len(index), device=index.device)

    def keys_and_values(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        B = k.shape[0]
        keys, values = self.cache.keys[layer][:B], self.cache.values[layer][:B]  # (B, K, length, hd): views
        keys[self.rows, :, self.index], values[self.rows, :, self.index] = k[:, :, 0], v[:, :, 0]
        prefix = self.cache.prefix[layer] if self.cache.prefix else None
        return keys[:, :, : self.used], values[:, :, : self.used], prefix


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated on this device now; None where that cannot be told."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    if device.type != "cpu":
        return None
    found = []
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if meminfo.is_file():
        found += [int(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines()
                  if line.startswith("MemAvailable")]
    elif hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limit = group / "memory.max"  # a container may have less than its machine
    if limit.is_file() and limit.read_text().strip().isdecimal():
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        found.append(int(limit.read_text()) - used + int(stat["inactive_file"]))  # file pages give way
    return min(found, default=None)
