"""What README.md says of the machine that its figures were taken on."""

from __future__ import annotations

from tools.docs import figures

HEAD = (
    "Measured on A CPU, 2 cores, 8 GiB; Linux 6. Effective cores {} before, {} after, of 2; more."
)


def document(**heads: str) -> str:
    """docs/benchmarks.md with these heads of tables."""
    return "\n".join(
        f"<!-- {name} benchmark -->\n{head}\n\n| a | b |\n<!-- end {name} benchmark -->"
        for name, head in heads.items()
    )


def test_the_machine_and_its_cores() -> None:
    quiet = HEAD.format("1.95", "2.00")
    assert figures.conditions(document(text=quiet, embeddings=quiet, vision=quiet)) == (
        "A CPU, 2 cores, 8 GiB. Effective cores before and after: text 1.95 and 2.00, "
        "embeddings 1.95 and 2.00, vision 1.95 and 2.00."
    )


def test_figures_of_a_busy_machine_say_so() -> None:
    quiet = HEAD.format("1.95", "2.00")
    busy = f"{HEAD.format('1.20', '2.00')} **Taken on a busy machine**: 1.20 effective cores."
    told = figures.conditions(document(text=quiet, embeddings=busy, vision=quiet))
    assert told.endswith("Taken on a busy machine: embeddings.")
