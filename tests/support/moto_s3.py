"""A second, independent S3 server: moto's, with the objects of a folder, in threads of this process.

Unlike rclone's it honours ``If-Match``, quotes ETags and sends listings in pages of its own.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import boto3
from botocore.config import Config
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer


class MotoServer:
    """A context manager; each first-level folder of `folder` becomes a bucket when the server starts.

    Attributes
    ----------
    endpoint
        URL without a slash at its end.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self.endpoint = ""
        self._client: Any = None

    def put(self, bucket: str, key: str, content: bytes | None) -> None:
        """Create or replace an object; None deletes it."""
        if content is None:
            self._client.delete_object(Bucket=bucket, Key=key)
        else:
            self._client.put_object(Bucket=bucket, Key=key, Body=content, ACL="public-read")

    def __enter__(self) -> Self:
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"
        self._client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="writer",
            aws_secret_access_key="any",
            config=Config(s3={"addressing_style": "path"}),
        )
        for bucket in self._folder.iterdir():
            self._client.create_bucket(Bucket=bucket.name, ACL="public-read")
            for path in bucket.rglob("*"):
                if path.is_file():
                    self.put(bucket.name, path.relative_to(bucket).as_posix(), path.read_bytes())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        s3_backends.reset()  # moto keeps its buckets for the whole process
        self._server.stop()
