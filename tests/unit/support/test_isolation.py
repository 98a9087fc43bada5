from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def test_no_settings_or_credentials_of_the_user_are_left() -> None:
    assert not [name for name in os.environ if name.startswith(("PRISMCACHE_", "RCLONE_"))]
    assert [name for name in os.environ if name.startswith("AWS_")] == ["AWS_EC2_METADATA_DISABLED"]


def test_home_and_cache_are_temporary(tmp_path_factory) -> None:
    base = tmp_path_factory.getbasetemp()
    assert Path.home().is_relative_to(base)
    assert user_cache_path("prismcache", appauthor=False).is_relative_to(base)
