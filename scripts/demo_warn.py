"""Sends the demo's supervisor the warning that a scheduler sends before a time limit, once training is half-way."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

run = Path(sys.argv[1])
while True:
    state = json.loads((run / "run.json").read_bytes())
    lines = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        if (run / "metrics.jsonl").exists()
        else []
    )
    if state["state"] in ("completed", "failed", "cancelled"):
        sys.exit("the run ended before the warning could be sent")
    if lines and lines[-1]["step"] * 2 >= lines[-1]["total_steps"]:
        break
    time.sleep(0.1)
os.kill(state["pid"], signal.SIGUSR1)
print(f"demo: sent SIGUSR1 to the supervisor (pid {state['pid']}) after step {lines[-1]['step']}", file=sys.stderr)
