"""How models write calls, for answers that are forced to have them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Members:
    """Arguments that are not JSON as a whole: keys and values one after the other.

    Attributes:
        before, between: around a key.
        text: around a value that is a text.
        end: after a value that is JSON.
        after: after both.
        separator: between two of them.
    """

    before: str
    between: str
    text: tuple[str, str]
    end: str = ""
    after: str = ""
    separator: str = ""


@dataclass(frozen=True)
class Syntax:
    """How a model writes calls.

    Attributes:
        call: before the name and after it.
        call_end: after the arguments.
        begin, end: around all calls.
        separator: between two calls; None if an answer has one alone.
        members: of the arguments; None if these are a JSON object.
        triggers: what begins a call in the middle of a text; none if nothing says so for sure.
        excluded: other texts that begin a call, which a text must not have then.
    """

    call: tuple[str, str]
    call_end: str
    begin: str = ""
    end: str = ""
    separator: str | None = "\n"
    members: Members | None = None
    triggers: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
