"""A lab with a service in front of it, and a plain HTTP client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from prismcache.schema import Job
from tests.support.cache_root import Lab
from tests.support.crops import CropSpec
from tests.support.labs import running_lab
from tests.support.service import Service, service_config


@dataclass(frozen=True)
class Site:
    """What a test of the HTTP API needs."""

    lab: Lab
    service: Service
    http: httpx2.Client

    def submit(self, **request: Any) -> Job:
        """Submit a job for instance crops, unless the request says otherwise."""
        response = self.http.post("/v1/jobs", json={"split": "instance"} | request)
        assert response.status_code in {200, 202}, response.text
        return Job.model_validate(response.json())

    def finish(self, job: Job) -> Job:
        """Wait for the end of a job."""
        while not job.state.is_final:
            response = self.http.get(f"/v1/jobs/{job.id}", params={"wait": 20, "revision": job.revision})
            job = Job.model_validate(response.raise_for_status().json())
        return job

    def ensure(self, **request: Any) -> Path:
        """Have a crop cached; return the path of its file. Default: instance crop 0."""
        [crop] = self.finish(self.submit(**({"crops": [0]} | request))).crops
        assert crop.file is not None
        return Path(crop.file.path)


@contextmanager
def running_site(folder: Path, specs: Iterable[CropSpec], **config: Any) -> Iterator[Site]:
    """A service on a lab with these crops in its bucket; it ends in peace and without a traceback in its log."""
    with running_lab(folder, specs) as lab:
        settings = service_config(lab.settings(workers=1), folder / "state", min_free_bytes=0, **config)
        with Service(settings) as service, service.client() as http:
            yield Site(lab, service, http)
            assert service.terminate() == 0
            assert "Traceback" not in service.log
