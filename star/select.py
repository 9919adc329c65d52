"""Which of the right rationales are trained on: repeats go, and no problem takes more than its share.

It sees rationales that the filter of Algorithm 1 has passed (star/loop), and changes none.
"""

from collections.abc import Sequence

from star.problem import Generation


def select(right: Sequence[Generation], dedup: bool, cap: int | None) -> list[Generation]:
    """A part of these rationales, in their order.

    dedup: of equal texts for one problem one is kept. cap: at most so many a problem. The newest are kept, and of one
    iteration the first: rationales of iterations [1 1 2 2] are asked for in the order [2 2 1 1].
    """
    newest_first = sorted(range(len(right)), key=lambda i: -right[i].iteration)  # stable: within an iteration as given
    chosen, seen, taken = set(), set(), {}
    for i in newest_first:
        g = right[i]
        text = (g.problem, g.text.strip())
        if (dedup and text in seen) or (cap is not None and taken.get(g.problem, 0) >= cap):
            continue
        seen.add(text)
        taken[g.problem] = taken.get(g.problem, 0) + 1
        chosen.add(i)
    return [right[i] for i in sorted(chosen)]
