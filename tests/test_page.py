"""The page in a real browser: Debian's chromium, driven by playwright."""

import json
import shutil
from contextlib import contextmanager

import pytest
from serve_runs import opened, server_of

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="needs chromium: apt-get install chromium"),
]
TRICKY = '<img src=x onerror="document.title=1">'


@contextmanager
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        one = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


def settled(page) -> dict[str, str]:
    """What each method says, once all have ended."""
    from playwright.sync_api import expect

    expect(page.locator(".card[data-method]")).to_have_count(4, timeout=30_000)
    expect(page.locator("[aria-busy]")).to_have_count(0, timeout=30_000)
    cards = page.locator(".card[data-method]").all()
    return {one.get_attribute("data-method"): one.locator(".said").inner_text() for one in cards}


def ask(page, question: str) -> dict[str, str]:
    page.get_by_label("Question").fill(question)
    page.keyboard.press("Enter")
    page.wait_for_selector("[aria-busy]", state="attached")
    return settled(page)


@pytest.mark.parametrize("width, scheme", [(1100, "light"), (360, "dark")])
def test_a_person_asks_unticks_and_reads(served, finished, tmp_path, width, scheme):
    records = json.loads((finished / "data_aug/demo/dev.json").read_text())
    record = next(one for one in records if one["question"])
    problems = []
    with browser() as chromium:
        context = chromium.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme
        )
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda one: problems.extend([one.url] * ("127.0.0.1" not in one.url)))
        page.goto(f"http://127.0.0.1:{served.port}/")
        said = ask(page, record["question"])
        replies = {m: reply(served, record["question"], m) for m in said}
        assert said == {m: one["answer"] for m, one in replies.items()}
        boxes = page.get_by_role("checkbox")
        assert boxes.count() == 3
        boxes.nth(0).focus()  # with the keyboard alone
        page.keyboard.press("Space")
        page.wait_for_selector("[aria-busy]", state="attached")
        left = [one["id"] for one in replies["prag"]["passages"]][1:]
        without = settled(page)
        assert without["prag"] == reply(served, record["question"], "prag", left)["answer"]
        changed = [m for m in said if without[m] != said[m]]
        marked = page.locator(".changed").all()
        assert [one.get_attribute("data-method") for one in marked] == changed
        page.locator("summary").first.click()
        first = next(
            e for e in record["augment"] if e["id"] == replies["prag"]["passages"][0]["id"]
        )
        assert page.locator("dd").first.inner_text() == first["demo-model_rewrite"].strip()
        assert [d.inner_text() for d in page.locator("dt").all()][1:] == [
            pair["question"] for pair in first["demo-model_qa"]
        ]
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide == width  # nothing to scroll sideways
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        page.reload()
        assert page.get_by_label("Question").input_value() == record["question"]
        ask(page, TRICKY)
        assert page.title() == "Parametric RAG"
        assert problems == []
        context.close()


def reply(served, question: str, method: str, passages: list[str] | None = None) -> dict:
    """What the server says without a browser."""
    from serve_runs import question as body
    from serve_runs import send

    prag = {"method": method} | ({} if passages is None else {"passages": passages})
    return send(served.port, body(question, **prag))[1]["prag"]


def test_errors_are_shown_and_a_key_is_asked_for(finished):
    from playwright.sync_api import expect

    with server_of(opened(finished), key="secret") as server, browser() as chromium:
        page = chromium.new_page()
        page.goto(f"http://127.0.0.1:{server.port}/")
        error = page.get_by_role("alert")
        expect(error).to_contain_text("API key is missing or wrong")
        page.get_by_label("API key").fill("secret")
        said = ask(page, "Who was Hohar Glopoben married to?")
        assert all(said.values()) and error.inner_text() == ""
        page.get_by_label("Question").fill("x " * 990)
        page.keyboard.press("Enter")
        expect(error).to_contain_text("does not fit into the model")
        page.route("**/completions", lambda route: route.abort())
        page.get_by_role("button", name="Ask").click()
        expect(error).to_contain_text("The server does not answer")
        page.unroute("**/completions")
        page.get_by_label("Question").fill("Who?")
        page.get_by_role("button", name="Ask").click()
        expect(error).to_have_text("")
        assert all(settled(page).values())
