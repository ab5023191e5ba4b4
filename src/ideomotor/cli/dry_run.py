"""The verb that tries a policy on recorded episodes before a robot moves."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from ideomotor.cli.serve import KEY
from ideomotor.files import write_text

console = Console(soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class DryRunCommand:
    """Shows a policy recorded episodes, through the socket that a robot uses, and compares what it would have done.

    Prints the error of each dimension of its actions and how long requests take. The policy looks as often as it would;
    the actions that it would carry out until it looks again are compared with the recorded ones. Nothing moves.
    """

    policy: tyro.conf.Positional[str]
    """Address of a server (ws://HOST:PORT, its API key in the environment variable IDEOMOTOR_API_KEY), or the folder
    of a policy, which is then served on this machine for the moment."""
    data: Path
    """Recorded episodes with actions, in any layout that `data inspect` reads."""
    episodes: int = 5
    """How many of them."""
    cameras: tuple[str, ...] = ()
    """The policy's cameras in the data, as view=corner2; needed where neither names nor the policy tell."""
    out: Path | None = None
    """Folder for dry_run.json, with all figures, and dry_run.svg, the first episode's actions drawn."""
    wait: float = 30.0
    """Seconds that a server may take to come up."""

    def run(self) -> None:
        """Does it."""
        from ideomotor.data.formats import open_dataset
        from ideomotor.serving.client import Client
        from ideomotor.serving.dry_run import drawing, dry_run

        if self.episodes < 1:
            raise ValueError(f"episodes is {self.episodes}; wanted at least 1")
        wrong = [pair for pair in self.cameras if pair.count("=") != 1]
        if wrong:
            raise ValueError(f"--cameras {wrong[0]}: wanted POLICY'S=DATA'S, such as view=corner2")
        cameras = dict(pair.split("=") for pair in self.cameras)
        dataset, key = open_dataset(self.data), os.environ.get(KEY) or None
        with self._served(key) as url, Client(url, api_key=key, wait=self.wait) as client:
            found = dry_run(client, dataset, episodes=self.episodes, cameras=cameras)
        table = Table("dimension", "mean error", "95 % below", "worst", "spread of the recorded", "error / spread")
        for entry in found.dimensions:
            ratio = f"{entry.mean / entry.spread:.2f}" if entry.spread else "-"
            figures = (entry.mean, entry.p95, entry.worst, entry.spread)
            table.add_row(str(entry.dimension), *(f"{value:.4g}" for value in figures), ratio)
        console.print(table)
        console.print(f"{found.compared} actions of {found.episodes} episodes, {found.execute} of each chunk compared")
        for name, times in found.latency_ms.items():
            console.print(f"{name}: " + ", ".join(f"{key} {value:.1f} ms" for key, value in times.items()))
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            write_text(self.out / "dry_run.json", json.dumps(found.as_dict(), indent=1) + "\n")
            write_text(self.out / "dry_run.svg", drawing(found))
            console.print(f"figures: {self.out / 'dry_run.json'}, drawing: {self.out / 'dry_run.svg'}")

    @contextmanager
    def _served(self, key: str | None) -> Iterator[str]:
        """Inside, a server answers at the address that this yields."""
        if self.policy.startswith(("ws://", "wss://")):
            yield self.policy
            return
        from ideomotor.serving.server import Server, ServerConfig, running
        from ideomotor.systems.quickstarts import threads
        from ideomotor.systems.serving import Serving, open_backend

        with threads(1):
            backend = open_backend(Path(self.policy), Serving(part="policy"))
            with running(Server(backend, ServerConfig(port=0, api_key=key))) as url:
                yield url
