"""A pretended CUDA on a CPU build of torch: real values, CUDA's rules.

    with pretended() as cuda:
        x = torch.ones(3, device="cuda")      # an ordinary tensor whose storage is marked: x.device is cuda:0
        x + torch.ones(3)                     # RuleBroken: host and device meet
        x.sum().item()                        # cuda.waits["item"] is 1; RuleBroken inside a recording

The project's own code runs unchanged. What comes of a marked tensor is marked, in the backward pass too. A recording
notes each operation by the addresses that it reads and writes, and has no effect; a replay runs them on the same
memory. What a recording made is spoilt after it and after each replay, as another graph of the same pool might do; and
memory from outside that is gone by then is found.

`pretended(kind="hip")` is an AMD card, on which nothing may be recorded; `pretended(kind="mps")` an Apple GPU, without
CUDA, float64, pinned memory and copies that nobody waits for. Neither says anything of what such a device computes.

It does not see which kernel runs, speed, streams, the allocator, or a device's rounding: tests/bench/gpu.py does.
"""

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from unittest import mock

import torch
import torch._dynamo  # torch's modes import it at first use, and must not do so while torch is patched
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from star import proof

READS = {"tolist", "numpy", "__array__"}  # functions that look at values and are no operation; `item` is one
FROM_HOST = {"tensor", "as_tensor", "asarray", "new_tensor"}
SHAPED_BY_VALUES = {"nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim", "bincount"}
BY_INDEX = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class FlashAttention:
    """Stands for the GPU's kernel, by the CPU's; refuses what that one refuses."""

    _schema = torch.ops.aten._scaled_dot_product_flash_attention.default._schema

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, dropout=0.0, causal=False, mask=False, *, scale=None) -> tuple:
        if q.dtype not in (torch.float16, torch.bfloat16) or q.shape[1] != k.shape[1] or q.shape[-1] % 8:
            raise RuleBroken(f"flash attention of {tuple(q.shape)}, {q.dtype}, to {k.shape[1]} key heads")
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, dropout, causal, scale=scale)
        none = out.new_empty(0)
        return out, lse, none, none, q.shape[2], k.shape[2], none, none, none  # as many as the schema says


STAND_INS = {"_scaled_dot_product_flash_attention": FlashAttention()}


def leaves(*trees) -> list:
    """What stands in nested lists, tuples and dictionaries. (torch's own walk is several times slower.)"""
    found = []
    for x in trees:
        if isinstance(x, tuple | list):
            found += leaves(*x)
        elif isinstance(x, dict):
            found += leaves(*x.values())
        else:
            found.append(x)
    return found


def changed(kind: type | tuple[type, ...], change: Callable, x):
    """x, its leaves of this kind changed."""
    if isinstance(x, kind):
        return change(x)
    if type(x) in (tuple, list):
        return type(x)([changed(kind, change, part) for part in x])
    if type(x) is dict:
        return {k: changed(kind, change, part) for k, part in x.items()}
    return x


class RuleBroken(AssertionError):
    """What a GPU would refuse, or replay wrongly. No RuntimeError: the project may answer those."""


def place(t: Tensor) -> torch.device | None:
    """The pretended device that a tensor lies on; None: on the host."""
    return None if t.is_meta else getattr(t.untyped_storage(), "pretended", None)


def put(t: Tensor, device: torch.device | None) -> Tensor:
    t.untyped_storage().pretended = device
    return t


class Pretended:
    """What the pretended driver knows, and what happened on it."""

    def __init__(self, devices: int, kind: str):
        self.devices, self.kind, self.current = devices, kind, 0  # kind: as torch names it
        self.recording: Graph | None = None
        self.made_on: torch.device | None = None  # where a factory at work makes its tensors
        self.waits, self.replays = Counter(), 0
        self.recordings: list[int] = []  # operations of each

    def wait(self, what: str) -> None:
        """The host looks at the device's values, or hands it some from memory that is not pinned."""
        if self.recording is not None:
            raise RuleBroken(f"{what} inside a recording")
        self.waits[what] += 1

    def device(self, name) -> torch.device | None:
        """A device as an argument may name it, with its number, if it is one of this kind."""
        try:
            found = torch.device(name) if isinstance(name, str | torch.device) else None
        except RuntimeError:
            return None
        if found is None or found.type != self.kind:
            return None
        index = self.current if found.index is None else found.index
        if index >= self.devices:
            raise torch.AcceleratorError("CUDA error: invalid device ordinal\nFor debugging consider ...")
        return torch.device(self.kind, index)


