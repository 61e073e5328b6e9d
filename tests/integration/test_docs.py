"""What the documents say can be done, is done; and what they point to is there."""

from __future__ import annotations

import re
from datetime import date
from itertools import chain
from pathlib import Path

import asyncpg
import pytest
from PIL import Image

from tests.draw_house import said
from tests.support import OwnDatabase, sql_blocks

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    chain(ROOT.glob("*.md"), (ROOT / "docs").rglob("*.md"), (ROOT / "tests").glob("*.md"))
)


def anchors(page: Path) -> set[str]:
    """The anchors that headings get, as hosting platforms make them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target


async def test_retention_by_partitions_is_done_as_it_is_written(database: OwnDatabase) -> None:
    (block,) = [block for block in sql_blocks("operating.md") if "DETACH PARTITION" in block]
    connection = await asyncpg.connect(database.url)
    for day in (date(2026, 1, 1), date(2026, 1, 2)):
        await connection.execute("SELECT iov.make_partition('nev', $1)", day)
    block = block.replace("DETACH PARTITION iov.nev_20260101", "DETACH PARTITION iov.nev_20260102")
    listed, dropped, detached = [part for part in block.split(";") if part.strip(" \n-")][:3]
    names = [row["relname"] for row in await connection.fetch(listed)]
    assert {"nev_20260101", "nev_20260102"} <= set(names)
    await connection.execute(dropped)
    await connection.execute(re.sub(r"--.*", "", detached))
    left = [row["relname"] for row in await connection.fetch(listed)]
    assert set(names) - set(left) == {"nev_20260101", "nev_20260102"}
    assert await connection.fetchval("SELECT count(*) FROM iov.nev_20260102") == 0
    await connection.close()


def test_the_figure_of_the_house_is_what_the_code_says() -> None:
    with Image.open(ROOT / "docs/house.png") as figure:
        assert figure.info["Description"] == said(), "make docs"
