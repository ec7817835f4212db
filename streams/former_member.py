"""Takes a killed predecessor of this process out of its consumer group.

Kafka would leave its partitions with it until its session ends, ten seconds later. A live member that is taken out joins
again, and works under a new generation, so a mistake costs a rebalance and nothing else.
"""

import asyncio
from contextlib import suppress

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.protocol.group import LeaveGroupRequest

from infra.logs import get_logger
from infra.settings import Settings

GIVE_UP_S = 3.0  # then its session has to end


class FormerMember:
    """The member id that Kafka gave the last process with this group and number, in a file of the state directory."""

    def __init__(self, settings: Settings, group: str) -> None:
        self._settings, self._group = settings, group
        self._file = settings.thrones_state_dir / "faust" / f"{group}-{settings.thrones_member}.member-id"

    def remember(self, member_id: str) -> None:
        self._file.write_text(member_id)

    def forget(self) -> None:
        """This process leaves the group by itself."""
        self._file.unlink(missing_ok=True)

    async def leave(self) -> None:
        if not self._file.exists():
            return
        with suppress(KafkaError, OSError):  # Kafka is away: its session ends meanwhile
            async with asyncio.timeout(GIVE_UP_S):
                await self._leave(self._file.read_text())
        self.forget()

    async def _leave(self, member_id: str) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._settings.kafka_bootstrap_servers)
        await admin.start()
        try:
            coordinator = await admin.find_coordinator(self._group)
            answer = await admin._send_request(LeaveGroupRequest(self._group, member_id), coordinator)  # noqa: SLF001 - no public way
            get_logger().info("took a killed member out of the group", member=member_id, error=answer.error_code)
        finally:
            await admin.close()
