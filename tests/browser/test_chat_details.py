"""The chat page in odd moments, and with text that runs from right to left or tells its links late."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenPage
from tests.browser.site import Site
from tests.browser.test_chat import QUESTION, ask, ballot
from tests.serve.test_reviews import put

pytestmark = pytest.mark.browser

IMPATIENT = "AbortSignal.timeout = ((real) => (ms) => real.call(AbortSignal, ms / 50))(AbortSignal.timeout)"
"""The page's patience, fifty times shorter."""
HEBREW = "למה השמיים כחולים?"


def test_a_conversation_forgotten_while_it_is_answered_stays_forgotten(open_page: OpenPage, site: Site) -> None:
    page = open_page()
    site.hold()
    ask(page)
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.get_by_role("button", name="History").click()
    page.get_by_role("button", name=f"Forget: {QUESTION}").click()
    expect(page.get_by_text("Nothing yet.")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Two answers. You decide.")).to_be_visible()
    assert page.evaluate("localStorage.getItem('hustings.conversations.v1')") == "[]"


def test_a_question_that_runs_from_right_to_left_does_so(open_page: OpenPage) -> None:
    page = open_page()
    page.get_by_label("Your question").fill(HEBREW)
    assert page.get_by_label("Your question").evaluate("field => getComputedStyle(field).direction") == "rtl"
    page.keyboard.press("Enter")
    ballot(page)
    assert page.locator(".turn h2").evaluate("title => getComputedStyle(title).direction") == "rtl"


def test_lists_and_quotes_are_indented_where_their_text_begins(open_page: OpenPage) -> None:
    page = open_page()
    indents = page.evaluate(
        """async (text) => {
          const { Answer } = await import("/web/js/markdown.js");
          const place = document.createElement("div");
          place.className = "answer";
          document.body.append(place);
          new Answer(place).show(text);
          return ["ol", "blockquote"].map((tag) => {
            const { paddingLeft, paddingRight } = getComputedStyle(place.querySelector(tag));
            return [parseFloat(paddingLeft) > 0, parseFloat(paddingRight) > 0];
          });
        }""",
        f"1. {HEBREW}\n2. {HEBREW}\n\n> {HEBREW}",
    )
    assert indents == [[False, True], [False, True]]


def test_a_link_whose_address_comes_last_is_one_as_soon_as_it_is_there(open_page: OpenPage) -> None:
    page = open_page()
    links = page.evaluate(
        """async () => {
          const { Answer } = await import("/web/js/markdown.js");
          const place = document.createElement("div");
          const answer = new Answer(place);
          const found = () => [...place.querySelectorAll("a")].map((link) => link.href);
          answer.show("See [the docs][1].\\n\\nAnd more.");
          const before = found();
          answer.show("See [the docs][1].\\n\\nAnd more.\\n\\n[1]: https://example.org/docs");
          return [before, found()];
        }"""
    )
    assert links == [[], ["https://example.org/docs"]]


@pytest.mark.parametrize(("said", "length"), [(">", 300), (">", 1500), (">", 3999), ("1. ", 3999)])
def test_an_answer_nested_without_end_is_shown_as_it_is_and_can_be_voted_on(
    open_page: OpenPage, site: Site, said: str, length: int
) -> None:
    """The parser's stack ended, or the browser's with the whole page: no ballot came, nor could one ask again."""
    answer = (said * length)[:length]
    site.engine._answer = lambda request, index: answer
    page = open_page()
    ask(page)
    ballot(page)
    expect(page.locator(".card .answer").first).to_have_text(answer.strip())
    page.get_by_role("button", name="Both bad").click()
    expect(page.get_by_text("You found both bad.")).to_be_visible()
    page.reload()
    expect(page.get_by_text("You found both bad.")).to_be_visible()


def test_a_double_click_takes_one_prepared_pair(open_page: OpenPage, site: Site) -> None:
    put(site.deps.paths, 3, fingerprint=site.deps.base_fingerprint())
    page = open_page()
    page.get_by_role("button", name="Judge prepared answers").dblclick()
    ballot(page)
    page.get_by_role("button", name="Tie").click()
    expect(page.get_by_role("button", name="Judge another")).to_be_visible()
    assert site.deps.ledger.counts().pairs == 1


def test_a_vote_whose_answer_never_comes_is_given_up_and_cast_again(open_page: OpenPage, site: Site) -> None:
    page = open_page()
    page.add_init_script(IMPATIENT)
    page.reload()
    ask(page)
    ballot(page)
    page.route("**/v1/votes", lambda route: None)
    page.get_by_role("button", name="B is better").click()
    expect(page.get_by_role("alert")).to_contain_text("Your vote wasn't saved. The server doesn't answer.")
    page.unroute("**/v1/votes")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_text("You preferred B.")).to_be_visible()
    assert site.votes() == 1


def test_the_loop_page_tells_a_server_that_doesnt_answer_from_one_that_isnt_there(open_page: OpenPage) -> None:
    page = open_page("loop")
    expect(page.locator("#pulse")).to_have_text("Live")
    page.add_init_script(IMPATIENT)
    page.route("**/v1/loop", lambda route: None)
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("The server doesn't answer. Trying again.")


def test_a_stream_that_falls_silent_is_lost_and_the_question_can_be_asked_again(open_page: OpenPage) -> None:
    page = open_page()
    page.clock.install()
    page.evaluate(
        """() => {
            window.real = window.fetch;
            window.fetch = async () => new Response(new ReadableStream());
        }"""
    )
    ask(page)
    expect(page.get_by_role("article", name="Answer A")).to_have_attribute("aria-busy", "true")
    page.clock.fast_forward(61_000)
    expect(page.get_by_text("The connection was lost while the answers were being written.")).to_be_visible()
    page.evaluate("() => { window.fetch = window.real; }")
    page.get_by_role("button", name="Ask again").click()
    ballot(page)


def test_the_servers_keep_alives_hold_a_quiet_stream(open_page: OpenPage) -> None:
    page = open_page()
    page.clock.install()
    page.evaluate(
        """async () => {
            const { events } = await import("/web/js/sse.js");
            const body = new ReadableStream({ start: (controller) => (window.server = controller) });
            window.say = (text) => window.server.enqueue(new TextEncoder().encode(text));
            window.heard = [];
            (async () => {
                try { for await (const { data } of events(body)) window.heard.push(data); }
                catch (error) { window.heard.push(String(error)); }
            })();
        }"""
    )
    for _ in range(4):
        page.clock.fast_forward(50_000)
        page.evaluate("window.say(': keep-alive\\n\\n')")
    page.evaluate("window.say('data: still here\\n\\n')")
    assert page.evaluate("window.heard") == ["still here"]
    page.clock.fast_forward(61_000)
    assert page.evaluate("window.heard") == ["still here", "Error: the stream fell silent"]
