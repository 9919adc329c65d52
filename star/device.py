"""What a device is and has: which one to take, in which dtype to compute there, how much memory is free.

Serves whoever allocates (star/cache, star/run). It allocates nothing itself.
"""

import gc
import os
from pathlib import Path

import torch

OLDEST = (2, 11)  # of torch
KNOWN = "give auto, cpu, cuda, or cuda:1 and so on"


def choose_device(name: str) -> torch.device:
    """The device of that name, made the current one; "auto" is CUDA if there is one.

    Raises ValueError for a device that is not there or cannot be used, and for a torch that is too old.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST:  # not by version order: 2.11.0a0 will do
        least = ".".join(map(str, OLDEST))
        raise ValueError(f"torch is {torch.__version__}, and at least {least} is needed: pip install 'torch>={least}'")
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError:
        raise ValueError(f"--device is {name!r}, which is no device: {KNOWN}") from None
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise ValueError(f"--device is {name!r}, which is not supported: {KNOWN}")
    try:
        return _start(device)
    except (RuntimeError, AssertionError) as e:  # in use by others only, or of a kind that this torch has no code for
        why = f"{first_line(e)}; --device cpu can"
        raise ValueError(f"--device is {name!r}, which cannot be used here: {why}") from None


def _start(device: torch.device) -> torch.device:
    """A CUDA device with its number, current from now on; it has computed something."""
    n = torch.cuda.device_count()
    index = device.index or 0
    if n == 0:
        built = torch.version.cuda or torch.version.hip
        raise RuntimeError("torch sees no CUDA device" if built else "this torch was built without CUDA")
    if index >= n:
        raise RuntimeError(f"torch sees {n} CUDA device{'s' * (n > 1)}, the last is cuda:{n - 1}")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    # cuDNN's attention plans each new shape for a second, and comes first on an H100; training has new ones all along
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.ones(1, device=device).add_(1).item()
    return device


def failure(e: RuntimeError) -> str | None:
    """What to say of a CUDA device that failed or vanished in the middle of its work; None for any other error."""
    if isinstance(e, torch.AcceleratorError) or str(e).startswith(("CUDA error", "CUDA driver error")):
        return f"the device failed ({first_line(e)}): look at it with nvidia-smi"
    return None


def out_of_memory(e: BaseException) -> bool:
    """Did the device, or the CPU's memory, have no room for a tensor?"""
    said = str(e).lower()
    return isinstance(e, torch.OutOfMemoryError | MemoryError) or (
        isinstance(e, RuntimeError) and ("can't allocate memory" in said or "not enough memory" in said))


def let_go(device: torch.device) -> None:
    """Give back what the device's allocator holds and nobody uses."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def first_line(e: BaseException) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0]


def choose_dtype(device: torch.device, stored: torch.dtype) -> torch.dtype:
    """bfloat16 where the checkpoint has 16 bits and the device multiplies it, else float32.

    Of float16 too: as many bytes, and training in it would need scaled losses; float32 would be twice the memory and,
    without tensor cores, many times the time.
    """
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast and stored in (torch.bfloat16, torch.float16) else torch.float32


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
