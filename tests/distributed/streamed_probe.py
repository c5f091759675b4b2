"""One rank that trains runs one after another; those whose name ends with `stopped` in two attempts.

    RANK=.. LOCAL_RANK=.. WORLD_SIZE=.. LOCAL_WORLD_SIZE=.. MASTER_ADDR=.. MASTER_PORT=.. \\
        python streamed_probe.py RUN ...
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from engines_probe import go

from fullft_cluster.rundir import RunDir
from fullft_cluster.train.setup import Identity, set_environment


def main() -> None:
    identity = Identity.from_environment(os.environ)
    code = 0
    try:
        set_environment(os.environ, "cpu")
        for run in (RunDir(Path(path)) for path in sys.argv[1:]):
            stopped = run.name.endswith("stopped")
            if stopped:
                go(run, 1, identity, stops=True)
            go(run, 2 if stopped else 1, identity, stops=False)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)  # as the worker leaves


if __name__ == "__main__":
    main()
