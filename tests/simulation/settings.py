"""The settings every simulated process reads."""

from pathlib import Path

from pydantic import SecretStr

from infra.settings import Settings

SETTINGS = Settings(
    thrones_profile="development",
    thrones_state_dir=Path("unused"),
    postgres_password=SecretStr("x"),
    declines_per_hour_per_user=5,  # of a few users, who are many
)