class Functions(TorchFunctionMode):
    """What Python asks for by name: a tensor's values, a copy of it elsewhere, a tensor made on a device."""

    def __init__(self, cuda: Pretended):
        super().__init__()
        self.cuda = cuda

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        on = place(args[0]) if args and isinstance(args[0], Tensor) else None
        if name in ("device", "_parse_to"):
            return func(*args, **kwargs)
        if name in ("to", "cpu", "cuda"):
            return self.move(func, name, on, args, kwargs)
        if on is not None and name in READS:
            self.cuda.wait(name)
        if name == "pin_memory":
            if self.cuda.kind == "mps":
                raise RuleBroken("memory is pinned for an Apple GPU")
            out = args[0].clone()
            out.untyped_storage().pinned = True
            return out
        return self.make(func, name, args, kwargs)

    def move(self, func: Callable, name: str, on: torch.device | None, args: tuple, kwargs: dict):
        """t.to(...), t.cpu(), t.cuda(): a copy if it changes the device, and a wait unless from pinned memory."""
        t, asked = args[0], [*args[1:], *kwargs.values()]
        devices = [name] * (name != "to") + [v for v in asked if isinstance(v, str | torch.device)]
        others = [v for v in asked if isinstance(v, Tensor)]
        to = self.cuda.device(devices[-1]) if devices else place(others[0]) if others else on
        if name == "cuda":
            func, args = torch.Tensor.to, (t, "cpu")
        args, kwargs = self.on_host((args, kwargs))
        out = func(*args, **kwargs)
        if to == on:
            return out
        if self.cuda.kind == "mps" and kwargs.get("non_blocking"):
            raise RuleBroken("Metal reads the source of a copy that nobody waits for when it may be gone")
        pinned = kwargs.get("non_blocking") and getattr(t.untyped_storage(), "pinned", False)
        if self.cuda.recording or not (pinned and on is None):
            self.cuda.wait("copy to the device" if on is None else "copy to the host")
        if out.untyped_storage()._cdata == t.untyped_storage()._cdata:
            out = out.clone()
        return put(out, to)

    def make(self, func: Callable, name: str, args: tuple, kwargs: dict):
        """Anything else; with device="cuda" it makes its tensors there."""
        named = [v for v in (*args, *kwargs.values()) if isinstance(v, str | torch.device)]
        to = next((d for d in map(self.cuda.device, named) if d is not None), None)
        if to is None:
            return func(*args, **kwargs)
        if name in FROM_HOST:
            self.cuda.wait(f"{name} from the host")
        args, kwargs = self.on_host((args, kwargs))
        before, self.cuda.made_on = self.cuda.made_on, to
        try:
            out = func(*args, **kwargs)
            return Operations.mark(out.clone() if name in FROM_HOST else out, to)  # as_tensor may give what it got
        finally:
            self.cuda.made_on = before

    def on_host(self, arguments: tuple) -> tuple:
        """The same arguments, the host named instead of a device."""
        return changed((str, torch.device), lambda v: v if self.cuda.device(v) is None else "cpu", arguments)


