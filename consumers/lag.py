"""Groups in, how many records each has still to process out, by partition."""

from infra.settings import Settings
from infra.watermarks import Watermarks, lags


async def read_lags(settings: Settings) -> dict[str, dict[int, int]]:
    """The lag of every group of ours. Raises KafkaError, OSError or TimeoutError when Kafka cannot say."""
    watermarks = Watermarks(settings)
    try:
        return dict(await lags(watermarks))
    finally:
        await watermarks.close()


def show(by_group: dict[str, dict[int, int]]) -> str:
    return "\n".join(
        f"{group:<18}{sum(lag.values()):>9}  ({', '.join(f'{p}: {n}' for p, n in sorted(lag.items()))})"
        for group, lag in by_group.items()
    )
