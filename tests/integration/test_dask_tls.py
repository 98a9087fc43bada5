"""The service, its Dask scheduler and its worker speak TLS, by Dask's own settings alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cache_root import tiny_spec
from tests.support.certificates import HAVE_OPENSSL, make_certificate
from tests.support.dask_cluster import DaskCluster
from tests.support.labs import running_lab
from tests.support.service import Service, service_config
from tests.support.service_jobs import Desk, are_right

pytestmark = pytest.mark.skipif(not HAVE_OPENSSL, reason="no openssl to make certificates with")


def test_a_crop_is_made_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = make_certificate(tmp_path)
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TLS__CA_FILE", str(certificate))
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        monkeypatch.setenv(f"DASK_DISTRIBUTED__COMM__TLS__{role}__CERT", str(certificate))
        monkeypatch.setenv(f"DASK_DISTRIBUTED__COMM__TLS__{role}__KEY", str(key))
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION", "True")
    with running_lab(tmp_path, [tiny_spec()]) as lab, DaskCluster(tmp_path, protocol="tls") as cluster:
        assert cluster.address.startswith("tls://")
        cluster.start_worker()
        dask = {"engine": "dask", "dask_scheduler": cluster.address}
        config = service_config(lab.settings(), tmp_path / "state", min_free_bytes=0, **dask)
        with Service(config) as service, Desk(service) as desk:
            assert are_right(desk.ended(desk.submit(0).id))
