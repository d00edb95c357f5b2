from hypothesis import given
from hypothesis import strategies as st

from text_svc.worker.generation.stop_strings import StopFilter

_ALPHABET = "ab\n é"


def filtered(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    """What gets through, and whether a stop string was found."""
    stop_filter = StopFilter(stops)
    sent = ""
    for piece in pieces:
        text, stopped = stop_filter.add(piece)
        sent += text
        if stopped:
            return sent, True
    return sent + stop_filter.rest(), False


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """The same of the whole text: cut where the stop string begins that ends first."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(
    st.lists(st.text(_ALPHABET, max_size=4), max_size=12),
    st.lists(st.text(_ALPHABET, min_size=1, max_size=5), max_size=4),
)
def test_the_result_does_not_depend_on_the_pieces(pieces: list[str], stops: list[str]) -> None:
    assert filtered(pieces, stops) == expected("".join(pieces), stops)


@given(
    st.lists(st.text(_ALPHABET, max_size=4), max_size=12),
    st.lists(st.text(_ALPHABET, min_size=1, max_size=5), min_size=1, max_size=4),
)
def test_only_what_may_begin_a_stop_string_is_held_back(
    pieces: list[str], stops: list[str]
) -> None:
    stop_filter, seen, sent = StopFilter(stops), "", ""
    for piece in pieces:
        text, stopped = stop_filter.add(piece)
        if stopped:
            return
        seen, sent = seen + piece, sent + text
        held = seen[len(sent) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_a_stop_string_in_three_pieces_does_not_leak() -> None:
    stop_filter = StopFilter(["<end>"])
    assert stop_filter.add("story <e") == ("story ", False)
    assert stop_filter.add("n") == ("", False)
    assert stop_filter.add("d> more") == ("", True)


def test_a_false_beginning_is_sent_as_soon_as_it_is_one() -> None:
    stop_filter = StopFilter(["<end>"])
    assert stop_filter.add("a <e") == ("a ", False)
    assert stop_filter.add("at") == ("<eat", False)
