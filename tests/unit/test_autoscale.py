"""How many members a lag is worth, and that their number neither flaps nor leaves its bounds."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from consumers import autoscale
from consumers.autoscale import (
    DOWN_AFTER_S,
    DOWN_AT_MOST,
    DOWN_INTERVAL_S,
    LEAST,
    UP_AT_MOST,
    UP_INTERVAL_S,
    Scaler,
    wanted,
)
from infra.settings import Settings
from schemas.topics import CONSUMED_BY, StageName
from tests.unit.test_cli import every_command

PER_MEMBER, PARTITIONS = 1_000, 6
K8S = Path(__file__).parent.parent.parent / "infra" / "deploy" / "k8s"
Json = dict[str, Any]

looks = st.lists(st.tuples(st.floats(1, 40), st.integers(0, 20_000)), min_size=1, max_size=60)


def run(seen: list[tuple[float, int]], members: int = 1) -> list[tuple[float, int, int, int]]:
    """(time, lag, members before, members after) of each look (pause before it, lag)."""
    scaler, now_s, history = Scaler(PARTITIONS, PER_MEMBER), 0.0, []
    for pause_s, lag in seen:
        now_s += pause_s
        shall = scaler.decide(now_s, lag, members)
        history.append((now_s, lag, members, shall))
        members = shall
    return history


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_more_lag_never_wants_fewer_members_and_partitions_are_the_most(one: int, other: int) -> None:
    less, more = sorted((wanted(one, PER_MEMBER, PARTITIONS), wanted(other, PER_MEMBER, PARTITIONS)))
    assert LEAST <= less <= more <= PARTITIONS
    assert (wanted(min(one, other), PER_MEMBER, PARTITIONS), wanted(max(one, other), PER_MEMBER, PARTITIONS)) == (
        less,
        more,
    )


@given(looks, st.integers(LEAST, PARTITIONS))
def test_members_stay_within_bounds_and_change_in_small_steps_apart(
    seen: list[tuple[float, int]], members: int
) -> None:
    changes = [(at, before, after) for at, _, before, after in run(seen, members) if before != after]
    assert all(LEAST <= after <= PARTITIONS for _, _, after in changes)
    assert all(-DOWN_AT_MOST <= after - before <= UP_AT_MOST for _, before, after in changes)
    for (earlier, _, _), (later, before, after) in pairwise(changes):
        assert later - earlier >= (UP_INTERVAL_S if after > before else DOWN_INTERVAL_S)


@given(looks, st.integers(LEAST, PARTITIONS))
def test_members_go_only_when_fewer_were_enough_for_the_whole_window(
    seen: list[tuple[float, int]], members: int
) -> None:
    history = run(seen, members)
    for at, _, before, after in history:
        if after < before:
            window = [wanted(lag, PER_MEMBER, PARTITIONS) for t, lag, _, _ in history if at - DOWN_AFTER_S <= t <= at]
            assert after >= max(window)
            assert history[0][0] <= at - DOWN_AFTER_S, "not looked for long enough to know"


@given(st.integers(0, 20_000), st.integers(LEAST, PARTITIONS))
def test_a_steady_lag_is_answered_once_and_for_all(lag: int, members: int) -> None:
    """Whatever it begins with; and then nothing changes any more."""
    ends = [after for _, _, _, after in run([(5.0, lag)] * 200, members)]
    assert ends[-1] == wanted(lag, PER_MEMBER, PARTITIONS)
    assert len({*ends[100:]}) == 1


@given(st.integers(1, 5))
def test_a_lag_that_swings_around_a_threshold_does_not_make_members_come_and_go(threshold: int) -> None:
    swinging = [(5.0, threshold * PER_MEMBER + (1 if n % 2 else -1)) for n in range(200)]
    changes = [after - before for _, _, before, after in run(swinging) if before != after]
    assert all(change > 0 for change in changes)


def test_a_member_too_many_is_taken_back_to_partitions() -> None:
    assert run([(5.0, 10**6)] * 100, members=9)[-1][3] == PARTITIONS


def documents(name: str) -> list[Json]:
    return [each for each in yaml.safe_load_all((K8S / name).read_text()) if each]


@pytest.mark.parametrize("stage", list(StageName))
def test_kubernetes_decides_by_the_same_numbers(stage: str) -> None:
    (scaled,) = (each for each in documents("autoscale.yaml") if each["metadata"]["name"] == stage)
    spec = scaled["spec"]
    (trigger,) = spec["triggers"]
    topic = CONSUMED_BY[stage]
    assert spec["scaleTargetRef"]["name"] == stage
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (LEAST, topic.partitions)
    assert spec["pollingInterval"] == autoscale.EVALUATION_INTERVAL_S
    assert trigger["type"] == "kafka"
    asked = trigger["metadata"]
    assert (asked["consumerGroup"], asked["topic"]) == (stage, topic.name)
    assert asked["lagThreshold"] == str(autoscale.LAG_PER_MEMBER[stage])
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleUp"] == {
        "stabilizationWindowSeconds": 0,
        "policies": [{"type": "Pods", "value": UP_AT_MOST, "periodSeconds": UP_INTERVAL_S}],
    }
    assert behavior["scaleDown"] == {
        "stabilizationWindowSeconds": DOWN_AFTER_S,
        "policies": [{"type": "Pods", "value": DOWN_AT_MOST, "periodSeconds": DOWN_INTERVAL_S}],
    }


def test_a_member_is_worth_more_lag_than_it_has_charges_in_flight() -> None:
    """Else a stage that keeps up would look behind."""
    assert math.ceil(Settings().worker_concurrency / autoscale.LAG_PER_MEMBER["payment-stage"]) == LEAST


def deployments() -> list[Json]:
    return [each for path in K8S.glob("*.yaml") for each in documents(path.name) if each["kind"] == "Deployment"]


def test_manifests_run_commands_and_set_variables_that_exist() -> None:
    """Every role of the pipeline has a Deployment; each is drained before it is killed, and only gateways share a port."""
    commands = {name for name, _ in every_command()}
    (config,) = (each for path in K8S.glob("*.yaml") for each in documents(path.name) if each["kind"] == "ConfigMap")
    assert {name.lower() for name in config["data"]} <= Settings.model_fields.keys()
    found = {each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in deployments()}
    assert found.keys() == {"gateway", "order-stage", "payment-stage", "projector", "relay", "reconciler"}
    for name, pod in found.items():
        (container,) = pod["containers"]
        assert container["args"][0] in commands, name
        assert pod["terminationGracePeriodSeconds"] >= 30, name
        assert {each["name"].lower() for each in container.get("env", [])} <= Settings.model_fields.keys(), name


def test_manifests_know_each_other() -> None:
    """Scaled objects and services point at deployments that are there, by the labels they have."""
    pods = {each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"] for each in deployments()}
    for path in K8S.glob("*.yaml"):
        for each in documents(path.name):
            if each["kind"] == "Service":
                assert any(each["spec"]["selector"].items() <= labels.items() for labels in pods.values())
            if each["kind"] == "ScaledObject":
                assert each["spec"]["scaleTargetRef"]["name"] in pods
            if each["kind"] == "Deployment":
                assert each["spec"]["selector"]["matchLabels"].items() <= pods[each["metadata"]["name"]].items()
