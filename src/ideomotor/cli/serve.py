"""The verb that puts a policy or a world behind a socket."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from ideomotor.serving.limits import Limits
from ideomotor.systems.acting import SamplingChange

console = Console(stderr=True, soft_wrap=True)
KEY = "IDEOMOTOR_API_KEY"


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serves a policy or a world to robots and simulators, over a websocket that speaks openpi's protocol.

    Any client of that protocol drives it; `ideomotor-client` knows more: sessions, deadlines, action prefixes, imagined
    video. GET /healthz says whether it is up, /metrics how it fares. Ctrl-C or SIGTERM stops it, after what is in
    flight.

    An API key is read from the environment variable IDEOMOTOR_API_KEY or from --api-key-file, never from the command
    line, which others on this machine can read. Without one, whoever reaches the address may ask for actions.
    """

    folder: tyro.conf.Positional[Path]
    """OUT of `vpdd finetune`, `vpp policy`, `ivideogpt world` or `ivideogpt dream`, or of an import of published
    weights."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for every one of this machine's: then set an API key."""
    port: int = 8000
    """Port to listen at; 0 takes a free one, which the first line of the log tells."""
    api_key_file: Path | None = None
    """File that holds the API key alone."""
    part: Literal["policy", "world"] | None = None
    """Which of the two, where the folder holds an agent and the world that it dreamt in; the agent by default."""
    device: str = "cpu"
    """Where it computes: cpu, cuda, cuda:1..."""
    threads: int = 1
    """CPU threads of its networks. Small ones gain nothing from more; the published sizes do."""
    dial: Literal["none", "features", "half", "full"] | None = None
    """How far VPDD imagines before it acts. By default as fine-tuned."""
    execute: int | None = None
    """Actions of a chunk that clients are told to carry out before they look again. By default as trained. A request
    that names no step counts as this many after the last."""
    rate_hz: float | None = None
    """Control steps a second that clients are told: those of the data that the policy learned from."""
    temperature: float = 1.0
    """Scale of the noise that VPP's chunks are denoised from, 0 to 1; as in `vpp evaluate`."""
    sampling: SamplingChange = field(default_factory=SamplingChange)
    """How VPP's chunks are denoised; by default as trained."""
    weights: Literal["float32", "bf16", "int8"] = "float32"
    """Precision of a world's weights: bf16 steps faster, int8 the fastest on a CPU; both change some tokens. bf16 also
    for the video model and the autoencoder of a VPP policy: half their memory, and faster on a GPU."""
    max_batch: int = 16
    """Clients that are answered in one forward pass at most."""
    seed: int = 0
    """Seed of whatever is drawn."""
    limits: Limits = field(default_factory=Limits)
    """How much a client may ask."""
    debug_errors: bool = False
    """Tell clients the traceback of an error of the server's own. They then read paths and code of this machine."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.serving.server import ServerConfig, serve
        from ideomotor.systems.quickstarts import threads
        from ideomotor.systems.serving import Serving, keep_memory, open_backend

        if self.threads < 1:
            raise ValueError(f"threads is {self.threads}; wanted at least 1")
        config = ServerConfig(
            host=self.host, port=self.port, api_key=self._key(), debug=self.debug_errors, limits=self.limits
        )
        how = Serving(
            part=self.part,
            device=self.device,
            dial=self.dial,
            execute=self.execute,
            temperature=self.temperature,
            sampling=self.sampling,
            weights=self.weights,
            max_batch=self.max_batch,
            rate_hz=self.rate_hz,
            seed=self.seed,
        )
        keep_memory()
        with threads(self.threads):
            backend = open_backend(self.folder, how)
            for line in _about(self.folder, backend.metadata["ideomotor"]):
                console.print(line, markup=False, highlight=False)
            serve(backend, config)

    def _key(self) -> str | None:
        said = os.environ.get(KEY)
        if self.api_key_file is None:
            return said or None
        if said:
            raise ValueError(f"both {KEY} and --api-key-file give a key: leave one of them out")
        try:
            key = self.api_key_file.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.api_key_file} holds no text: the API key stands in it alone, in ASCII") from error
        if not key:
            raise ValueError(f"{self.api_key_file} holds no key: write one into it, or leave --api-key-file out")
        return key


def _about(folder: Path, about: Mapping[str, Any]) -> list[str]:
    """What is served, for the terminal."""
    seen, done = about["observation"], about["actions"]
    images = ", ".join(
        f"{name} {one['height']}x{one['width']}"
        + (f" (recorded as {one['recorded_as']})" if one.get("recorded_as") else "")
        for name, one in seen["images"].items()
    )
    lines = [
        f"{folder}: {about['kind']} of {about['system']}",
        f"  sees {images}; {seen['context']} frame" + "s" * (seen["context"] > 1),
    ]
    if about["kind"] == "policy":
        more = ["a state of " + str(seen["state"])] * bool(seen["state"]) + ["a sentence"] * seen["prompt"]
        lines[-1] += f", {seen['stride']} steps apart" * (seen["context"] > 1) + "".join(f", {one}" for one in more)
        lines.append(f"  gives {done['chunk']} actions of {done['width']}, of which {done['execute']} are carried out")
    return lines
