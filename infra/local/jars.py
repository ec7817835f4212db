"""Downloads Kafka's jars, from one pinned Maven coordinate into a cache that `make reset` keeps."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infra.supervision.ports import StackError

KAFKA = "org.apache.kafka:kafka_2.13:4.4.0"
LOGGING = "org.slf4j:slf4j-jdk14:1.7.36"  # Kafka uses slf4j 1.7; java.util.logging needs no further jar
DOWNLOAD_TIMEOUT_S = 60


def cache_dir() -> Path:
    """`THRONES_CACHE_DIR`, else the user's cache directory. All clones share it, and no command deletes it."""
    named = os.environ.get("THRONES_CACHE_DIR")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named) if named else base / "backend-of-thrones"


def kafka_jars() -> list[Path] | None:
    """The jars, or None if no `fetch_kafka` has finished yet."""
    try:
        jars = [Path(line) for line in _manifest().read_text().splitlines()]
    except FileNotFoundError:
        return None
    return jars if jars and all(jar.is_file() for jar in jars) else None


def fetch_kafka(say: Callable[[str], None] = print) -> list[Path]:
    """Download the missing jars (about 45 MB the first time). Raises StackError, which says what to do."""
    present = kafka_jars()
    if present:
        return present
    say(f"fetching {KAFKA} (about 45 MB, once) into {cache_dir()}")
    try:
        jars = _resolve(say)
    except Exception as error:  # jgo raises HTTP, XML and file errors; all have the same remedy
        raise StackError(
            f"Kafka's jars could not be fetched: {type(error).__name__}: {error}\n"
            "  Check that this machine reaches Maven Central (a proxy: set https_proxy; a certificate of its own:\n"
            "  REQUESTS_CA_BUNDLE), then run `make setup` again;\n"
            f"  finished downloads are kept. Offline: copy {cache_dir()} from a machine that has it."
        ) from error
    _manifest().write_text("\n".join(map(str, jars)))
    say(f"{len(jars)} jars ready")
    return jars


def _resolve(say: Callable[[str], None]) -> list[Path]:
    from jgo.env import (
        EnvironmentBuilder,
    )  # a second of imports, needed by `setup` only
    from jgo.maven import MavenContext, PythonResolver

    class Telling(PythonResolver):
        def download(self, artifact: Any) -> Path | None:
            path: Path | None = super().download(artifact)
            if path and path.suffix == ".jar":
                say(f"  {path.name} ({path.stat().st_size / 1e6:.1f} MB)")
            return path

    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    context = MavenContext(resolver=Telling(), repo_cache=folder / "maven", timeout=DOWNLOAD_TIMEOUT_S)
    environment = EnvironmentBuilder(context=context, cache_dir=folder / "jgo").from_endpoint(f"{KAFKA}+{LOGGING}")
    jars = sorted(environment.path.glob("jars/*.jar")) + sorted(environment.path.glob("modules/*.jar"))
    if not any(jar.name.startswith("kafka_2.13-") for jar in jars):
        raise FileNotFoundError(f"no Kafka jar under {environment.path}")
    return jars


def _manifest() -> Path:
    return cache_dir() / f"{KAFKA.replace(':', '_')}.jars"
