"""The service that all browser tests share, and what they read of its pages. Each test changes crops of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.cache_root import tiny_spec
from tests.support.labs import running_lab
from tests.support.service import Service, service_config
from tests.support.site import Site

MARKUP = "<img src=x onerror='window.hacked = 1'><b>bold</b>"
SPECS = [*(tiny_spec(crop) for crop in range(12)), tiny_spec(0, "semantic")]
CACHED, UNREADABLE = 0, 9


@contextmanager
def running_dashboard(folder: Path) -> Iterator[Site]:
    """A site on which crop 0 is cached and the metadata of crop 9 hold markup."""
    with running_lab(folder, SPECS) as lab:
        document = lab.source(SPECS[UNREADABLE]) / "raw" / ".zarray"
        document.write_text(json.dumps(json.loads(document.read_text()) | {"dtype": MARKUP}))
        config = service_config(lab.settings(workers=1, s3_object_timeout=4.0), folder / "state", min_free_bytes=0)
        with Service(config) as service, service.client() as http:
            site = Site(lab, service, http)
            site.ensure()
            yield site


def row(page: Any, crop: int) -> Any:
    """The row of an instance crop on the page Crops."""
    return page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=f"instance/{crop}", exact=True))


def pixels(page: Any) -> np.ndarray:
    """The canvas of the viewer as (Y, X, 3) uint8."""
    found = page.evaluate(
        "() => { const c = document.getElementById('slice');"
        " return [c.height, c.width, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]; }"
    )
    return np.array(found[2], np.uint8).reshape(found[0], found[1], 4)[..., :3]
