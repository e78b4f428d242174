"""Every formula on problems with known answers: one table, and docs/fidelity.png.

python scripts/fidelity.py [--markdown] [--first-seed N]

The bandits are drawn from seeds that the tests of tests/fidelity do not use. Exits with 1 where a
claim was not reached.
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share the cores; read when torch loads
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from tests.fidelity.laboratory import WRITTEN_WITH  # noqa: E402
from tests.fidelity.picture import draw  # noqa: E402
from tests.fidelity.table import HEADINGS, Line, as_markdown, reached  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--markdown", action="store_true", help="print the table for a README")
    parser.add_argument("--first-seed", type=int, default=100, help="of ten; default 100")
    asked = parser.parse_args()
    seeds = range(asked.first_seed, asked.first_seed + 10)
    if set(seeds) & set(WRITTEN_WITH):
        parser.error(f"seeds {WRITTEN_WITH[0]} to {WRITTEN_WITH[-1]} are those of the tests")
    started = time.monotonic()
    lines = reached(seeds)
    picture = draw(ROOT / "docs" / "fidelity.png", seeds[:3])
    held = sum(line.ok for line in lines)
    summary = (
        f"{held} of {len(lines)} claims reached on bandits of seeds {seeds[0]} to {seeds[-1]} "
        f"(10 actions: the first four; language model: the first two), none of them used by the "
        f"tests; {time.monotonic() - started:.0f} s. Figure: {picture.relative_to(ROOT)}"
    )
    if asked.markdown:
        print(as_markdown(lines), summary, sep="\n\n")
    else:
        show(lines, summary)
    return 0 if held == len(lines) else 1


def show(lines: list[Line], summary: str) -> None:
    table = Table(caption=summary, caption_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if "actions" in heading else "left")
    for line, after in zip(lines, [*lines[1:], None], strict=True):
        last_of_method = after is None or after.first.method != line.first.method
        table.add_row(
            *line.cells, style=None if line.ok else "bold red", end_section=last_of_method
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
