"""`make demo`: from a bucket to a trained network, with the commands that a user types.

The bucket is a small copy on this machine. Crops are fetched without a service, then by a service, then trained on.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from prismcache.config import Settings
from tests.support.bucket import demo_bucket
from tests.support.s3 import S3Server
from tests.support.service import Service, service_config

_FOLDER = Path("build/demo")
_READ = """\
import h5py
with h5py.File("{path}", locking=False) as crop:
    raw, labels, ids = crop["raw/ch_00"], crop["labels"], crop["labels_ids"]
    print("raw/ch_00 ", raw.shape, raw.dtype, "| labels", labels.shape, labels.dtype, "| ids", len(ids) - 1)
    print("offset    ", raw.attrs["offset"], "nm | voxel", raw.attrs["voxel_size"], "nm |", raw.attrs["axis_names"])
    label = labels[()].max()
    print("label", label, "is", ids[label], "in the bucket")
"""


def main() -> None:
    """Make the bucket, serve it, and get crops from it."""
    cache = _FOLDER / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    _say("1. A small bucket. Made-up crops are written to build/demo/bucket, unless they are there already.")
    bucket = demo_bucket(_FOLDER / "bucket")
    with S3Server(bucket) as server:
        _say(
            f"rclone now serves them at {server.endpoint}, in place of the real bucket, s3://e11bio-prism.",
        )
        environment = os.environ | {"PRISMCACHE_S3_ENDPOINT_URL": server.endpoint, "PRISMCACHE_ROOT": str(cache)}
        _say("2. The first call fetches, checks, aligns and relabels the crops; stdout has their paths:")
        paths = _prismcache("ensure instance 0 5", environment)
        _say("3. The second call finds them cached:")
        _prismcache("ensure instance 0 5", environment)
        _say("4. A synapse crop has two channels, and further arrays in place of labels:")
        _prismcache("ensure synapses 0", environment)
        _prismcache("ls", environment)
        _prismcache("verify", environment)
        _say("5. What a file contains, read with h5py:")
        _python(_READ.format(path=paths.split()[0]), environment)
        _train(server.endpoint)


def _train(endpoint: str) -> None:
    """Start a service on a folder of its own, and train on what it fetches."""
    lab = _FOLDER / "lab"
    shutil.rmtree(lab, ignore_errors=True)
    settings = Settings.load({}, root=(lab / "prism").absolute(), s3_endpoint_url=endpoint)
    with Service(service_config(settings, (lab / "state").absolute())) as service:
        _say(f"6. One service for a whole lab: `prismcache serve` now runs at {service.url}; PRISMCACHE_URL says so.")
        environment = os.environ | {"PRISMCACHE_URL": service.url, "PRISMCACHE_ROOT": str(settings.root)}
        _prismcache("ensure instance 0 1", environment)
        _prismcache("status", environment)
        picture = _FOLDER / "prediction.png"
        _say("7. A tiny 3-D U-Net trains on these crops (tests/demo_training.py):")
        subprocess.run([sys.executable, "-m", "tests.demo_training", str(picture)], env=environment, check=True)


def _say(*lines: str) -> None:
    print("", *lines, sep="\n", flush=True)


def _prismcache(arguments: str, environment: dict[str, str]) -> str:
    print(f"$ prismcache {arguments}", flush=True)
    command = [sys.executable, "-m", "prismcache", *shlex.split(arguments)]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    print(output, end="", flush=True)
    return output


def _python(code: str, environment: dict[str, str]) -> None:
    print("".join(f">>> {line}\n" for line in code.splitlines()), end="", flush=True)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


if __name__ == "__main__":
    main()
