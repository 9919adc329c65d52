"""Where the keys a query may see come from. The decoder asks its context; it never knows which kind it has.

`Causal`: whole rows at once, nothing kept (training, scoring). `KVCache`: keys of earlier tokens kept, with a prefix
stored once for all rows (sampling). Neither knows about slots, stopping or prompts: that is the sampler's.
"""

import torch
from torch import Tensor

from kernels.attention import attention


def visible(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """(B, T) query and (S,) key positions -> (B, T, S) bool: key j is seen from position i iff i - window < j <= i.

    window = 2, queries [[3]], keys [0 1 2 3 4] -> [[[False False True True False]]]: two keys, itself included.
    """
    q, k = queries[:, :, None], keys[None, None]
    seen = k <= q
    return seen if window is None else seen & (k > q - window)


class Causal:
    """Rows of `length` tokens that start at position 0 and see what stands before them. Padding goes to the right."""

    def __init__(self, length: int, device: torch.device):
        self.positions = torch.arange(length, device=device)[None]  # (1, T)
        self.key_positions = self.positions[0]
        self._masks: dict[int | None, Tensor] = {}

    def mask(self, window: int | None) -> Tensor:
        if window not in self._masks:  # layers share it: built once a forward for each window
            self._masks[window] = visible(self.positions, self.key_positions, window)
        return self._masks[window]

    def keys_and_values(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        return k, v, None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float, window: int | None,
               slopes: Tensor | None) -> Tensor:
        """q (B, H, T, hd) and this forward's k, v (B, K, T, hd) -> (B, H, T, hd)."""
        k, v, prefix = self.keys_and_values(layer, k, v)
        bias = None if slopes is None else slopes[:, None].to(q) * self.key_positions  # (H, P+S)
        return attention(q, k, v, self.mask(window), scale, cap, prefix, bias)


class KVCache(Causal):
    """Keys and values of `rows` rows, `length` own tokens each, and at most one prefix that all rows share.

    Row b's own token i stands at position P + i. Call `expect` before each forward: it says where the new tokens go.
    Memory: 2 * layers * rows * K * length * hd numbers. Zeroed, for a masked NaN would still poison a weighted sum.
    """

    def __init__(self, config, rows: int, length: int, device: torch.device, dtype: torch.dtype):
        shape = (rows, config.n_kv, length, config.head_dim)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layers)]
        self.length = length
        self.prefix: list[tuple[Tensor, Tensor]] = []  # a layer: (K, P, hd) twice
        self.n_prefix = 0

    def share(self, other: "KVCache", length: int) -> None:
        """Take the first `length` tokens of other's row 0 as the prefix of all rows: views, no copy."""
        self.prefix = [(k[0, :, :length], v[0, :, :length]) for k, v in zip(other.keys, other.values, strict=True)]
        self.n_prefix = length

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these (n,), in this order. Copies what stays: worth it when much goes."""
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]

    def expect(self, starts: Tensor, n_new: int, used: int) -> None:
        """The next forward brings n_new tokens a row, row b's first at own index starts[b] (B,).

        used: own keys in use after it, over all rows; a host number, so that no tensor has to be read.
        """
        own = starts[:, None] + torch.arange(n_new, device=starts.device)  # (B, T)
        self._index = own[:, None, :, None]
        self._used = used
        self.positions = own + self.n_prefix
        self.key_positions = torch.arange(self.n_prefix + used, device=starts.device)
        self._masks = {}

    def keys_and_values(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        keys, values = self.keys[layer], self.values[layer]  # (B, K, length, hd)
        index = self._index.expand_as(k)
        keys.scatter_(2, index, k)
        values.scatter_(2, index, v)
        prefix = self.prefix[layer] if self.prefix else None
        return keys[:, :, : self._used], values[:, :, : self._used], prefix
