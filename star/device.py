"""What a device is and has: which one to take, in which dtype to compute there, how much memory is free.

Serves whoever allocates (star/cache, star/run). It allocates nothing itself.
"""

import os
from pathlib import Path

import torch


def choose_device(name: str) -> torch.device:
    """ "auto" is CUDA if there is one. Raises ValueError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"--device is {name!r}, which cannot be used here: {str(e).splitlines()[0]}") from None
    return torch.device(name)


def choose_dtype(device: torch.device, stored: torch.dtype) -> torch.dtype:
    """float32, or bfloat16 where the checkpoint is stored so and the device multiplies it."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast and stored == torch.bfloat16 else torch.float32


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
