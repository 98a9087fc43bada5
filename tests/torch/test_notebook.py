"""docs/notebook.ipynb runs as it stands in a real kernel, and shows bars and pictures that need no widgets.

``PRISM_NOTEBOOK=1`` writes what its cells show into the file (`make notebook`).
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="make test-torch installs what runs a notebook")
nbclient = pytest.importorskip("nbclient")

pytestmark = pytest.mark.torch

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"


class Recorder(nbclient.NotebookClient):
    """A frontend that remembers each message that a cell's output got, by the cell's place."""

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        self.messages[cell_index].append(msg)
        return super().process_message(msg, cell, cell_index)


@pytest.fixture(scope="module")
def frontend(tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    frontend = Recorder(notebook, timeout=100, kernel_name="python3", resources={"metadata": {"path": NOTEBOOK.parent}})
    frontend.messages = defaultdict(list)
    root = os.environ.get("PRISMCACHE_ROOT") or str(tmp_path_factory.mktemp("root"))
    frontend.execute(env=os.environ | {"PRISMCACHE_ROOT": root})  # raises what a cell raises
    return frontend


def cell_of(frontend: Recorder, code: str) -> int:
    cells = enumerate(frontend.nb.cells)
    return next(index for index, cell in cells if cell.cell_type == "code" and code in cell.source)


def shown(frontend: Recorder, code: str) -> str:
    """Everything that the cell with this code shows, HTML where there is some."""
    outputs = frontend.nb.cells[cell_of(frontend, code)].outputs
    texts = [output.get("text") or output.data.get("text/html") or output.data["text/plain"] for output in outputs]
    return "\n".join(texts)


def test_every_cell_runs_and_stderr_has_signs_of_life_at_most(frontend: Recorder) -> None:
    outputs = [output for cell in frontend.nb.cells for output in cell.get("outputs", ())]
    lines = [line for output in outputs if output.get("name") == "stderr" for line in output.text.splitlines()]
    signs = re.compile("still trying$|s so far$")  # of a busy machine
    assert [line for line in lines if not signs.search(line)] == []
    assert "unknown_crop: " in shown(frontend, 'client.ensure("instance", 99)')
    if os.environ.get("PRISM_NOTEBOOK"):
        for cell in frontend.nb.cells:
            cell.metadata.pop("execution", None)  # when each cell ran
        nbformat.write(frontend.nb, NOTEBOOK)


def test_an_ensure_shows_one_bar_that_is_updated_in_place(frontend: Recorder) -> None:
    cell = cell_of(frontend, 'client.ensure("instance", [0, 5])')
    shows = [message for message in frontend.messages[cell] if "display_data" in message["msg_type"]]
    kinds = [message["msg_type"] for message in shows]
    assert kinds[0] == "display_data"
    assert set(kinds[1:]) == {"update_display_data"}
    assert len({message["content"]["transient"]["display_id"] for message in shows}) == 1
    assert '<progress max="1"' in shows[0]["content"]["data"]["text/html"]
    html = shown(frontend, 'client.ensure("instance", [0, 5])')
    assert "<progress" not in html
    assert html.count("ready in") == 2
    assert "\x1b" not in html


@pytest.mark.parametrize("code", ["crop.show(", "crop = Crop("])
def test_a_crop_and_a_slice_are_pictures(frontend: Recorder, code: str) -> None:
    assert '<img src="data:image/png;base64,' in shown(frontend, code)
