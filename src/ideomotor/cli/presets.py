"""Which model preset a command line names: it decides the defaults of every other option."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from ideomotor.systems.dream import DREAMS, Dream
from ideomotor.systems.ivideogpt import PRESETS as WORLD_PRESETS
from ideomotor.systems.ivideogpt import IVideoGPT
from ideomotor.systems.vpdd import PRESETS, VPDD
from ideomotor.systems.vpdd_published_config import PRESETS as PUBLISHED_PRESETS
from ideomotor.systems.vpdd_published_config import PublishedVPDD
from ideomotor.systems.vpp import VPP
from ideomotor.systems.vpp_presets import PRESETS as VPP_PRESETS

Preset = TypeVar("Preset", VPDD, VPDD | PublishedVPDD, IVideoGPT, Dream, VPP)
ALL_PRESETS: dict[str, Callable[[], VPDD | PublishedVPDD]] = {**PRESETS, **PUBLISHED_PRESETS}


def preset(name: str, presets: Mapping[str, Callable[[], Preset]]) -> Preset:
    """Returns the named one of the presets.

    Raises:
        ValueError: there is none of that name; the message suggests the nearest.
    """
    if name not in presets:
        near = difflib.get_close_matches(name, presets, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"there is no preset {name!r}{hint} (presets: {', '.join(presets)})")
    return presets[name]()


class SystemConfigs(NamedTuple):
    """What the stages of each system start from."""

    vpdd: VPDD | PublishedVPDD
    world: IVideoGPT
    dream: Dream
    vpp: VPP


def system_configs(arguments: list[str]) -> SystemConfigs:
    """Returns the configs that the stages of each system start from: the preset named, where the verb is theirs."""
    configs = SystemConfigs(PRESETS["fast"](), WORLD_PRESETS["cpu"](), DREAMS["cpu"](), VPP_PRESETS["cpu"]())
    if arguments[:1] == ["ivideogpt"]:
        name = named_preset(arguments, "cpu")
        return configs._replace(world=preset(name, WORLD_PRESETS), dream=preset(name, DREAMS))
    if arguments[:1] == ["vpp"]:
        return configs._replace(vpp=preset(named_preset(arguments, "cpu"), VPP_PRESETS))
    if arguments[:1] == ["import"]:  # its own --preset names one of VPP's and is no default of other options
        return configs
    known = ALL_PRESETS if arguments[:1] == ["vpdd"] else PRESETS
    return configs._replace(vpdd=preset(named_preset(arguments, "fast"), known))


def named_preset(arguments: list[str], default: str) -> str:
    """The preset decides the defaults of every other option, so it is read first."""
    for place, word in enumerate(arguments):
        if word == "--preset" and place + 1 < len(arguments):
            return arguments[place + 1]
        if word.startswith("--preset="):
            return word.partition("=")[2]
    return default
