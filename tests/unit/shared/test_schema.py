"""Messages as people see them: a job in one line, tables in notebooks, errors in a caller's terms."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from prismcache import CropInfo, PrismError
from prismcache.client.catalog import Catalog
from prismcache.schema import JobRequest, Split
from tests.support.fake_backend import broken, job, ready, running


def test_a_job_is_one_short_line():
    assert str(job(ready(0), running(5))) == "job job-1: instance, running, 1 of 2 crops ready"


def test_a_job_is_a_table_in_a_notebook():
    html = job(running(0, 10), broken(5, PrismError("<b>no</b>")))._repr_html_()
    assert "<td>10.0 MB of 100 MB</td>" in html
    assert "<td>&lt;b&gt;no&lt;/b&gt;</td>" in html


def test_crops_are_tables_in_a_notebook():
    info = CropInfo(split=Split.SEMANTIC, crop=3, labels_shape=(2, 3, 4))
    assert "<td>(2, 3, 4)</td>" in info._repr_html_()
    assert "semantic crop 3" in info._repr_html_()
    assert "<caption>1 crops</caption>" in Catalog([info])._repr_html_()
    assert Catalog([info]) == [info]


@pytest.mark.parametrize("name", ["crops", "channels"])
@pytest.mark.parametrize("value", ["1", 1, {"0": 1}])
def test_what_is_no_list_of_numbers_is_said(name, value):
    with pytest.raises(ValidationError, match="a list of numbers"):
        JobRequest.model_validate({"split": "instance", name: value})