class Operations(TorchDispatchMode):
    """Every operation on values, those of the backward pass included: marks what comes of it, and checks the rules."""

    def __init__(self, cuda: Pretended):
        super().__init__()
        self.cuda = cuda

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, cuda, name = kwargs or {}, self.cuda, func._schema.name.removeprefix("aten::")
        func = STAND_INS.get(name, func)
        tensors = [t for t in leaves(args, kwargs) if isinstance(t, Tensor) and not t.is_meta]
        devices = {place(t) for t in tensors} - {None} or {cuda.made_on} - {None}
        if not devices:
            return func(*args, **kwargs)
        if len(devices) > 1:
            raise RuleBroken(f"{name}: tensors of {' and '.join(sorted(map(str, devices)))} met")
        self.check(name, args, [t for t in tensors if place(t) is None] if cuda.made_on is None else [])
        (device,) = devices
        if cuda.recording is not None:
            return cuda.recording.note(func, args, kwargs, device)
        out = func(*args, **kwargs)
        if cuda.kind == "mps" and any(isinstance(t, Tensor) and t.dtype == torch.float64 for t in leaves(out)):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it")
        return out if name == "copy_" else self.mark(out, device)  # a copy may be one to the host

    def check(self, name: str, args: tuple, host: list[Tensor]) -> None:
        """host: the tensors that do not lie on the device. Of a single number torch hands over the value."""
        if name in SHAPED_BY_VALUES or (name == "repeat_interleave" and len(args) == 1):
            self.cuda.wait(f"{name}, whose shape depends on values,")
        elif name in ("_local_scalar_dense", "equal"):
            self.cuda.wait({"_local_scalar_dense": "item"}.get(name, name))
        elif name == "copy_":
            if any(t.dim() for t in host) or (host and self.cuda.recording):
                self.cuda.wait("copy_ to the host" if place(args[0]) is None else "copy_ from the host")
        elif name in BY_INDEX:
            if place(args[0]) is None:
                raise RuleBroken(f"{name}: a tensor of the host is indexed by one of the device")
            indices = [i for i in args[1] if i is not None]
            if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
                self.cuda.wait(f"{name} by a mask")
            if any(i.dim() and place(i) is None for i in indices):
                self.cuda.wait(f"{name} by an index on the host")
        elif any(t.dim() for t in host):
            shapes = [tuple(t.shape) for t in host if t.dim()]
            raise RuleBroken(f"{name}: a tensor of the host, {shapes}, met the device")

    @staticmethod
    def mark(out, device: torch.device):
        for t in leaves(out):
            if isinstance(t, Tensor):
                put(t, device)
        return out


class Address:
    """Where a tensor lies; it keeps no memory alive."""

    def __init__(self, t: Tensor):
        self.storage = weakref.ref(t.untyped_storage())
        self.kind, self.at = t.dtype, (t.storage_offset(), t.shape, t.stride())

    def tensor(self) -> Tensor:
        storage = self.storage()
        if storage is None:
            raise RuleBroken(f"a replay uses freed memory, {tuple(self.at[1])} of {self.kind}")
        return torch.empty(0, dtype=self.kind).set_(storage, *self.at)


class Graph:
    """Stands for torch.cuda.CUDAGraph."""

    def __init__(self, cuda: Pretended):
        self.cuda, self.steps = cuda, []
        self.own: dict[int, Tensor] = {}  # storage -> what the recording made: its part of the pool
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # storage -> bytes of it, and what they were

    def capture_begin(self, pool=None, capture_error_mode: str = "global") -> None:
        assert self.cuda.recording is None, "a recording inside a recording"
        self.cuda.recording, self.device = self, torch.device("cuda", self.cuda.current)

    def capture_end(self) -> None:
        self.cuda.recording = None
        for t, values in self.before.values():  # a recording has no effect
            t.copy_(values)
        self.before.clear()
        self.spoil()
        self.cuda.recordings.append(len(self.steps))

    def note(self, func, args: tuple, kwargs: dict, device: torch.device):
        """Run an operation for its shapes; remember how to run it again, and what to take back at the end."""
        if device != self.device:
            raise RuleBroken(f"{func} on {device} while {self.device} records")
        known = {t.untyped_storage()._cdata for t in leaves(args, kwargs) if isinstance(t, Tensor)}
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        changes = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        written = leaves([given[name] for name in changes if name in given])
        for t in written:
            key = t.untyped_storage()._cdata
            if key not in self.own and key not in self.before:
                whole = torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())
                self.before[key] = whole, whole.clone()
        held = changed(Tensor, lambda t: t if place(t) is None or t.untyped_storage()._cdata in self.own else
                       Address(t), (args, kwargs))
        out = Operations.mark(func(*args, **kwargs), device)
        new = [t for t in leaves(out) if isinstance(t, Tensor) and t.untyped_storage()._cdata not in known]
        self.own |= {t.untyped_storage()._cdata: t for t in new}
        if new or written:  # else it made a view, which is an address
            self.steps.append((func, *held, new))
        return out

    def replay(self) -> None:
        self.cuda.replays += 1
        with torch._C.DisableTorchFunction(), torch.utils._python_dispatch._disable_current_modes():
            for func, args, kwargs, outs in self.steps:
                args, kwargs = changed(Address, Address.tensor, (args, kwargs))
                made = [t for t in leaves(func(*args, **kwargs)) if isinstance(t, Tensor)]
                for mine, t in zip(outs, made if outs else [], strict=True):
                    mine.copy_(t)
            self.spoil()

    def spoil(self) -> None:
        for t in self.own.values():
            t.fill_(float("nan") if t.is_floating_point() else t.dtype is torch.bool or -(2 ** (t.itemsize * 8 - 2)))


