"""The supervisor's pod: one per run, without a GPU. It opens attempts, names causes, decides, and tells the cluster.

Its exit codes are for the Job that runs it: 0 the run is over, whichever way, and that is published; with any other it
is started again, and goes on watching the attempt that is under way.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from fullft_cluster.errors import FullftError, RunFailedError, UsageError
from fullft_cluster.kubernetes_api import ApiError, connect
from fullft_cluster.rundir import RunDir
from fullft_cluster.runtime.desk import Desk
from fullft_cluster.runtime.kubernetes_platform import KubernetesPlatform, being_prepared, check_preparation
from fullft_cluster.runtime.kubernetes_target import KINDS, Target
from fullft_cluster.runtime.platform import SupersededError
from fullft_cluster.runtime.pod import check_owner, volume_words
from fullft_cluster.runtime.policy import EXIT_STOPPED
from fullft_cluster.runtime.supervisor import Supervisor, log_to_stdout

POLL_SECONDS = 2.0

log = logging.getLogger("supervisor")


def _leave(signum: int, frame: FrameType | None) -> None:
    """Leave the run alone: a signal to this pod (its node is drained) does not mean the training."""
    raise SystemExit(EXIT_STOPPED)


def supervise(run: RunDir, target: Target, files: Path) -> int:
    """Supervise one run until it is over; return the exit code of the pod. ``files``: the ConfigMap's, mounted."""
    api = connect()
    desk = Desk(run, target, api)
    try:
        # The preparation makes the directory, or opens it again, and refuses that of another run.
        while not run.run.is_file() or being_prepared(api, target):
            if desk.cancel_is_asked():
                desk.say("cancelled", "cancelled by the user before it began")
                return 0
            check_preparation(api, target, run)
            desk.tidy()
            time.sleep(POLL_SECONDS)
        check_owner(run, files)
        if not run.data.is_file():
            check_preparation(api, target, run)
    except (RunFailedError, UsageError) as error:
        log.error("%s", error)
        desk.say("failed", str(error))
        return 0
    desk.resume_if_asked()
    desk.start()
    try:
        Supervisor(run, KubernetesPlatform(run, target, api)).supervise()
        return 0
    except RunFailedError as error:
        log.error("%s", error)
        run.update_run(state="failed", reason=str(error), ended=time.time())
        return 0
    finally:
        desk.close()


def main(argv: list[str] | None = None) -> int:
    """Supervise the run in RUN, whose objects are named in the arguments."""
    parser = argparse.ArgumentParser(prog="python -m fullft_cluster.runtime.kubernetes_supervisor", description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--kind", choices=sorted(KINDS), required=True)
    parser.add_argument("--namespace", required=True)
    args = parser.parse_args(argv)
    log_to_stdout()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _leave)
    run = RunDir(args.run)
    try:
        return supervise(run, Target(name=run.name, namespace=args.namespace, kind=args.kind), args.files)
    except SupersededError as error:
        log.error("%s", error)
        return EXIT_STOPPED
    except ApiError as error:
        log.error("%s; leaving, to be started again", error)
        return error.exit_code
    except FullftError as error:
        log.error("%s", error)
        return error.exit_code
    except OSError as error:
        log.error("%s", volume_words(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
