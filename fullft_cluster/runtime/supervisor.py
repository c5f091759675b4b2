"""Keeps one run alive inside its allocation: starts attempts, forwards the warning, names the cause, decides.

The batch script `exec`s it, so that the scheduler's signals reach Python and not a shell's traps. It imports no
torch: a broken training environment is an attempt that failed, not a supervisor that did.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import msgspec

from fullft_cluster.config_load import read_config
from fullft_cluster.errors import FullftError
from fullft_cluster.plan import Plan
from fullft_cluster.rundir import RunDir, read_lines, write_json
from fullft_cluster.runtime import evidence as gather
from fullft_cluster.runtime import record
from fullft_cluster.runtime.platform import Child, Platform, SupersededError, platform_of
from fullft_cluster.runtime.policy import Decision, Evidence, History, decide

POLL_SECONDS = 0.5
RETRY_SECONDS = 5.0
"""Pause after a failure before the next attempt on this machine: a fault at start must not spin."""

OVER_TIME_SECONDS = 10.0
"""What the workers still get when the time limit itself has come: well within KillWait, 30 s by default."""

log = logging.getLogger("supervisor")


class Supervisor:
    """One run, attempt after attempt."""

    def __init__(self, run: RunDir, platform: Platform) -> None:
        self.run, self.platform = run, platform
        self.plan = Plan.from_json(run.plan.read_bytes())
        self.config = read_config(run.config)
        self.signals: list[int] = []
        self.stop_reason: str | None = None
        self.attempt = 0
        """The attempt that this process makes; 0 before the first."""
        self.launcher_exit: int | None = None
        """Exit code of what started the nodes (srun); None where nobody saw it."""
        self.over_time: float | None = None
        """Monotonic time at which the workers are ended, as the time limit has come."""

    # --- signals
    def install_handlers(self) -> None:
        """Catch what schedulers and people send; the loop acts on it (no work in a signal handler)."""
        for signum in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._remember)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self.signals.append(signum)

    def _forward_signals(self) -> None:
        """Turn a signal into control/stop, the request that every worker sees on the shared file system."""
        while self.signals:
            signum = self.signals.pop(0)
            if not self.run.stop.exists():  # first of all: the controller that is asked why may take a minute
                write_json(self.run.stop, {"reason": "terminated", "time": time.time()})
            reason = self.platform.why(signum, self.plan.signal_lead_seconds)
            if signum == signal.SIGTERM and reason == "time_limit" and self.over_time is None:
                # SLURM kills this process soon (KillWait) and does not requeue by itself after a TIMEOUT.
                self.over_time = time.monotonic() + OVER_TIME_SECONDS
            if self.stop_reason is None:
                self.stop_reason = reason
                log.info("%s: asking for checkpoint and stop (%s)", signal.Signals(signum).name, reason)
                write_json(self.run.stop, {"reason": reason, "time": time.time()})

    # --- the life of the run
    def supervise(self) -> int:
        """Run attempts until the run is done, given up or handed back to the scheduler; return the exit code."""
        over = self.run.read_run().get("state")
        if over in ("completed", "failed"):  # a resumed one is pending
            # SLURM 24.11 requeues a job once more at its end when an earlier life of it was requeued within the grace
            # time of a preemption (_job_complete: "requeue per user/system request"); 22.05 does not.
            log.info("run %s is %s already: nothing to do in this life of the job", self.run.name, over)
            return 1 if over == "failed" else 0
        self._finish_conclusion()
        if (over := self.run.read_run().get("state")) in ("completed", "failed"):
            return 1 if over == "failed" else 0
        decision = self._go_on_watching() or self._settle_lost_attempt()
        while decision is None or decision.action.startswith("requeue"):
            if decision is not None and decision.cause in ("crash", "hang", "oom"):
                time.sleep(RETRY_SECONDS)
            if self._cancelled():
                return self._end("cancelled", "cancelled by the user")
            decision = self._attempt()
            if decision.action.startswith("requeue") and not self._requeue(decision):
                return 0
        return self._end(record.final_state(decision), decision.message)

    def _end(self, state: str, reason: str) -> int:
        self._check_fence()
        self.run.update_run(state=state, reason=reason, ended=time.time())
        log.info("run %s is %s: %s", self.run.name, state, reason)
        return 1 if state == "failed" else 0

    def _cancelled(self) -> bool:
        return self.run.stop_reason() == "cancelled"

    def _check_fence(self) -> None:
        """Raise SupersededError when a newer attempt is running elsewhere: this process was cut off, and is too late.

        After a network partition SLURM starts the job again on other nodes while the old life goes on.
        """
        current = self.run.read_run().get("attempt", 0)
        if self.attempt and current != self.attempt:
            raise SupersededError(f"attempt {current} is running elsewhere; this was attempt {self.attempt}")

    def _finish_conclusion(self) -> None:
        """Bring run.json in line with attempts.jsonl: a supervisor may have ended between the two.

        An attempt that was numbered and never opened did not begin: its number is given again.
        """
        state = self.run.read_run()
        attempt = state.get("attempt", 0)
        if state.get("state") != "running" or not attempt:
            return
        line = record.line_of(self.run, attempt)
        if line is None:
            if not self.platform.began(self.run, attempt):
                self.run.update_run(attempt=attempt - 1, state="requeued")
            return
        log.info("attempt %d was concluded (%s), and nobody heard: acting on it now", attempt, line["decision"])
        decision = record.decision_of(line, state)
        record.remember(self.run, decision)
        if not decision.action.startswith("requeue"):
            self.attempt = attempt
            self._end(record.final_state(decision), decision.message)

    def _go_on_watching(self) -> Decision | None:
        """Watch the attempt that a supervisor before this one has opened; None when none is under way."""
        state = self.run.read_run()
        attempt = state.get("attempt", 0)
        if not attempt or record.line_of(self.run, attempt) is not None:
            return None
        child = self.platform.running(self.run, attempt)
        if child is None:
            return None
        log.info("attempt %d is under way: going on watching it", attempt)
        self.attempt, started = attempt, float(state["attempt_started"])
        hung = self._watch(child, started)
        return self._conclude(
            started, time.time(), tuple(state.get("nodes", ())), self.platform.life_state(), hung=hung
        )

    def _settle_lost_attempt(self) -> Decision | None:
        """Write the line of an attempt whose supervisor was killed with its node; None when there is none.

        A decision to stop stands (a fault that a restart repeats); otherwise the scheduler has requeued already, or
        the user has resumed what was cancelled.
        """
        state = self.run.read_run()
        attempt = state.get("attempt", 0)
        if not attempt or record.line_of(self.run, attempt) is not None:
            return None
        signs = [beat["time"] for beat in gather.heartbeats(self.run)]
        signs += [line["time"] for line in read_lines(self.run.metrics) if line.get("attempt") == attempt]
        end = max([state["attempt_started"], *signs])  # the last sign of life
        log.info("attempt %d ended without a word; looking for what it left", attempt)
        nodes = tuple(state.get("nodes", ()))
        self.stop_reason = state.get("lost_to")
        self.attempt = attempt
        decision = self._conclude(state["attempt_started"], end, nodes, self.platform.past_life_state())
        return decision if decision.action in ("stop", "done") and decision.cause != "cancelled" else None

    def _attempt(self) -> Decision:
        """Run one attempt to its end, record it, and return what follows."""
        state = self.run.read_run()
        attempt, nodes, started = state.get("attempt", 0) + 1, self.platform.nodes(), time.time()
        self._check_fence()
        if self._cancelled():
            return Decision(action="stop", cause="cancelled", message="cancelled by the user")
        self.run.stop.unlink(missing_ok=True)  # honoured by the attempt before
        self.stop_reason = self.over_time = self.launcher_exit = None
        self.attempt = attempt
        self.run.exits(attempt).mkdir(parents=True, exist_ok=True)
        self.run.update_run(
            state="running",
            reason="",
            attempt=attempt,
            attempt_started=started,
            nodes=list(nodes),
            lost_to=None,
            world_size=self.plan.gpus,
            started_from_step=gather.newest_committed_step(self.run),
            pid=os.getpid(),
            host=os.uname().nodename,
        )
        log.info("attempt %d on %s", attempt, ", ".join(nodes))
        child = self.platform.start(self.run, attempt)
        hung = self._watch(child, started)
        state_of_life = "TIMEOUT" if self.over_time is not None else self.platform.life_state()
        return self._conclude(started, time.time(), nodes, state_of_life, hung=hung)

    def _watch(self, child: Child, started: float) -> bool:
        """Wait for the workers; return True when they had to be ended because they stood still."""
        hung = False
        while child.poll() is None:
            time.sleep(POLL_SECONDS)
            self._forward_signals()
            self.stop_reason = self.stop_reason or self.run.stop_reason()
            if self.over_time is not None and time.monotonic() > self.over_time:
                log.warning("the time limit has come before the workers' checkpoint: ending them to be requeued")
                self.platform.kill(child)
                self.over_time = float("inf")
            newest = max([started, *(beat["time"] for beat in gather.heartbeats(self.run))])
            if not hung and time.time() - newest > self.config.survival.hang_seconds:
                hung = True
                log.warning("no heartbeat for %d s: ending the workers", self.config.survival.hang_seconds)
                self.platform.kill(child)
        log.info("the workers have ended (exit code %s)", child.returncode)
        self.launcher_exit = child.returncode
        self._forward_signals()
        self.stop_reason = self.stop_reason or self.run.stop_reason()  # written since the last look
        return hung

    def _conclude(
        self, started: float, ended: float, nodes: tuple[str, ...], life_state: str | None, *, hung: bool = False
    ) -> Decision:
        """Gather the evidence of our attempt, which has ended, decide, and write its line and the run's state."""
        self._check_fence()
        attempt, state = self.attempt, self.run.read_run()
        workers = gather.worker_exits(self.run, attempt, nodes, self.plan.gpus_per_node)
        evidence = Evidence(
            workers=workers,
            stop_reason=self.stop_reason,
            scheduler_state=life_state,
            bad_nodes=self.platform.bad_nodes(nodes),
            hung=hung,
            launcher_exit=self.launcher_exit,
            started_from_step=state.get("started_from_step"),
            committed_step=gather.newest_committed_step(self.run),
        )
        history = msgspec.convert(state.get("history", {}), History)
        decision = decide(evidence, history, self.config.survival.max_failures)
        record.conclude(self.run, attempt, record.Span(started, ended, nodes), evidence, decision)
        record.remember(self.run, decision)
        log.info("attempt %d: %s -> %s: %s", attempt, decision.cause, decision.action, decision.message)
        return decision

    def _requeue(self, decision: Decision) -> bool:
        """Have the next attempt made; return True when this process makes it."""
        excluded: list[str] = []
        if decision.exclude_nodes:
            # The list replaces the one of the script, so the user's own exclusion stays in it.
            own = [self.config.slurm.exclude] if self.config.slurm.exclude else []
            excluded = [*own, *self.run.read_run()["excluded_nodes"]]
        try:
            return self.platform.requeue(decision, tuple(excluded))
        except FullftError as error:
            self._end("failed", f"{decision.cause}, and the requeue failed: {error}. Use `fullft-cluster resume`.")
            raise


def log_to_stdout() -> None:
    """Send the supervisor's log to its output, with the time."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stdout, format="%(asctime)s supervisor: %(message)s", datefmt="%Y-%m-%d %H:%M:%S"
    )


def main(argv: list[str] | None = None) -> int:
    """Supervise the run in RUN until it ends or the scheduler takes over."""
    parser = argparse.ArgumentParser(prog="python -m fullft_cluster.runtime.supervisor", description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--backend", choices=("local", "slurm"), required=True)
    args = parser.parse_args(argv)
    log_to_stdout()
    run = RunDir(args.run)
    try:
        supervisor = Supervisor(run, platform_of(args.backend))
        supervisor.install_handlers()
        return supervisor.supervise()
    except SupersededError as error:
        log.error("%s", error)
        return error.exit_code
    except Exception as error:
        # A full disk or a fault of ours: said where `status` finds it, if anything can be written at all.
        log.error("%s", error, exc_info=not isinstance(error, FullftError))
        with contextlib.suppress(Exception):
            run.update_run(state="failed", reason=f"the supervisor: {error}", ended=time.time())
        return error.exit_code if isinstance(error, FullftError) else 1


if __name__ == "__main__":
    sys.exit(main())
