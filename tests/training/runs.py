"""What a run left behind."""

import json
from pathlib import Path
from typing import Any


def learnt(output: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` without what depends on the clock."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if not key.startswith("perf/")} for line in lines
    ]
