"""The fuzz in small, against a real server process: every message is answered, refused or its connection closed."""

import json
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ALWAYS_REFUSED = (
    "truncated",
    "wrong dtype",
    "objects",
    "huge shape",
    "declared",
    "nested",
    "many",
    "not finite",
    "extension",
)


def test_serve_fuzz(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import serve_fuzz
    from serve_fuzz_messages import KINDS
    from serve_fuzz_sockets import ATTACKS

    written = str(tmp_path / "rows.json")
    monkeypatch.setattr(
        sys, "argv", ["serve_fuzz.py", "--tiny", "--messages", "1600", "--ping-seconds", "4", "--json", written]
    )
    serve_fuzz.main()
    rows = {(row["what"], row["kind"]): row for row in json.loads(Path(written).read_text())["rows"]}
    server, client = rows["server", "all messages"], rows["well-behaved client", "20 Hz"]
    assert server["sent"] == 1600 and server["silent"] == server["leaked"] == 0 == server["exit status"]
    assert set(server["codes"]) <= {"bad_message", "bad_observation", "too_large", "expired"}
    assert set(server["journal"]) <= {"connected", "disconnected", "stopping", "stopped"}  # nothing failed within
    assert server["RSS peak MiB"] - server["RSS start MiB"] < 64
    assert client["wrong"] == 0 and client["sent"] > 20
    assert rows["well-behaved client", "20 Hz, alone"]["sent"] > 0
    for kind in KINDS:
        row = rows["message", kind]
        assert row["sent"] > 30 and row["sent"] == row["answered"] + row["refused"] + row["closed"]
        assert row["answered"] == 0 or kind not in ALWAYS_REFUSED
    assert rows["message", "good"]["answered"] == rows["message", "good"]["sent"]
    for attack in ATTACKS:
        assert rows["socket", attack]["silent"] == 0 and rows["socket", attack]["closed"] > 0, attack
