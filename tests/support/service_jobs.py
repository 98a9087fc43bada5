"""Jobs of a real service, spoken to as curl would: plain HTTP, no client of ours."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from prismcache.schema import CropInfo, Job, Lease, ServiceStatus
from tests.support.service import Service

DEADLINE = 60.0


class Desk:
    """One connection to a running service; a context manager that closes it."""

    def __init__(self, service: Service, token: str | None = None) -> None:
        self.http = service.client(token, timeout=DEADLINE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()

    def submit(self, *crops: int, priority: int = 0) -> Job:
        """Ask for instance crops."""
        body = {"split": "instance", "crops": crops, "priority": priority}
        return Job.model_validate(self.http.post("/v1/jobs", json=body).raise_for_status().json())

    def job(self, job_id: str) -> Job:
        """A job as it is."""
        return Job.model_validate(self.http.get(f"/v1/jobs/{job_id}").raise_for_status().json())

    def cancel(self, job_id: str) -> Job:
        """Cancel a job."""
        return Job.model_validate(self.http.delete(f"/v1/jobs/{job_id}").raise_for_status().json())

    def ended(self, job_id: str) -> Job:
        """The job once it is over.

        Raises
        ------
        TimeoutError
            If that takes more than `DEADLINE` seconds; shows the job.
        """
        job, end = self.job(job_id), time.monotonic() + DEADLINE
        while not job.state.is_final:
            if time.monotonic() > end:
                raise TimeoutError(f"not over: {job}")
            path = f"/v1/jobs/{job_id}?wait=5&revision={job.revision}"
            job = Job.model_validate(self.http.get(path).raise_for_status().json())
        return job

    def lease(self, *crops: int) -> Lease:
        """Lease instance crops."""
        body = {"split": "instance", "crops": crops}
        return Lease.model_validate(self.http.post("/v1/leases", json=body).raise_for_status().json())

    def release(self, lease: Lease) -> None:
        """End a lease."""
        self.http.delete(f"/v1/leases/{lease.id}").raise_for_status()

    def touch(self, crop: int) -> None:
        """Use a cached instance crop."""
        self.http.get(f"/v1/crops/instance/{crop}/file", headers={"Range": "bytes=0-0"}).raise_for_status()

    def crop(self, crop: int) -> CropInfo:
        """One instance crop."""
        return CropInfo.model_validate(self.http.get(f"/v1/crops/instance/{crop}").raise_for_status().json())

    def status(self) -> ServiceStatus:
        """What the service is doing."""
        return ServiceStatus.model_validate(self.http.get("/v1/status").raise_for_status().json())

    def read_catalog(self) -> None:
        """Have the service ask the bucket for its catalog, which it does once a day, so that it does not later."""
        self.http.get("/v1/crops").raise_for_status()


def are_right(job: Job) -> bool:
    """Whether each crop of a job has a file with the content that was promised."""
    return all(
        crop.file is not None and hashlib.sha256(Path(crop.file.path).read_bytes()).hexdigest() == crop.file.sha256
        for crop in job.crops
    )


def codes(job: Job) -> Sequence[str]:
    """What became of each crop: its state, or its error's code."""
    return [crop.problem.code if crop.problem else crop.state.value for crop in job.crops]
