"""Whether a path of this machine holds the service's file: decided without looking."""

from __future__ import annotations

import pytest

from prismcache.errors import ServiceError
from prismcache.layout import FileStamp
from prismcache.remote.resolve import ABSENT, Read, Refuse, Sight, Use, decide, local_name
from prismcache.schema import CropFile, Split

FILE = CropFile(split=Split.INSTANCE, crop=5, channels=(0, 1), path="/srv/instance/crop_5.h5", size=30, sha256="aa")
STAMP = FileStamp(size=30, mtime_ns=1, ctime_ns=2)


@pytest.mark.parametrize(
    ("sight", "sha256", "decision"),
    [
        (Sight(STAMP), "aa", Use()),
        (Sight(STAMP), None, Read()),
        (Sight(STAMP), "bb", Refuse("its content is not what the service published")),
        (ABSENT, None, Refuse("it is not there, or cannot be read")),
        (Sight(STAMP.model_copy(update={"size": 29})), None, Refuse("it has 29 bytes instead of 30")),
        (Sight(STAMP.model_copy(update={"size": 0})), "aa", Refuse("it has 0 bytes instead of 30")),
        (Sight(STAMP, signature=False), "aa", Refuse("it is not HDF5")),
        (Sight(regular=False), None, Refuse("it is not a plain file")),
        (Sight(STAMP, inside=False), "aa", Refuse("it is a link that leaves the folder")),
    ],
)
def test_decisions(sight, sha256, decision):
    assert decide(FILE, sight, sha256) == decision


@pytest.mark.parametrize(
    ("path", "channels", "name"),
    [
        ("/srv/x/instance/crop_5.h5", (0, 1), "instance/crop_5.h5"),
        ("/srv/x/instance/crop_5.ch00-01.h5", (0, 1), "instance/crop_5.ch00-01.h5"),
        (r"D:\prism\instance\crop_5.h5", (0,), "instance/crop_5.h5"),
        ("/elsewhere/semantic/../crop_5.h5", (0,), "instance/crop_5.h5"),  # the folder is built, not taken
    ],
)
def test_names_are_built(path, channels, name):
    file = FILE.model_copy(update={"path": path, "channels": channels})
    assert local_name(file).as_posix() == name


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/srv/instance/",
        "/srv/instance/..",
        "/srv/instance/crop_6.h5",
        "/srv/instance/crop_05.h5",
        "/srv/instance/crop_5.ch02.h5",
        "/srv/instance/crop_5.h5/passwd",
        "/srv/instance/crop_5.h5\0",
        "/srv/instance/.prismcache",
        "/srv/instance/crop_5.h5\n",
    ],
)
def test_names_of_anything_else_are_refused(path):
    with pytest.raises(ServiceError, match="which it cannot be"):
        local_name(FILE.model_copy(update={"path": path}))
