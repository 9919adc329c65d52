"""Fast twins of slow formulas, each beside its plain reference. torch only: nothing here imports star."""

import torch


def nvidia(device: torch.device) -> bool:
    """May kernels be called by their own names there, and steps be recorded as graphs? AMD's cards are "cuda" too.

    They have both, but some cards lack some kernels, torch 2.11 computes NaN in one, and recording has been seen to
    hang, to crash and to allow what must not be (pytorch issues 155684 and 155720, pull 174105). Nobody measured it.
    """
    return device.type == "cuda" and torch.version.hip is None
