"""The checker finds what it is there to find; it is worth as much as these tests."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures.history import Arrival, Batch, Gap, Sent, Verdict, check

TEN = Sent(range(10), [Batch(10)])


def came(*labels: int, sender: str = "a") -> list[Arrival | Gap]:
    return [Arrival(sender, label) for label in labels]


def hole(missing: int, sender: str = "a") -> Gap:
    return Gap("hole", sender, missing)


def violation(sent: dict[str, Sent], stream: list[Arrival | Gap]) -> str:
    with pytest.raises(AssertionError) as caught:
        check(sent, stream)
    return str(caught.value)


def test_everything_came() -> None:
    assert check({"a": TEN}, came(*range(10))) == Verdict(sent=10, received=10, failed=0, in_doubt=0, lost=0)


def test_senders_are_interleaved_as_they_like() -> None:
    stream = [Arrival(sender, label) for label in range(10) for sender in ("b", "a")]
    assert check({"a": TEN, "b": TEN}, [*stream]).received == 20


def test_a_lost_message_without_a_gap() -> None:
    assert "between 3 and 5 of a 1 are missing, and 0 were reported" in violation(
        {"a": TEN}, came(0, 1, 2, 3, 5, 6, 7, 8, 9)
    )


def test_a_lost_message_with_its_gap() -> None:
    stream = [*came(0, 1, 2, 3), hole(1), *came(5, 6, 7, 8, 9)]
    assert check({"a": TEN}, stream).lost == 1


@pytest.mark.parametrize("gap", [hole(2), hole(1, "b")])
def test_a_gap_that_is_another_one(gap: Gap) -> None:
    assert "between 3 and 5" in violation({"a": TEN}, [*came(0, 1, 2, 3), gap, *came(5, 6, 7, 8, 9)])


def test_a_gap_in_another_place() -> None:
    found = violation({"a": TEN}, [*came(0, 1), hole(1), *came(2, 3, 5, 6, 7, 8, 9)])
    assert "between 1 and 2 of a 0 are missing, and 1 were reported" in found
    assert "between 3 and 5" in found


def test_a_gap_of_unknown_size_does_not_excuse_a_hole() -> None:
    """Between two messages of one sender the numbers tell exactly, so the exact gap must be there, too."""
    assert "between 3 and 5" in violation({"a": TEN}, [*came(0, 1, 2, 3), Gap("reconnect"), *came(5, 6, 7, 8, 9)])


def test_gaps_of_several_kinds_add_up() -> None:
    stream = [*came(0, 1, 2), Gap("overflow", "a", 2), hole(1), Gap("attachment", "a", 1), *came(7, 8, 9)]
    assert check({"a": TEN}, stream).lost == 4


@pytest.mark.parametrize("labels", [range(2, 10), range(9), ()])
def test_losses_at_the_ends(labels: range | tuple[int, ...]) -> None:
    assert "loss" in violation({"a": TEN}, came(*labels))
    assert check({"a": TEN}, [Gap("reconnect"), *came(*labels)]).lost == 10 - len(labels)


def test_losses_at_the_ends_may_be_counted() -> None:
    dropped = Gap("overflow", "a", 2)
    assert check({"a": TEN}, [dropped, *came(*range(2, 8)), dropped]).lost == 4
    assert "loss: 4 at the ends of a were committed and never came, and 2 were" in violation(
        {"a": TEN}, [dropped, *came(*range(2, 8))]
    )
    assert "2 are missing at the ends of a, and 4" in violation({"a": TEN}, [dropped, *came(*range(2, 10)), dropped])


def test_a_duplicate() -> None:
    assert "duplicate: a sent 4 1 times, and it came 2 times" in violation({"a": TEN}, came(*range(5), *range(4, 10)))


def test_one_that_was_overtaken() -> None:
    assert "order: 4 of a came after 5" in violation({"a": TEN}, came(0, 1, 2, 3, 5, 4, 6, 7, 8, 9))


def test_phantoms() -> None:
    assert "phantom: a never sent 10" in violation({"a": TEN}, came(*range(11)))
    assert "phantom: 1 messages of b" in violation({"a": TEN}, [*came(*range(10)), *came(0, sender="b")])


def test_a_failure_that_is_known() -> None:
    sent = Sent(range(4), [Batch(2), Batch(1, failed=1), Batch(1)])
    assert check({"a": sent}, [*came(0, 1), hole(1), *came(3)]) == Verdict(4, 3, failed=1, in_doubt=0, lost=0)
    assert "untrue" in violation({"a": sent}, came(0, 1, 2, 3))
    # A receiver cannot know that nobody was told, so it must say so.
    assert "between 1 and 3" in violation({"a": sent}, came(0, 1, 3))


def test_a_failure_at_the_end_needs_no_gap() -> None:
    assert check({"a": Sent(range(2), [Batch(1), Batch(1, failed=1)])}, came(0)).lost == 0


def test_in_doubt_is_neither() -> None:
    sent = Sent(range(3), [Batch(1), Batch(1, failed=1, in_doubt=1), Batch(1)])
    assert check({"a": sent}, came(0, 1, 2)).lost == 0
    assert check({"a": sent}, [*came(0), hole(1), *came(2)]).lost == 0


def test_a_loss_is_not_excused_by_a_failure_elsewhere() -> None:
    sent = Sent(range(4), [Batch(1), Batch(1, failed=1), Batch(1), Batch(1)])
    assert check({"a": sent}, [*came(0), hole(2), *came(3)]).lost == 1
    assert "loss: 1 at the ends of a were committed" in violation({"a": sent}, [*came(0), hole(1), *came(2)])


IDENTICAL = Sent([0, 1, 1, 1, 4, 5], [Batch(1)] * 6)


def test_identical_bodies() -> None:
    assert check({"a": IDENTICAL}, came(0, 1, 1, 1, 4, 5)).lost == 0
    assert "between 0 and 4 of a 1 are missing" in violation({"a": IDENTICAL}, came(0, 1, 1, 4, 5))
    assert check({"a": IDENTICAL}, [*came(0, 1), hole(1), *came(1, 4, 5)]).lost == 1
    assert "duplicate" in violation({"a": IDENTICAL}, came(0, 1, 1, 1, 1, 4, 5))
    assert "order" in violation({"a": IDENTICAL}, came(0, 1, 1, 4, 1, 5))


@given(st.integers(), st.integers(1, 40))
def test_any_single_fault_is_found(seed: int, count: int) -> None:
    """Of a history that is right, one that lacks, repeats or swaps anything is wrong."""
    random_ = random.Random(seed)  # noqa: S311 - not for secrets
    labels = sorted(random_.choices(range(count), k=count))
    sent = {"a": Sent(labels, [Batch(count)])}
    stream = came(*labels)
    check(sent, stream)
    place = random_.randrange(count)
    assert violation(sent, stream[:place] + stream[place + 1 :])
    assert violation(sent, [*stream[:place], stream[place], *stream[place:]])
    other = random_.randrange(count)
    if labels[place] != labels[other]:
        stream[place], stream[other] = stream[other], stream[place]
        assert violation(sent, stream)
