"""Rotary embeddings of a config.json of either generation: which kind, which numbers, how much of a head turns."""

from dataclasses import replace

from checkpoints.keys import count, finite, need
from star.decoder import DecoderConfig
from star.positions import ROPE_KINDS, Rope, amplitude

NUMBERS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "beta_fast",
           "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "llama_4_scaling_beta")
LISTS = ("short_factor", "long_factor")  # of longrope: a factor a frequency
NEEDED = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor"), "longrope": LISTS}
PARTIAL = "partial_rotary_factor"
MOST = 1e4  # that cos and sin are multiplied by; files say 1 to 2


def rope_keys(c: dict) -> dict:
    """The file's rope dictionary, of either generation; {}: it has none. ValueError if it has two that disagree."""
    new, old = c.get("rope_parameters") or {}, c.get("rope_scaling") or {}
    if new and any(new.get("rope_type" if k == "type" else k) != v for k, v in old.items()):
        raise ValueError("config.json has rope_parameters and a rope_scaling that says otherwise: leave one out")
    return new or old


def read_rope(c: dict, given: dict) -> Rope:
    """A rope dictionary of either generation -> Rope. ValueError on a kind that is not known or lacks a number."""
    args = {k: v for k, v in given.items() if v is not None}
    theta, old = args.pop("rope_theta", 10000.0), args.pop("type", "default")
    kind = args.pop("rope_type", old)
    if kind not in ROPE_KINDS:
        raise ValueError(f"rope kind {kind!r} is not supported; supported are {', '.join(ROPE_KINDS)}")
    longest = c.get("max_position_embeddings", 2048)
    origin = "original_max_position_embeddings"
    args[origin] = c.get(origin) or args.get(origin, longest)
    if kind == "longrope" or (kind == "yarn" and "factor" not in args):
        args.setdefault("factor", longest / count(args, origin))
    for key in NEEDED.get(kind, ()):
        need(args, key)
    numbers = {"rope_theta": theta} | {k: v for k, v in args.items() if k in NUMBERS}
    for key, value in numbers.items():
        finite(key, value)
    if args[origin] <= 0:
        raise ValueError(f"config.json has {origin!r}: {args[origin]}; it must be positive")
    lists = {key: factors(args, key) for key in LISTS if kind == "longrope"}
    rope = Rope(float(theta), kind, numbers | lists | {"truncate": bool(args.get("truncate", True))})
    if not abs(amplitude(rope)) < MOST:
        raise ValueError(f"config.json makes queries and keys {amplitude(rope):.3g} times as long (attention_factor, "
                         "mscale): no model does")
    return rope


def factors(args: dict, key: str) -> tuple[float, ...]:
    """A list of longrope. ValueError if it is none, or holds anything but positive numbers."""
    if not isinstance(args[key], list):
        raise ValueError(f"config.json has {key!r}: {repr(args[key])[:60]}; it must be a list of numbers")
    for value in args[key]:
        finite(f"a number of {key}", value)
        if value <= 0:
            raise ValueError(f"config.json has {value} in {key!r}; it must be positive")
    return tuple(map(float, args[key]))


def turned(config: DecoderConfig, share: float) -> DecoderConfig:
    """The config with ropes that turn this share of each head, from its first entry on. ValueError if it is no number.
    """
    finite(PARTIAL, share)
    rot_dim = int(config.head_dim * share)
    return replace(config, rot_dim=rot_dim, ropes=config.ropes if rot_dim else ())


def share_turned(c: dict, *names: str, default: float = 1.0) -> float:
    """The share of a head that turns: as the rope dictionary says, else as the file does beside it, by these names."""
    said = [rope_keys(c).get(PARTIAL), *map(c.get, names)]
    return next((value for value in said if value is not None), default)


def check_factors(config: DecoderConfig) -> None:
    """Has longrope a factor a frequency? ValueError if not."""
    n = -(-(config.rot_dim or config.head_dim) // 2)
    for rope in config.ropes:
        for key in LISTS:
            if key in rope.args and len(rope.args[key]) != n:
                raise ValueError(f"config.json has {len(rope.args[key])} numbers in {key!r}; it must have {n}, one for "
                                 f"two of the {config.rot_dim or config.head_dim} entries of a head that turn")
