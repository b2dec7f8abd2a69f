"""Runs as jobs of a cluster, one each, through submitit."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo.commands.sweeps.execute import Slot, carry_out, last_words
from grpo.commands.sweeps.plan import LaunchConfig, Run

if TYPE_CHECKING:
    import submitit

POLL_S = 2.0
REFUSALS = (NameError, TypeError, ValueError, AssertionError, RuntimeError)
"""What submitit raises for a cluster that is not there, and for resources that it does not know."""


@dataclass(frozen=True)
class TrainJob:
    """What a job does. It can be pickled, and be told that its time is up."""

    launch: LaunchConfig
    is_slurm: bool

    def __call__(self, run: Run) -> str | None:
        """Carry the run out; why it failed, or None."""
        # SLURM ends a job's processes itself, some installations by their group: the run stays in the job's.
        return asyncio.run(carry_out(run, self.launch, os.environ, in_own_group=not self.is_slurm))

    def checkpoint(self, run: Run) -> submitit.helpers.DelayedSubmission:
        """The submission that follows a preemption or the end of the time: the run resumes from its last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, run)


class ClusterRunner:
    """Carries a run out as a job and waits for it. A job that an earlier sweep command left behind is waited for, not
    doubled."""

    def __init__(
        self, cluster: str, folder: Path, launch: LaunchConfig, resources: Mapping[str, Any]
    ) -> None:
        """cluster: `slurm`; `local` and `debug` are submitit's, for trying things out.

        Raises ValueError if submitit refuses the cluster or a resource.
        """
        self._cluster = cluster
        self._lock = asyncio.Lock()
        self._job = TrainJob(launch, is_slurm=cluster == "slurm")
        if "timeout_min" not in resources:
            raise ValueError("slurm.timeout_min is not set: submitit would give a run five minutes")
        from submitit import AutoExecutor

        try:
            self._executor = AutoExecutor(folder=folder, cluster=cluster)
            self._executor.update_parameters(**resources)
        except REFUSALS as error:
            raise ValueError(f"slurm: {str(error).splitlines()[0]}") from error

    async def __call__(self, run: Run, slot: Slot = None) -> str | None:
        """Why the run's job failed, or None; a slot means nothing here, where the cluster deals out the GPUs."""
        job = self._waiting_job(run) or self._executor.submit(self._job, run)
        run.folder.mkdir(parents=True, exist_ok=True)
        _job_file(run).write_text(job.job_id)
        try:
            while not await self._is_done(job):
                await asyncio.sleep(POLL_S)
        except asyncio.CancelledError:
            job.cancel(check=False)
            raise
        # Another command may have waited for the same job.
        _job_file(run).unlink(missing_ok=True)
        return _outcome(job)

    async def _is_done(self, job: submitit.Job[str | None]) -> bool:
        # In a thread, because a job of `debug` is carried out here and now; one at a time, as submitit is not made for
        # threads.
        async with self._lock:
            return await asyncio.to_thread(job.done)

    def _waiting_job(self, run: Run) -> submitit.Job[str | None] | None:
        """The job of an earlier command for this run, if it is still queued or running."""
        # The other clusters end with their command.
        if self._cluster != "slurm" or not _job_file(run).exists():
            return None
        from submitit import SlurmJob

        job = SlurmJob(self._executor.folder, _job_file(run).read_text())
        # UNKNOWN: SLURM has forgotten it. For submitit that is not done.
        return None if job.state == "UNKNOWN" or job.done(force_check=True) else job


def _outcome(job: submitit.Job[str | None]) -> str | None:
    from submitit.core.utils import UncompletedJobError

    try:
        return job.result()
    except UncompletedJobError as error:
        # Killed, out of time, or failed outside our code.
        return f"job {job.job_id}, {job.state}: {last_words(str(error))}"


def _job_file(run: Run) -> Path:
    return run.folder / "job_id.txt"