class Stream:
    """Stands for torch.cuda.Stream and Event, which have nothing to do: things happen in the order of the calls."""

    def __init__(self, *_, **__):
        pass

    def __getattr__(self, name: str):
        return {"query": lambda: True, "elapsed_time": lambda other: 1.0}.get(name, lambda *_, **__: None)


@contextlib.contextmanager
def pretended(free: int = 80 * 2**30, devices: int = 1, kind: str = "cuda") -> Iterator[Pretended]:
    """torch as if it saw `devices` GPUs with `free` bytes each. kind: cuda, hip or mps."""
    cuda = Pretended(devices, "mps" if kind == "mps" else "cuda")

    def set_device(device) -> None:
        found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        cuda.current = cuda.current if found.index is None else found.index

    @contextlib.contextmanager
    def on(device) -> Iterator[None]:
        before = cuda.current
        set_device(device)
        try:
            yield
        finally:
            cuda.current = before

    def nothing(*_, **__) -> None:
        pass

    fakes = {
        "is_available": lambda: devices > 0, "device_count": lambda: devices, "_lazy_init": nothing,
        "current_device": lambda: cuda.current, "set_device": set_device, "device": on,
        "is_bf16_supported": lambda *_, **__: True, "get_device_name": lambda *_: "pretended",
        "mem_get_info": lambda *_: (free, free), "memory_reserved": lambda *_: 0, "memory_allocated": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0, "reset_peak_memory_stats": nothing, "empty_cache": nothing,
        "synchronize": lambda *_: cuda.wait("synchronize"), "graph_pool_handle": lambda: (0, 0),
        "CUDAGraph": lambda *_: Graph(cuda), "Stream": Stream, "Event": Stream, "current_stream": Stream,
        "stream": lambda _: contextlib.nullcontext(), "is_current_stream_capturing": lambda: cuda.recording is not None,
    }
    apple = {
        "cuda.is_available": lambda: False, "mps.empty_cache": nothing,
        "mps.recommended_max_memory": lambda: free, "mps.current_allocated_memory": lambda: 0,
        "backends.mps.is_available": lambda: devices > 0, "backends.mps.is_built": lambda: True,
        "backends.mps.is_macos_or_newer": lambda *_: True, "backends.mps.get_name": lambda: "pretended",
    }
    with contextlib.ExitStack() as stack:
        for name, fake in (apple if kind == "mps" else {f"cuda.{name}": fake for name, fake in fakes.items()}).items():
            stack.enter_context(mock.patch(f"torch.{name}", fake, create=name.endswith("get_name")))
        stack.enter_context(mock.patch("torch.version.hip", "7.2" if kind == "hip" else None))
        stack.enter_context(mock.patch.dict("kernels.graph.STREAMS", clear=True))
        proof.wrong.cache_clear()
        stack.callback(proof.wrong.cache_clear)
        # not by a mode: none is on in the hooks of autograd, nor in other threads
        for name, of in (("device", lambda on: on), ("is_cuda", lambda on: on.type == "cuda"),
                         ("is_cpu", lambda on: False)):
            told = getattr(torch._C.TensorBase, name)
            answer = property(lambda t, of=of, told=told: told.__get__(t) if place(t) is None else of(place(t)))
            stack.enter_context(mock.patch.object(torch.Tensor, name, answer, create=True))
        # else no mode is on while autograd is at work, which may call Python: recomputed blocks, our own functions
        stack.enter_context(mock.patch("torch.autograd.has_torch_function", return_value=False))
        stack.enter_context(Operations(cuda))
        stack.enter_context(Functions(cuda))
        yield cuda
