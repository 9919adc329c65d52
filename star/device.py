"""What a device is and has: which one to take, in which dtype to compute there, how much memory is free.

To torch an AMD card is a CUDA device (`torch.version.hip` tells), and an Apple GPU is "mps". We have run neither: each
has to prove itself first (star/proof). Serves whoever allocates (star/cache, star/run). It allocates nothing itself.
"""

import gc
import os
from pathlib import Path

import torch

from star import proof

OLDEST = (2, 11)  # of torch
KNOWN = "give auto, cpu, cuda (an AMD card too), cuda:1 and so on, or mps"
FULL = ("out of memory", "can't allocate memory", "not enough memory", "status_alloc_failed", "invalid buffer size")
BROKEN = ("CUDA error", "CUDA driver error", "HIP error")


def choose_device(name: str) -> torch.device:
    """The device of that name, made the current one; "auto" is CUDA, else MPS, if there is one. Of several ranks each
    takes the CUDA device of its number on the host.

    Raises ValueError for a device that is not there or cannot be used, and for a torch that is too old.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST:  # not by version order: 2.11.0a0 will do
        least = ".".join(map(str, OLDEST))
        raise ValueError(f"torch is {torch.__version__}, and at least {least} is needed: pip install 'torch>={least}'")
    try:
        device = torch.device(_best() if name == "auto" else name)
    except RuntimeError:
        raise ValueError(f"--device is {name!r}, which is no device: {KNOWN}") from None
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type not in ("cuda", "mps"):
        raise ValueError(f"--device is {name!r}, which is not supported: {KNOWN}")
    try:
        device = _start(device) if device.type == "cuda" else _start_mps(device)
        if (device.type == "mps" or torch.version.hip) and (parts := proof.wrong(device)):
            raise RuntimeError(f"with torch {torch.__version__} {' and '.join(parts)} are not what a CPU computes")
    except (RuntimeError, AssertionError, TypeError) as e:  # in use by others, or of a kind that torch has no code for
        why = f"{first_line(e)}; --device cpu can"
        raise ValueError(f"--device is {name!r}, which cannot be used here: {why}") from None
    return device


def _best() -> str:
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def _start(device: torch.device) -> torch.device:
    """A CUDA device with its number, current from now on; it has computed something."""
    n, (rank, ranks) = torch.cuda.device_count(), local_ranks()
    index = rank if device.index is None else device.index
    if n == 0:
        built = torch.version.cuda or torch.version.hip
        raise RuntimeError("torch sees no CUDA device" if built else "this torch was built without CUDA")
    if ranks > 1 and device.index is not None:
        raise RuntimeError(f"it is one device, for {ranks} ranks of this host: give cuda, and each takes its own")
    if index >= n:
        many = f", and {ranks} ranks of this host want one each: lower --nproc-per-node" if ranks > 1 else ""
        raise RuntimeError(f"torch sees {n} CUDA device{'s' * (n > 1)}, the last is cuda:{n - 1}{many}")
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    # cuDNN's attention plans each new shape for a second, and comes first on an H100; training has new ones all along
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.ones(1, device=device).add_(1).item()
    return device


def _start_mps(device: torch.device) -> torch.device:
    """An Apple GPU, of which a machine has one; it has computed something."""
    if not torch.backends.mps.is_available():
        built = torch.backends.mps.is_built()
        raise RuntimeError("torch sees no Apple GPU that it can use" if built else "this torch was built without MPS")
    if device.index:
        raise RuntimeError("there is one MPS device, mps")
    device = torch.device("mps", 0)  # as its tensors call it
    torch.ones(1, device=device).add_(1).item()
    return device


def all_ranks() -> int:
    """How many processes make this run together, as torchrun says."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def local_ranks() -> tuple[int, int]:
    """(number of this process among the ranks of its host, how many these are)."""
    if all_ranks() == 1:  # whoever set the others meant something else
        return 0, 1
    return tuple(int(os.environ.get(name) or n) for name, n in (("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1)))


def failure(e: RuntimeError) -> str | None:
    """What to say of a device that failed, vanished in the middle of its work, or lacks an operation; None for any
    other error."""
    said = first_line(e)
    if isinstance(e, NotImplementedError) and "MPS" in said:
        return f"this torch lacks an operation ({said}): take --device cpu, or set PYTORCH_ENABLE_MPS_FALLBACK=1"
    if isinstance(e, torch.AcceleratorError) or said.startswith(BROKEN):
        tool = "rocm-smi" if torch.version.hip else "nvidia-smi"
        look = f": look at it with {tool}" if torch.cuda.is_available() else ""
        return f"the device failed ({said}){look}"
    return None


def out_of_memory(e: BaseException) -> bool:
    """Did the device, or the CPU's memory, have no room for a tensor?"""
    said = str(e).lower()
    return isinstance(e, torch.OutOfMemoryError | MemoryError) or (
        isinstance(e, RuntimeError) and any(words in said for words in FULL))


def let_go(device: torch.device) -> None:
    """Give back what the device's allocator holds and nobody uses."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def device_name(device: torch.device) -> str | None:
    """What its maker calls it; None of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    known = device.type == "mps" and hasattr(torch.backends.mps, "get_name")  # torch 2.11 may not say
    return torch.backends.mps.get_name() if known else None


def first_line(e: BaseException) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0]


def choose_dtype(device: torch.device, stored: torch.dtype) -> torch.dtype:
    """bfloat16 where the checkpoint has 16 bits and the device multiplies it, else float32.

    Of float16 too: as many bytes, and training in it would need scaled losses; float32 would be twice the memory and,
    without tensor cores, many times the time.
    """
    if device.type == "mps":
        fast = torch.backends.mps.is_macos_or_newer(14, 0)
    else:
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast and stored in (torch.bfloat16, torch.float16) else torch.float32


def widest(device: torch.device) -> torch.dtype:
    """The dtype to add up long sums in: Apple's GPUs have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def check_dtype(device: torch.device, dtype: torch.dtype) -> None:
    """ValueError if the device cannot hold numbers of this dtype."""
    if device.type == "mps" and dtype == torch.float64:
        raise ValueError("an Apple GPU (mps) has no float64: take --dtype float32, or --device cpu")


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated on this device now; None where that cannot be told."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    if device.type == "mps":  # a share of the memory that it has in common with the CPU
        return max(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory(), 0)
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
    return min(found) // local_ranks()[1] if found else None  # ranks of a host have it together
