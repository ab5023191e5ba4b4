"""Frozen dataclasses to JSON and back, and what differs between two of them."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


def config_to_json(config: Any, where: str = "config") -> dict[str, Any]:
    """Returns the fields of a dataclass as JSON values: nested dataclasses become objects, tuples lists, paths strings.

    A field declared ``LATER`` (``ideomotor.types``) that is at its default is left out.

    Raises:
        TypeError: ``config`` is no dataclass, or a field holds what JSON cannot (the message names the field).
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"{where} is a {type(config).__name__}; wanted an instance of a dataclass")
    written = [
        f for f in dataclasses.fields(config) if f.init and not (_is_later(f) and getattr(config, f.name) == f.default)
    ]
    return {f.name: _encode(getattr(config, f.name), f"{where}.{f.name}") for f in written}


def config_from_json(cls: type[Config], data: Mapping[str, Any], where: str = "config") -> Config:
    """Returns the dataclass that ``config_to_json`` turned into ``data``.

    Nothing is filled in from defaults but those of ``LATER`` fields.

    Raises:
        ValueError: a key is unknown or missing, or a value is not of its field's type; the message names it.
    """
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise TypeError(f"{cls!r} is not a dataclass; wanted the class of {where}")
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} holds {data!r}; wanted the fields of {cls.__name__}")
    wanted = [f for f in dataclasses.fields(cls) if f.init]
    unknown = sorted(set(data) - {f.name for f in wanted})
    missing = [f.name for f in wanted if f.name not in data and not _is_later(f)]
    if unknown or missing:
        parts = [f"unknown {', '.join(map(repr, unknown))}"] if unknown else []
        parts += [f"missing {', '.join(map(repr, missing))}"] if missing else []
        raise ValueError(
            f"{where} does not fit {cls.__name__}: {'; '.join(parts)}. It was written by other code: "
            "use the version of ideomotor that wrote it, or train again"
        )
    hints = get_type_hints(cls)
    return cast(Config, cls(**{name: _decode(hints[name], value, f"{where}.{name}") for name, value in data.items()}))


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Returns one line for each JSON field in which ``new`` differs from ``old``: ``"optim.lr: 0.001 -> 0.01"``."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines = []
        for key in sorted({*old, *new}):
            path = f"{where}.{key}" if where else str(key)
            lines += differences(old.get(key, "(absent)"), new.get(key, "(absent)"), path)
        return lines
    return [] if old == new else [f"{where}: {old!r} -> {new!r}"]


def _is_later(field: dataclasses.Field[Any]) -> bool:
    return bool(field.metadata.get("later"))


def _encode(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {str(key): _encode(item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(value):
        return config_to_json(value, where)
    raise TypeError(
        f"{where} holds a {type(value).__name__}; a config holds numbers, strings, None, paths, "
        "tuples, mappings and dataclasses"
    )


def _decode(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _decode_union(args, value, where)
    if origin is Literal:
        if value in args:
            return value
        raise ValueError(f"{where} is {value!r}; wanted one of {', '.join(map(repr, args))}")
    if origin in (tuple, list) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return _decode_container(origin, args, value, where)
    if dataclasses.is_dataclass(hint):
        return config_from_json(cast(type, hint), value, where)
    return _decode_scalar(hint, value, where)


def _decode_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is types.NoneType and value is None:
        return None
    if hint in (bool, int, str) and type(value) is hint:
        return value
    raise ValueError(f"{where} is {value!r}; wanted {getattr(hint, '__name__', hint)}")


def _decode_container(origin: Any, args: tuple[Any, ...], value: Any, where: str) -> Any:
    if origin not in (tuple, list):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} is {value!r}; wanted a mapping")
        return {key: _decode(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if not isinstance(value, list):
        raise ValueError(f"{where} is {value!r}; wanted a list")
    if origin is list or (len(args) == 2 and args[1] is Ellipsis):
        hints = [args[0]] * len(value)
    elif len(args) != len(value):
        raise ValueError(f"{where} has {len(value)} items; wanted {len(args)}")
    else:
        hints = list(args)
    return origin(_decode(hint, item, f"{where}[{i}]") for i, (hint, item) in enumerate(zip(hints, value, strict=True)))


def _decode_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    """The member that fits; two dataclasses that both fit are an error, since a guess would build another model."""
    fits, reasons = [], []
    for hint in args:
        try:
            fits.append(_decode(hint, value, where))
        except ValueError as error:
            reasons.append(str(error))
    if not fits:
        raise ValueError(" | ".join(dict.fromkeys(reasons)))
    if any(other != fits[0] for other in fits[1:]):
        kinds = ", ".join(type(fit).__name__ for fit in fits)
        raise ValueError(f"{where} fits each of {kinds}: give these dataclasses different field names")
    return fits[0]
