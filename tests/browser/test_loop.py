"""The Loop page in a real browser: on the real app, and on states of the loop that take long to bring about."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import PHONE, OpenPage
from tests.browser.samples import LOOP, STANDINGS
from tests.browser.site import ADAPTER, TOKEN, Site

pytestmark = pytest.mark.browser


def station(page: Page, name: str) -> Any:
    return page.get_by_role("region", name=name, exact=True)


@pytest.fixture
def canned(open_page: OpenPage) -> Any:
    """Open the page on this state; the state may be changed while the page runs."""

    def open_it(state: dict[str, Any], **options: Any) -> Page:
        page = open_page("healthz", **options)
        page.route("**/v1/loop", lambda route: route.fulfill(json=state))
        page.goto(page.url.replace("healthz", "loop"))
        return page

    return open_it


def test_it_shows_the_real_loop_and_follows_it(open_page: OpenPage, site: Site) -> None:
    (site.deps.paths.train / "status.json").write_text(
        json.dumps(
            {
                "phase": "ppo",
                "cycle": 1,
                "progress": 0.5,
                "samples": [
                    {
                        "prompt": "system\nBe kind.\nuser\nHello?\nassistant\n",
                        "before": "Yes.",
                        "after": "Hello to you!",
                    }
                ],
                "dataset": {"snapshot": "abc", "decisive": 70, "new": 6, "needed": 64},
                "cycles": [],
            }
        )
    )
    page = open_page("loop")
    expect(page.get_by_text("Live")).to_be_visible()
    expect(station(page, "In office")).to_contain_text(ADAPTER)
    expect(station(page, "Training")).to_contain_text("PPO")
    expect(page.get_by_role("progressbar", name="Progress of the training cycle")).to_have_attribute(
        "aria-valuenow", "50"
    )
    expect(station(page, "Dataset")).to_contain_text("6 new, training begins at 64")
    expect(page.get_by_role("heading", name="Hello?", exact=True)).to_be_visible()
    expect(page.get_by_text("Hello to you!")).to_be_visible()
    expect(station(page, "Votes")).to_contain_text("0votes")
    answered = page.request.post(
        site.url + "v1/pairs", data={"messages": [{"role": "user", "content": "Why is the sky blue?"}]}
    ).json()
    page.request.post(site.url + "v1/votes", data={"pair_id": answered["pair_id"], "choice": "tie"})
    expect(station(page, "Votes")).to_contain_text("1vote")
    expect(station(page, "Votes")).to_contain_text("tie 1")


def test_an_operator_rolls_back_after_a_wrong_token(open_page: OpenPage, site: Site) -> None:
    page = open_page("loop", expected=("401",))
    page.get_by_role("button", name="Roll back").click()
    dialog = page.get_by_role("dialog", name="Roll back?")
    dialog.get_by_label("Operator token").fill("wrong")
    dialog.get_by_role("button", name="Roll back").click()
    expect(dialog.get_by_role("alert")).to_be_visible()
    dialog.get_by_label("Operator token").fill(TOKEN)
    dialog.get_by_label("Reason").fill("it rambles")
    dialog.get_by_role("button", name="Roll back").click()
    expect(dialog).to_be_hidden()
    expect(station(page, "In office")).to_contain_text("The base model")
    expect(page.get_by_role("button", name="Roll back")).to_be_disabled()
    assert page.evaluate("Object.values(sessionStorage)") == [TOKEN]
    assert page.evaluate("JSON.stringify(localStorage)").find(TOKEN) == -1


def test_promote_and_reject_ask_once_for_the_token_and_name_the_release(canned: Any) -> None:
    acts: list[tuple[str, str | None, Any]] = []

    def act(route: Route) -> None:
        request = route.request
        acts.append((request.url.rpartition("/v1/")[2], request.headers.get("authorization"), request.post_data_json))
        route.fulfill(json={})

    page = canned(copy.deepcopy(LOOP))
    page.route("**/v1/releases/**", act)
    expect(page.get_by_role("button", name="Promote policy-000003")).to_have_count(0)
    page.get_by_role("button", name="Promote policy-000004").click()
    page.get_by_label("Operator token").fill("right")
    page.get_by_role("button", name="Promote", exact=True).click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.get_by_role("button", name="Reject policy-000004").click()
    expect(page.get_by_label("Operator token")).to_be_hidden()
    page.get_by_label("Reason").fill("too long")
    page.get_by_role("button", name="Reject", exact=True).click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert acts == [
        ("releases/policy-000004/promote", "Bearer right", {}),
        ("releases/policy-000004/reject", "Bearer right", {"reason": "too long"}),
    ]


def test_charts_have_their_figures_in_words_and_in_a_table(canned: Any) -> None:
    page = canned(copy.deepcopy(LOOP))
    figure = page.get_by_role("img", name="Win rate by cycle")
    expect(figure).to_have_attribute(
        "aria-label",
        "Win rate by cycle: policy-000001 47%, policy-000002 58%, policy-000003 63%, policy-000004 66%",
    )
    page.get_by_text("The same as a table").click()
    rows = page.locator("#cycles-table tbody tr")
    expect(rows).to_have_count(4)
    expect(rows.nth(1)).to_contain_text("policy-00000258%0.346.4published")


def test_a_chart_says_which_cycle_its_figure_is_of(canned: Any) -> None:
    """A refused cycle has none: the figure of the one before stood there as if it were the newest's."""
    state = copy.deepcopy(LOOP)
    page = canned(state)
    caption = page.get_by_role("figure").filter(has_text="Win rate").locator("figcaption")
    expect(caption).to_have_text("Win rate66%cycle 4")
    state["cycles"].append({"cycle": 5, "outcome": "refused", "reason": "no policy", "win_rate": None, "kl": None})
    expect(page.locator("#cycles-table tbody tr")).to_have_count(5)
    expect(caption).to_have_text("Win rate66%cycle 4")
    state["cycles"].append({"cycle": 6, "adapter": "policy-000005", "outcome": "published", "win_rate": 0.7})
    expect(caption).to_have_text("Win rate70%cycle 6")


