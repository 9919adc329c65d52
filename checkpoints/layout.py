"""How a family's files name and order what the decoder holds: the file's words, its roots, the order of its rows."""

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """How a family's files name and order what the decoder holds."""

    names: dict[str, str]  # the decoder's word -> the file's word
    # (what may stand before all names but the head's, the head's name); the first is what does
    roots: tuple[tuple[str, str], ...] = (("model.", "lm_head"),)
    module_root: str = ""  # what stands there in the reference's memory, and in adapters, where it differs
    buffers: str = r"\.rotary_emb\.inv_freq$"  # constants in older files: no weights, and not written back
    ignored: str = "(?!)"  # weights that no text model needs; written back as they are
    reordered: tuple[str, ...] = ()  # linears whose rows the file has in another order than the decoder
    heads: tuple[int, ...] = ()  # of these, block i of head_dim rows here is block heads[i] in the file
    head_dim: int = 0
    pairs: int = 0  # so many rows of a block are turned in pairs that are neighbours in the file, (2i, 2i + 1)

    def name(self, canonical: str) -> str:
        """The decoder's name -> the file's: layers.3.attn_norm.weight -> model.layers.3.input_layernorm.weight."""
        first, _, rest = canonical.partition(".")
        root, head = self.roots[0]
        if first == "lm_head" or canonical == "embed_tokens.bias":  # that of a head that is the embedding
            return f"{head}.{rest}" if rest else head
        return root + ".".join(self.names.get(word, word) for word in canonical.split("."))

    def renamed(self, names: dict[str, str]) -> "Layout":
        return replace(self, names=self.names | names)

    def beside_a_tower(self) -> "Layout":
        """This layout in the files of a model that sees too: the root of the Hub and transformers 5, that of 4.52."""
        return replace(self, roots=(*self.roots, ("language_model.model.", "language_model.lm_head"),
                                    ("model.language_model.", "lm_head")),
                       ignored=r"^(model\.)?(vision_tower|multi_modal_projector)\.")

    def rooted(self, tensors: Collection[str]) -> "Layout":
        """This layout with the root and the name of the head that these names have."""
        def absent(root: tuple[str, str]) -> tuple[bool, bool]:
            names = replace(self, roots=(root,))
            return names.name("embed_tokens.weight") not in tensors, names.name("lm_head.weight") not in tensors

        return replace(self, roots=tuple(sorted(self.roots, key=absent)))

    def order(self, canonical: str) -> Tensor | None:
        """(rows,) int64: row i of this tensor is the file's row order[i]. None: the rows stand as they are.

        heads (0, 2, 1) with head_dim 2: rows 0 1 4 5 2 3. heads (0, 1), head_dim 5 and pairs 4: 0 2 1 3 4 5 7 6 8 9.
        """
        if not set(self.reordered) & set(canonical.split(".")):
            return None
        blocks, places = torch.tensor(self.heads)[:, None] * self.head_dim, torch.arange(self.head_dim)
        turned = places[: self.pairs]
        return (blocks + torch.cat([turned[::2], turned[1::2], places[self.pairs :]])).flatten()

    def rows_for_file(self, canonical: str, rows: Tensor) -> Tensor:
        """The rows of this tensor, or of its adapter's B, in the file's order."""
        order = self.order(canonical)
        return rows if order is None else rows[torch.argsort(order)]

    def module_names(self, part: str) -> list[str]:
        """A module's possible paths in adapters: layers.0.self_attn.q_proj -> model.layers.0.self_attn.q_proj, ...

        The first is that in the reference's memory, which PEFT writes. It changed between versions for some families.
        """
        tail = self.name(part).removeprefix(self.roots[0][0])
        return [root + tail for root in dict.fromkeys([self.module_root, *(root for root, _ in self.roots)]) if root]
