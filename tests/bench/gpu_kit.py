"""What the stages of tests/bench/gpu.py share: a `Kit` with the device, its clock, its ceilings and where figures go.

And the first stage, `facts`, which measures the ceilings. Models that are not shipped have a published shape and random
weights, made on the device: speed does not depend on what they say. With --small everything is a fraction of its size.
"""

import contextlib
import importlib
import inspect
import json
import math
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

from star.decoder import Decoder, DecoderConfig

GIB = 2**30
SHAPES = {
    "SmolLM2-135M": DecoderConfig(49_152, 576, 30, 9, 3, 64, 1536, tied=True),
    "Mistral-7B": DecoderConfig(32_000, 4096, 32, 32, 8, 128, 14_336),
    "Qwen3-0.6B": DecoderConfig(151_936, 1024, 28, 16, 8, 128, 3072, tied=True, qk_norm=True),
}

SAMPLINGS = {"greedy": {}, "T 0.9": {"temperature": 0.9},
             "T 0.9, top-k 5, top-p 0.9": {"temperature": 0.9, "top_k": 5, "top_p": 0.9}}


@dataclass
class Kit:
    """What a stage works with: the device, its ceilings as `facts` measured them, and where figures go."""

    device: torch.device
    small: bool
    rows: TextIO
    ceilings: dict[str, float] = field(default_factory=dict)  # copy: bytes/s, matmul: operations/s

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.cuda else torch.float32

    def note(self, what: str, figures: dict[str, Any], ok: bool | None = None) -> None:
        """One row: written down at once, so that it is there whatever happens to the stage. ok: of a check."""
        row = {"what": what, **figures} | ({} if ok is None else {"ok": bool(ok)})
        self.rows.write(json.dumps(row) + "\n")
        self.rows.flush()
        said = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
                if k != "what" and not isinstance(v, list))
        print(f"  {what}: {', '.join(said)}", flush=True)

    def attempt(self, what: str, f: Callable, *args) -> None:
        """Note what f(*args) returns, (figures, ok or None); or why it failed, and the stage goes on."""
        try:
            self.note(what, *f(*args))
        except Exception as e:
            traceback.print_exc()
            where = traceback.extract_tb(e.__traceback__)[-1]
            said = (str(e).strip().splitlines() or [""])[0][:200]
            self.note(what, {"error": f"{type(e).__name__}: {said} ({Path(where.filename).name}:{where.lineno})"},
                      ok=False)
        if self.cuda:
            torch.cuda.empty_cache()

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, f: Callable[[], Any], repeat: int = 1) -> float:
        """Of one call among `repeat`: by events on a GPU, else by the clock."""
        self.wait()
        if not self.cuda:
            began = time.perf_counter()
            for _ in range(repeat):
                f()
            return (time.perf_counter() - began) / repeat
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        for _ in range(repeat):
            f()
        ended.record()
        ended.synchronize()
        return began.elapsed_time(ended) / 1e3 / repeat

    def share(self, ceiling: str, rate: float) -> float | None:
        return rate / self.ceilings[ceiling] if ceiling in self.ceilings else None

    def peak(self) -> float | None:
        """GiB of the device at the most since the last call; None where nobody counts."""
        if not self.cuda:
            return None
        most = torch.cuda.max_memory_allocated(self.device) / GIB
        torch.cuda.reset_peak_memory_stats(self.device)
        return most

    def top(self, f: Callable[[], Any], steps: int = 1) -> list[tuple[str, float, float]]:
        """(kernel, ms a step, launches a step) of all of f(), the longest first; operations where it is a CPU.

        Nothing where the profiler cannot look into the device.
        """
        kind = "CUDA" if self.cuda else "CPU"
        activity, kind = getattr(torch.profiler.ProfilerActivity, kind), getattr(torch.autograd.DeviceType, kind)
        if activity not in torch.profiler.supported_activities():
            return []
        with torch.profiler.profile(activities=[activity]) as profile:
            f()
            self.wait()
        took = [(e.key, e.self_device_time_total if self.cuda else e.self_cpu_time_total, e.count)
                for e in profile.key_averages() if e.device_type == kind]
        return [(key[:120], us / 1e3 / steps, count / steps) for key, us, count in sorted(took, key=lambda e: -e[1])]

    def model(self, name: str, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Decoder:
        """A decoder of this published shape."""
        c = SHAPES[name]
        if self.small:
            c = replace(c, vocab=512, d_model=64, n_layers=2, head_dim=16, d_ff=128)
        return self.random(c, device or self.device, dtype or self.dtype)

    def random(self, config: DecoderConfig, device: torch.device, dtype: torch.dtype) -> Decoder:
        """A decoder with random weights, drawn where they will lie."""
        with torch.device("meta"):
            model = Decoder(config).to(dtype)
        generator = torch.Generator(device).manual_seed(0)
        for module in list(model.modules()):
            for key, p in list(module.named_parameters(recurse=False)):
                t = torch.ones(p.shape, dtype=dtype, device=device)
                if p.dim() > 1:
                    t.normal_(0, p.shape[-1] ** -0.5, generator=generator)
                setattr(module, key, nn.Parameter(t))
        return model


def off(mine: torch.Tensor, true: torch.Tensor) -> float:
    """The largest difference, over the largest true value; infinite where one is not a number."""
    true = true.double().cpu()
    error = ((mine.double().cpu() - true).abs().max() / true.abs().max().clamp(min=1e-30)).item()
    return error if math.isfinite(error) else math.inf


def facts(kit: Kit) -> None:
    """What is here, and its ceilings: every share in the tables is one of these."""
    packages = {}
    for name in ("numpy", "safetensors", "sentencepiece", "tqdm", "regex", "jinja2", "matplotlib"):
        with contextlib.suppress(ImportError):
            packages[name] = getattr(importlib.import_module(name), "__version__", "yes")
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "CUDA": torch.version.cuda}
    if kit.cuda:
        p, cudnn = torch.cuda.get_device_properties(kit.device), torch.backends.cudnn.version()
        card = {"card": p.name, "capability": f"{p.major}.{p.minor}", "GiB": p.total_memory / GIB, "cuDNN": cudnn,
                "free GiB": torch.cuda.mem_get_info(kit.device)[0] / GIB, "processors": p.multi_processor_count,
                "L2 MiB": getattr(p, "L2_cache_size", 0) / 2**20}
    else:
        card = {"card": f"CPU, {torch.get_num_threads()} threads"}
    kit.note("versions", card | versions | packages)
    with contextlib.suppress(ImportError):
        from torch.nn.attention import varlen  # only where CUDA may be
        kit.note("varlen_attn", {"takes": ", ".join(inspect.signature(varlen.varlen_attn).parameters)})

    size = 2**22 if kit.small else 2**30
    a, b = (torch.zeros(size, dtype=torch.uint8, device=kit.device) for _ in range(2))
    kit.seconds(lambda: b.copy_(a), 3)
    least = min(kit.seconds(lambda: b.copy_(a), 10) for _ in range(3))
    kit.note("copy", {"GB/s": 2e-9 * size / least, "GB": size / 1e9})  # read and written
    n = 512 if kit.small else 8192 if kit.cuda else 2048
    a, b = (torch.randn(n, n, device=kit.device, dtype=kit.dtype) for _ in range(2))
    kit.seconds(lambda: a @ b, 3)
    kit.note("matmul", {"TF/s": 2e-12 * n**3 / min(kit.seconds(lambda: a @ b, 10) for _ in range(3)), "n": n,
                        "dtype": str(kit.dtype)})
    one = torch.zeros(1, device=kit.device)

    def launches() -> None:
        for _ in range(1000):
            one.add_(1)

    kit.seconds(launches)
    figures = {"eager us": 1e3 * kit.seconds(launches)}
    if kit.cuda:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            launches()
        graph.replay()
        figures["in a graph us"] = 1e3 * kit.seconds(graph.replay)
    kit.note("launch", figures)