def test_a_focused_button_keeps_the_focus_while_figures_change(canned: Any) -> None:
    state = copy.deepcopy(LOOP)
    page = canned(state)
    page.get_by_role("button", name="Promote policy-000004").focus()
    state["votes"]["total"] = 1234
    state["releases"].insert(0, {**state["releases"][0], "name": "policy-000005"})
    expect(station(page, "Votes")).to_contain_text("1,234")
    expect(page.get_by_role("button", name="Promote policy-000005")).to_be_visible()
    expect(page.get_by_role("button", name="Promote policy-000004")).to_be_focused()


def test_a_fresh_installation_has_words_for_what_is_not_there_yet(canned: Any) -> None:
    page = canned({"now": LOOP["now"], "office": {"adapter": None, "since": None}, "training": None, "dataset": None})
    expect(page.get_by_text("No cycle has ended yet.")).to_be_visible()
    expect(page.get_by_text("No adapter yet.")).to_be_visible()
    expect(station(page, "In office")).to_contain_text("The base model")
    assert "undefined" not in page.inner_text("main")
    assert "NaN" not in page.inner_text("main")


def test_a_lost_server_is_told_and_found_again(open_page: OpenPage) -> None:
    page = open_page("loop", expected=("ERR_FAILED",))
    expect(page.get_by_text("Live")).to_be_visible()
    page.route("**/v1/loop", lambda route: route.abort())
    expect(page.get_by_role("alert")).to_contain_text("The server can't be reached.")
    page.unroute("**/v1/loop")
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.get_by_text("Live")).to_be_visible()


def test_on_a_phone_nothing_is_wider_than_the_page(canned: Any) -> None:
    page = canned(copy.deepcopy(LOOP), **PHONE)
    expect(page.get_by_role("button", name="Promote policy-000004")).to_be_attached()
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_the_latest_report_is_one_click_away(open_page: OpenPage, site: Site) -> None:
    folder = site.deps.paths.train / "cycles" / "000002"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text(
        "<!doctype html><title>Cycle 2</title><style>h1{color:red}</style><h1>policy-2</h1>"
    )
    cycles = [{"cycle": number, "adapter": "x", "outcome": "published", "report": number == 2} for number in (1, 2, 3)]
    (site.deps.paths.train / "status.json").write_text(json.dumps({"phase": "idle", "cycles": cycles}))
    page = open_page("loop", expected=("404",))
    page.get_by_role("link", name="Report of cycle 2").click()
    expect(page.get_by_role("heading", name="policy-2")).to_have_css("color", "rgb(255, 0, 0)")
    assert page.request.get(site.url + "loop/cycles/3/report").status == 404


