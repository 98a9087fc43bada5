"""What is shipped, what it needs, and what the repository must not say."""

import re
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[3]
LIGHT = {"anyio", "httpx2", "platformdirs", "pydantic", "rich", "typer", "filelock", "tenacity"}
HEAVY = {"aiobotocore", "botocore", "distributed", "fastapi", "h5py", "isal", "numcodecs", "numpy", "torch", "zarr"}
SUPPORTED = ("3.11", "3.12", "3.13")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    [path] = folder.glob("*.whl")
    with ZipFile(path) as archive:
        yield archive


def info(wheel: ZipFile, name: str) -> bytes:
    [path] = [path for path in wheel.namelist() if path.endswith(f".dist-info/{name}")]
    return wheel.read(path)


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    return message_from_bytes(info(wheel, "METADATA"))


@pytest.fixture(scope="module")
def requirements(metadata) -> list[Requirement]:
    return [Requirement(text) for text in metadata.get_all("Requires-Dist")]


@pytest.fixture(scope="module")
def pins() -> list[Requirement]:
    return [Requirement(line) for line in constraint_lines()]


def constraint_lines() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def needed_by(requirements: list[Requirement], extra: str, python: str) -> list[Requirement]:
    """What an extra (empty: the base install) needs, its references to our other extras followed."""
    environment = default_environment() | {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "extra": extra,
    }
    found = []
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        if requirement.name == "prismcache":
            found += [inner for name in requirement.extras for inner in needed_by(requirements, name, python)]
        else:
            found.append(requirement)
    return found


def test_wheel_holds_both_packages_with_their_types(wheel):
    names = set(wheel.namelist())
    sources = {
        path.relative_to(top).as_posix()
        for top in (ROOT / "client", ROOT / "service")
        for path in top.rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    assert {"prismcache/py.typed", "prismcache_service/py.typed"} <= sources
    assert sources <= names


def test_wheel_holds_nothing_else(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"prismcache", "prismcache_service"}
    assert not [name for name in wheel.namelist() if "__pycache__" in name]


def test_wheel_is_for_any_system_and_carries_its_licence(wheel):
    assert b"Tag: py3-none-any" in info(wheel, "WHEEL")
    assert b"Apache License" in info(wheel, "licenses/LICENSE")


def test_entry_points(wheel):
    points = ConfigParser()
    points.read_string(info(wheel, "entry_points.txt").decode())
    assert points["console_scripts"]["prismcache"] == "prismcache.cli:main"


@pytest.mark.parametrize("python", SUPPORTED)
def test_base_install_is_light(requirements, python):
    assert {requirement.name for requirement in needed_by(requirements, "", python)} <= LIGHT


def test_importing_the_client_loads_nothing_heavy():
    code = "import sys, prismcache.cli; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "prismcache" in loaded
    assert not (HEAVY | {"prismcache_service"}) & set(loaded)


def test_extras(metadata):
    assert set(metadata.get_all("Provides-Extra")) == {
        "service",
        "torch",
        "torch-em",
        "dask",
        "dev",
        "postgres",
        "viewer",
    }


def test_requirements_name_no_address(requirements):
    assert not [requirement for requirement in requirements if requirement.url]


def test_constraints_are_names_and_versions_only():
    pin = re.compile(r'[a-z0-9][a-z0-9.-]*==[0-9][0-9a-z.]*( ; python_version (<|>=) "3\.\d+"( and .*)?)?')
    assert constraint_lines()
    assert [line for line in constraint_lines() if not pin.fullmatch(line)] == []


@pytest.mark.parametrize("python", SUPPORTED)
def test_constraints_pin_what_the_tests_need(requirements, pins, python):
    environment = default_environment() | {"python_version": python}
    applying = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in applying}
    assert len(versions) == len(applying), "two pins for one package"
    for requirement in needed_by(requirements, "", python) + needed_by(requirements, "dev", python):
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{name} is not pinned: make constraints"
        assert requirement.specifier.contains(versions[name]), f"{requirement} refuses the pin {versions[name]}"


def test_supported_pythons_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    prefix = "Programming Language :: Python :: "
    assert tuple(c.removeprefix(prefix) for c in project["classifiers"] if c.startswith(prefix)) == SUPPORTED
    assert project["requires-python"] == f">={SUPPORTED[0]}"


@pytest.fixture(scope="module")
def tracked() -> dict[str, str]:
    """Every file of the repository, as text."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=False, capture_output=True)
    if listed.returncode:
        pytest.skip("no git repository here")
    names = [name for name in listed.stdout.decode().split("\0") if name]
    return {name: (ROOT / name).read_bytes().decode(errors="replace") for name in names if (ROOT / name).is_file()}


# Both patterns are put together from pieces, since this file is searched too.
def test_no_file_names_a_package_registry(tracked):
    hosts = [("py", "pi"), ("python", "hosted"), ("npm", "js"), ("ana", "conda"), ("deb.", "debian"), ("cra", "tes")]
    needle = re.compile(r"\b(" + "|".join(re.escape("".join(pieces)) for pieces in hosts) + r")\.(org|com|io)\b")
    assert [(name, match.group()) for name, text in tracked.items() for match in needle.finditer(text)] == []


def test_no_file_names_a_path_of_somebodys_machine(tracked):
    folders = [
        ("ho", "me"),
        ("Us", "ers"),
        ("ro", "ot"),
        ("wo", "rk"),
        ("var/", "tmp"),
    ]  # the image has an /opt of its own
    needle = re.compile(r"(?<![\w.~}/$-])/(" + "|".join("".join(pieces) for pieces in folders) + r")/\w[\w.-]*")
    assert [(name, match.group()) for name, text in tracked.items() for match in needle.finditer(text)] == []
