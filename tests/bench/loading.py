"""What loading a model costs: memory beside the weights, and time beside reading their files.

    python tests/bench/loading.py [--folder DIR ...] [--size-gb 2]

Without --folder: a random Llama of that size in bfloat16, in three files, made for it, and checkpoints/smollm2-135m if
it is there. Each is loaded in the dtype it is stored in and in the other of float32 and bfloat16, here and by
transformers (extra `bench`). A figure is the median of three fresh processes; each first reads all files once, so that
neither the disk plays a part nor what a virtual machine's host needs for its first memory. Linux only. Columns:

    memory    how much the process's peak grew, over the weights' size in the dtype asked for; limit 1.15
    seconds   of loading
    / fresh   over those of `Path.read_bytes`, which like a model needs memory that the process did not have; limit 1.5,
              but for a wider dtype, which fills more memory than the files have bytes
    / reused  over those of reading the files into one buffer of 8 MiB again and again. In the row of read_bytes this is
              what new memory costs; no loader that fills its own stays below

transformers maps the files and reads when a weight is used: its time has a touch of every page in it. Exit status 1 if
this project is above a limit. A machine whose cores do other work shows it: compare the rows. Of a model below some
hundred MB the figures say what a process needs once, whatever it loads.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peers import need

need("transformers")

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

import checkpoints
from checkpoints.files import INDEX, tensor_files, write_json, write_tensors

REAL = Path(__file__).parents[2] / "checkpoints" / "smollm2-135m"
MEMORY, TIME, ROUNDS = 1.15, 1.5, 3
FILES = 3
PAGE = os.sysconf("SC_PAGE_SIZE")
WIDTH, FF, VOCAB, HEADS = 2048, 5632, 32_000, 16


def make(folder, gigabytes):
    """A random Llama of about this many GB in bfloat16, layer by layer into its files."""
    layer = {f"self_attn.{x}_proj": (WIDTH, WIDTH) for x in "qkvo"} | {
        "mlp.gate_proj": (FF, WIDTH), "mlp.up_proj": (FF, WIDTH), "mlp.down_proj": (WIDTH, FF),
        "input_layernorm": (WIDTH,), "post_attention_layernorm": (WIDTH,)}
    ends = {"model.embed_tokens": (VOCAB, WIDTH), "lm_head": (VOCAB, WIDTH), "model.norm": (WIDTH,)}
    size = [2 * sum(map(math.prod, shapes.values())) for shapes in (layer, ends)]
    layers = max(1, round((gigabytes * 1e9 - size[1]) / size[0]))
    shapes = ends | {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}
    weight_map = {f"{name}.weight": f"model-{i * FILES // len(shapes) + 1:05}-of-{FILES:05}.safetensors"
                  for i, name in enumerate(shapes)}
    torch.manual_seed(0)
    for file in sorted(set(weight_map.values())):
        write_tensors(folder / file, {name: 0.02 * torch.randn(shapes[name.removesuffix(".weight")]).bfloat16()
                                      for name, where in weight_map.items() if where == file})
    write_json(folder / INDEX, {"metadata": {"total_size": size[1] + layers * size[0]}, "weight_map": weight_map})
    write_json(folder / "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB, "hidden_size": WIDTH,
        "intermediate_size": FF, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16"})


def memory(key):
    """Bytes of this process: VmRSS now, VmHWM at its peak. (ru_maxrss would begin at the peak of who started it.)"""
    with open("/proc/self/status") as f:
        return next(1024 * int(line.split()[1]) for line in f if line.startswith(key))


def timed(f, *args):
    """(what it returns, seconds)"""
    began = time.perf_counter()
    out = f(*args)
    return out, time.perf_counter() - began


def read_reusing(files):
    buffer = bytearray(8 << 20)
    for file in files:
        with open(file, "rb", buffering=0) as f:
            while f.readinto(buffer):
                pass


def load(who, folder, dtype):
    """The model, or what it is compared with; what is returned holds the memory."""
    if who == "here":
        return checkpoints.load_model(folder, dtype=dtype)
    if who == "read_bytes":
        return [file.read_bytes() for file in sorted(folder.glob("*.safetensors"))]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    for p in model.parameters():
        p.detach().flatten()[:: PAGE // p.itemsize].sum()
    return model


def measure(who, folder, dtype):
    """The figures of one load, in a process of its own."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    files = sorted(folder.glob("*.safetensors"))
    entries = {name: file.entries[name] for name, file in tensor_files(folder).items()}
    size = sum(math.prod(e.shape) for e in entries.values()) * getattr(torch, dtype).itemsize
    if who == "transformers":  # its own imports are not what is measured
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    read_reusing(files)
    load("read_bytes", folder, dtype)
    fresh = timed(load, "read_bytes", folder, dtype)[1]
    reused = timed(read_reusing, files)[1]
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = memory("VmRSS")
    model, seconds = timed(load, who, folder, dtype)  # held until its memory is counted
    figures = {"memory": (memory("VmHWM") - before) / size, "seconds": seconds, "fresh": seconds / fresh,
               "reused": seconds / reused}
    del model
    return figures


def row(who, folder, dtype, wider):
    """(a line of the table, what is above a limit): medians of several processes. wider: than it is stored."""
    command = [sys.executable, __file__, "--one", who, "--folder", str(folder), "--dtype", dtype]
    runs = [json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            for _ in range(ROUNDS)]
    m = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    least, most = (f(run["fresh"] for run in runs) for f in (min, max))
    line = (f"| {folder.name} | {dtype} | {who} | {m['memory']:.2f} | {m['seconds']:.2f} | {m['fresh']:.2f} "
            f"({least:.2f} to {most:.2f}) | {m['reused']:.2f} |")
    above = [f"{folder.name} as {dtype}: {key} {m[key]:.2f} is above {limit}" for key, limit in (
        ("memory", MEMORY), ("fresh", math.inf if wider else TIME)) if m[key] > limit]
    return line, above if who == "here" else []


def stored(folder):
    """The dtype of most of a folder's numbers."""
    sizes = {}
    for name, file in tensor_files(folder).items():
        dtype = str(file.dtype(name)).removeprefix("torch.")
        sizes[dtype] = sizes.get(dtype, 0) + file.entries[name].size
    return max(sizes, key=sizes.get)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, nargs="+")
    parser.add_argument("--size-gb", type=float, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # who loads: a single measurement, for the processes started
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.folder[0], args.dtype)))
        return 0
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, transformers {transformers.__version__}, "
          f"load average {os.getloadavg()[0]:.1f}\n")
    print(f"| folder | dtype | who | memory (<= {MEMORY}) | seconds | / fresh (<= {TIME}; spread) | / reused |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="random-") as temporary:
        folders = args.folder
        if not folders:
            make(Path(temporary), args.size_gb)
            folders = [Path(temporary), *([REAL] if (REAL / "config.json").is_file() else [])]
        above = []
        for folder in folders:
            own = stored(folder)
            for dtype in (own, "bfloat16" if own == "float32" else "float32"):
                for who in ("read_bytes",) * (dtype == own) + ("here", "transformers"):
                    line, found = row(who, folder, dtype, wider=own != dtype == "float32")
                    print(line, flush=True)
                    above += found
    print("\n" + ("\n".join(above) or "within the limits"))
    return int(bool(above))


if __name__ == "__main__":
    sys.exit(main())
