"""Places shared out by who asks: who holds many gives way, and nobody is limited while he is alone."""

from collections import Counter
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http.shares import Place, Shares, SharesFull


def _nothing() -> None: ...


def test_who_is_alone_has_all_places_and_gives_up_the_oldest_to_who_has_none() -> None:
    shares = Shares(4)
    gone: list[int] = []
    for n in range(4):
        shares.take("flood", partial(gone.append, n))
    with pytest.raises(SharesFull):
        shares.take("flood", _nothing)
    shares.take("buyer", _nothing)
    shares.take("buyer", _nothing)
    assert (gone, shares.count) == ([0, 1], 4)
    with pytest.raises(SharesFull):
        shares.take("buyer", _nothing)
    shares.take("another", _nothing)
    assert shares.count == 4


def test_who_has_as_many_as_one_may_gives_up_his_own_oldest() -> None:
    shares = Shares(10, each=2)
    gone: list[int] = []
    for n in range(5):
        shares.take("flood", partial(gone.append, n))
    assert (gone, shares.count) == ([0, 1, 2], 2)


def test_a_place_is_left_once() -> None:
    shares = Shares(1)
    with shares.hold("a", _nothing) as place:
        assert shares.count == 1
    shares.leave(place)
    assert shares.count == 0


@given(st.integers(1, 6), st.integers(1, 4), st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=60))
def test_the_count_is_right_and_nobody_with_fewer_is_refused_for_one_with_many_more(
    places: int, each: int, steps: list[tuple[str, bool]]
) -> None:
    """Held by each, as told by who gave way, against a plain count."""
    shares = Shares(places, each)
    held: list[Place] = []

    def taken(who: str) -> None:
        place: Place

        def on_displaced() -> None:
            held.remove(place)

        place = shares.take(who, on_displaced)
        held.append(place)

    for who, take in steps:
        before = Counter(place.who for place in held)
        if take:
            try:
                taken(who)
            except SharesFull:
                assert sum(before.values()) == places
                assert max(before.values()) <= before[who] + 1
        elif own := [place for place in held if place.who == who]:
            held.remove(own[0])
            shares.leave(own[0])
        now = Counter(place.who for place in held)
        assert shares.count == len(held) <= places
        assert all(count <= each for count in now.values())
