"""README and docs: their commands are ones that the scripts take, their links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import REPOSITORY
from test_configs import parse

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def commands(page: Path) -> list[list[str]]:
    """The words after `python` of each whole command of this repository in the page."""
    text = page.read_text(encoding="utf-8")
    found = []
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        block = block.replace("\\\n", " ")
        for name, value in re.findall(r'^(\w+)="(.*)"$', block, re.MULTILINE):
            block = block.replace(f"${name}", value)
        found += re.findall(r"^python ((?:src/|prep_elastic).*)$", block, re.MULTILINE)
    return [shlex.split(command, comments=True) for command in found if "…" not in command]


def anchors(page: Path) -> set[str]:
    """The names that links give to the page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_ones_that_the_scripts_take(page):
    for script, *words in commands(page):
        try:
            parse(script, words)
        except SystemExit:
            pytest.fail(f"{page.name}: {script} {shlex.join(words)}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)]*)\)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            file, _, anchor = link.partition("#")
            target = page.parent / file if file else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_readme_stays_short():
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 250
