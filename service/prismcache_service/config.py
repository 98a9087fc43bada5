"""Settings of the service: those of client and pipeline, and what only a service has."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from platformdirs import user_state_path
from pydantic import ByteSize, Field, field_validator, model_validator

from prismcache.config import Settings, absolute_folder, users_folder


class ServiceConfig(Settings):
    """All settings of the service, immutable; ``PRISMCACHE_*`` in the environment, as `prismcache.Settings`.

    Attributes
    ----------
    host, port
        Where the service listens; port 0 takes a free one, and host ``::`` is every address, of IPv4 too.
    public_url
        The service's URL for users, if a proxy stands in front of it, such as ``https://lab.example/prism``.
    tls_cert, tls_key
        PEM files of the certificate (and of those between it and its authority) and of its private key, by default in
        the same file; with them the service speaks https. They are read again when they are renewed.
    trusted_proxies
        Addresses and networks of the proxies in front, separated by spaces. Of their requests, the client's address
        is the last one in ``X-Forwarded-For`` that is no proxy's, so that limits for each address hold for clients.
    database_url
        SQLAlchemy URL of the job store (``postgresql+asyncpg://…``); default: SQLite in `state_folder`.
    state_folder
        A folder on a local disk for the database and the tokens; never on shared storage.
    tokens_file
        Hashed tokens and roles; default: ``tokens.json`` in `state_folder`.
    insecure
        Serve without tokens on an address that other machines can reach.
    advertised_root
        The path of the cache folder on other machines, if it differs from `root`.
    cors_origins
        Origins of web pages that may read from the service, such as ``https://viewer.lab:8080``, separated by spaces;
        default: only the service's own.
    max_bytes
        Limit in bytes on published files and reservations together; None: the disk is the only limit.
    min_free_bytes
        Bytes that are kept free on the file system.
    low_water
        Eviction, once begun, goes on until this share of `max_bytes` is used.
    lease_seconds
        Life of a retention lease that is not renewed.
    engine
        Where crops are made: "local" in processes of this machine, "dask" on the workers of a Dask cluster.
    dask_scheduler
        Address of its scheduler (``tcp://…``, ``tls://…``) or path of its scheduler file.
    dask_timeout
        Seconds that a crop waits while no worker can take it, before the crop fails.
    max_jobs, max_jobs_per_owner, max_crops_per_job
        Limits on unfinished jobs and their size.
    rate_limit, failed_auth_limit
        Requests a second of one token; failed authentications a minute of one address.
    zarr_byte_rate
        Bytes a second of zarr chunks that one token or link may read; chunks do not count as requests.
    keep_jobs_days
        Days after which finished jobs are deleted.
    shutdown_seconds
        Seconds that a shutdown may take.
    log_format
        "console" or "json".
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8765
    public_url: str | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    trusted_proxies: str = ""
    database_url: str | None = None
    state_folder: Annotated[Path, Field(default_factory=lambda: users_folder(user_state_path))]
    tokens_file: Path | None = None
    insecure: bool = False
    advertised_root: Path | None = None
    cors_origins: str = ""
    max_bytes: Annotated[ByteSize, Field(gt=0)] | None = None
    min_free_bytes: Annotated[ByteSize, Field(ge=0)] = ByteSize(1_000_000_000)
    low_water: Annotated[float, Field(gt=0, le=1)] = 0.9
    lease_seconds: Annotated[float, Field(ge=1, le=86_400)] = 300.0
    engine: Literal["local", "dask"] = "local"
    dask_scheduler: Annotated[str, Field(min_length=1)] | None = None
    dask_timeout: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    max_jobs: Annotated[int, Field(ge=1)] = 10_000
    max_jobs_per_owner: Annotated[int, Field(ge=1)] = 1_000
    max_crops_per_job: Annotated[int, Field(ge=1, le=1000)] = 100
    rate_limit: Annotated[float, Field(gt=0)] = 200.0
    failed_auth_limit: Annotated[int, Field(ge=1)] = 60
    zarr_byte_rate: Annotated[ByteSize, Field(gt=0)] = ByteSize(200_000_000)
    keep_jobs_days: Annotated[float, Field(gt=0)] = 30.0
    shutdown_seconds: Annotated[float, Field(gt=0)] = 5.0
    log_format: Literal["console", "json"] = "console"

    @field_validator("state_folder", "tokens_file", mode="after")
    @classmethod
    def _absolute_path(cls, path: Path | None) -> Path | None:
        return None if path is None else absolute_folder(path)

    @field_validator("cors_origins", mode="after")
    @classmethod
    def _exact_origins(cls, value: str) -> str:
        for origin in value.split():
            parts = urlsplit(origin)
            if parts.scheme not in {"http", "https"} or f"{parts.scheme}://{parts.netloc}" != origin:
                raise ValueError(
                    f"{origin!r} is not an origin; write scheme, host and port, as in https://viewer.lab:8080"
                )
        return value

    @field_validator("public_url", mode="after")
    @classmethod
    def _plain_url(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "https://lab")
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("write scheme, host and path, as in https://lab.example/prism")
        return url and url.rstrip("/")

    @field_validator("trusted_proxies", mode="after")
    @classmethod
    def _networks(cls, value: str) -> str:
        try:
            return " ".join(str(ip_network(word, strict=False)) for word in value.replace(",", " ").split())
        except ValueError as error:
            raise ValueError(f"{error}; write addresses or networks, as in 127.0.0.1 10.0.0.0/8") from None

    @property
    def proxy_networks(self) -> list[IPv4Network | IPv6Network]:
        """`trusted_proxies` as networks."""
        return [ip_network(word) for word in self.trusted_proxies.split()]

    @model_validator(mode="after")
    def _key_has_a_certificate(self) -> ServiceConfig:
        if self.tls_key is not None and self.tls_cert is None:
            raise ValueError("tls_key needs PRISMCACHE_TLS_CERT, the certificate's file")
        return self

    @model_validator(mode="after")
    def _state_is_not_in_the_cache(self) -> ServiceConfig:
        if self.state_folder.is_relative_to(self.root):
            raise ValueError("state_folder must not lie in the cache folder, which is shared storage")
        return self

    @model_validator(mode="after")
    def _dask_has_a_scheduler(self) -> ServiceConfig:
        if self.engine == "dask" and self.dask_scheduler is None:
            raise ValueError("engine 'dask' needs PRISMCACHE_DASK_SCHEDULER, an address or a scheduler file")
        return self
