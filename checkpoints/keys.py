"""Values of a config.json, believed only as far as a model can be made of them."""

from typing import Any

LARGE = 1e19  # squares of larger numbers are none of float32


def need(c: dict, key: str) -> Any:
    """c[key], or a ValueError that names the key."""
    if c.get(key) is None:
        raise ValueError(f"config.json lacks the key {key!r}")
    return c[key]


def count(c: dict, key: str, default: int | None = None) -> int:
    """c[key], a positive whole number; ValueError if it is anything else, or is not there and there is no default."""
    value = need(c, key) if default is None else default if c.get(key) is None else c[key]
    most = 10_000 if key.endswith(("_heads", "_layers")) else 2**31
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"config.json has {key!r}: {repr(value)[:60]}; it must be a positive whole number up to "
                         f"{most:,}")
    return value


def switch(c: dict, key: str) -> bool:
    """c[key], true or false; false where it is not there. ValueError if it is anything else: "no" is no false."""
    value = c.get(key)
    if type(value) not in (bool, type(None)):
        raise ValueError(f"config.json has {key!r}: {repr(value)[:60]}; it must be true or false")
    return bool(value)


def finite(name: str, value: object, kinds: tuple = (int, float)) -> None:
    """ValueError if this is no number of these kinds whose square float32 holds."""
    if type(value) not in kinds or not -LARGE < value < LARGE:
        raise ValueError(f"config.json makes {name} {repr(value)[:60]}; it must be a finite number")