def test_the_leaderboard_shows_strengths_with_their_intervals_and_what_was_left_out(open_page: OpenPage) -> None:
    page = open_page("healthz", **PHONE)
    page.route("**/v1/leaderboard", lambda route: route.fulfill(json=STANDINGS))
    page.goto(page.url.replace("healthz", "loop"))
    table = page.get_by_role("table", name="Leaderboard")
    best, base = (table.get_by_role("row", name=name) for name in ("policy-000002", "The base model"))
    expect(best).to_contain_text("+0.27 (+0.08 to +0.49)")
    expect(best).to_contain_text("62.8%")
    expect(base).to_contain_text("-0.27 (-0.49 to -0.08)")
    expect(page.get_by_text("left out: 6 planted pairs, 1 pair in which an answer gave itself away")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_election_shows_win_rate_guards_and_alarm(canned: Any) -> None:
    state = copy.deepcopy(LOOP)
    page = canned(state)
    canary = page.get_by_role("article", name="policy-000004 against policy-000003", exact=True)
    expect(canary).to_contain_text("118 votes of 59 people; 39 ballots count")
    expect(canary).to_contain_text("61 won, 42 lost, 15 tied, 0 both bad")
    expect(canary).to_contain_text("61% of the evidence that a promotion needs")
    expect(canary.get_by_role("img")).to_have_attribute("aria-label", "Win rate 56.5%, between 48.2% and 64.8%")
    expect(canary.get_by_role("listitem")).to_have_count(6)
    expect(canary.get_by_role("listitem").nth(0)).to_have_text("Length1.12 timeslimit 2 times")
    expect(canary.get_by_role("listitem").nth(1)).to_contain_text("−2%")
    alarm = page.get_by_role("article", name="In office: policy-000003 against policy-000002")
    expect(alarm).to_contain_text("44 votes of 22 people")
    state["canary"]["guards"][0] |= {"value": 2.6, "vetoes": True}
    expect(canary.get_by_role("listitem").nth(0)).to_contain_text("Length (veto)")
    state["canary"] = state["alarm"] = None
    expect(page.get_by_role("article")).to_have_count(0)


def test_an_operator_pauses_and_resumes_releases_with_a_name(open_page: OpenPage, site: Site) -> None:
    page = open_page("loop")
    expect(page.get_by_text("A new adapter takes office as soon as it has proved")).to_be_visible()
    page.get_by_role("button", name="Pause releases").click()
    dialog = page.get_by_role("dialog", name="Pause releases?")
    dialog.get_by_label("Operator token").fill(TOKEN)
    dialog.get_by_label("Reason").fill("odd votes")
    dialog.get_by_label("Your name").fill("ann")
    dialog.get_by_role("button", name="Pause").click()
    expect(dialog).to_be_hidden()
    expect(page.get_by_text("Paused by ann: odd votes")).to_be_visible()
    page.get_by_role("button", name="Resume releases").click()
    dialog = page.get_by_role("dialog", name="Let releases go on?")
    expect(dialog.get_by_label("Your name")).to_have_value("ann")
    dialog.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("button", name="Pause releases")).to_be_visible()
    assert [(change.paused, change.actor) for change in site.deps.ledger.gate_history()] == [
        (True, "ann"),
        (False, "ann"),
    ]


def test_older_releases_come_a_page_at_a_time_and_anew_when_one_changes(canned: Any) -> None:
    newest = [LOOP["releases"][2] | {"name": f"policy-{number:06d}"} for number in range(95, 75, -1)]
    state = copy.deepcopy(LOOP) | {
        "releases": newest,
        "release_pages": {"total": 95, "change": 400, "next": "policy-000076"},
    }
    page = canned(state)
    asked: list[str] = []
    reason = ["followed"]

    def older(route: Route) -> None:
        before = int(route.request.url.partition("before=policy-")[2][:6])
        asked.append(f"{before}")
        rows = [
            LOOP["releases"][2] | {"name": f"policy-{number:06d}", "reason": reason[0]}
            for number in range(before - 1, max(before - 51, 0), -1)
        ]
        following = rows[-1]["name"] if before > 51 else None
        route.fulfill(json={"releases": rows, "next": following})

    page.route("**/v1/releases?*", older)
    table = page.get_by_role("table", name="Releases")
    expect(page.get_by_text("20 of 95 shown")).to_be_visible()
    page.get_by_role("button", name="Show older").click()
    expect(page.get_by_text("70 of 95 shown")).to_be_visible()
    expect(table.get_by_role("row")).to_have_count(71)
    page.get_by_role("button", name="Show older").click()
    expect(table.get_by_role("row")).to_have_count(96)
    expect(page.get_by_role("button", name="Show older")).to_be_hidden()
    expect(table.get_by_role("row").last).to_contain_text("policy-000001")
    assert asked == ["76", "26"]
    reason[0] = "rejected in a hurry"
    state["release_pages"]["change"] = 401
    expect(table.get_by_role("row").last).to_contain_text("rejected in a hurry")
    assert asked == ["76", "26", "76", "26"]
