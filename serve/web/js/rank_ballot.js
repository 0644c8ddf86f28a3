// The ballot of three or four answers: put them in order by tapping them (or by their digits), the best first.

import { BallotForm } from "./ballot_form.js";
import { sidesOf } from "./conversation.js";
import { announce, h, icon } from "./dom.js";
import { complete, inWords, ordinal, pick, ranks, undo } from "./ranking.js";

export class RankBallot extends BallotForm {
  #places = [];
  #joining = false;

  constructor(turn, handlers) {
    super(turn, handlers);
    this.sides = sidesOf(turn);
    this.build("rank", "Put them in order, the best first", this.#picks(), this.#acts());
    this.#show();
  }

  /** What to say when the answers are there. */
  get invitation() {
    const keys = this.sides.map((side, at) => `${at + 1} for ${side.toUpperCase()}`).join(", ");
    return (
      `All answers are ready. Put them in order, the best first: press ${keys}. Press the equals sign before an answer that` +
      " is as good as the one before, Backspace to take one back, T if all are alike, X if all are bad, and Enter to vote."
    );
  }

  /** A key was pressed anywhere on the page; gives true if it was for the ballot. */
  key(event) {
    if (!this.mayTake(event)) return false;
    const side = this.sides[Number.parseInt(event.key, 10) - 1];
    const act = side
      ? () => this.#pick(side)
      : { "=": () => this.#join(), Backspace: () => this.#undo(), t: () => this.#all("tie"), x: () => this.#all("both_bad") }[event.key];
    if (act) {
      if (this.settled) act();
      return true;
    }
    // On a button, Enter is that button's.
    if (event.key !== "Enter" || event.target.closest?.("button, a")) return false;
    this.#vote();
    return true;
  }

  #picks() {
    this.picks = this.sides.map((side, at) =>
      h(
        "button",
        {
          type: "button",
          class: `pick side-${side}`,
          "data-choice": side,
          "aria-keyshortcuts": String(at + 1),
          onclick: (event) => this.#tap(side, event),
          onfocus: () => this.handlers.onPreview(side),
          onblur: () => this.handlers.onPreview(null),
          onpointerenter: () => this.handlers.onPreview(side),
          onpointerleave: () => this.handlers.onPreview(null),
        },
        h("b", { "aria-hidden": "true" }, side.toUpperCase()),
        h("span", { class: "place", "aria-hidden": "true" }),
        h("kbd", { "aria-hidden": "true" }, String(at + 1)),
      ),
    );
    return h("div", { class: "choices picks", role: "group", "aria-labelledby": "ballot-title", "data-count": String(this.sides.length) }, ...this.picks);
  }

  #acts() {
    const act = (label, key, shortcut, onclick, extra = {}) =>
      h("button", { type: "button", class: "chip", "aria-keyshortcuts": shortcut, onclick, ...extra }, label, h("kbd", { "aria-hidden": "true" }, key));
    this.joiner = act("Same place", "=", "=", () => this.#join(), { "aria-pressed": "false", "aria-label": "The next one shares the place of the last" });
    this.back = act("Undo", "\u232b", "Backspace", () => this.#undo(), { class: "chip undo" });
    const alike = [act("All alike", "T", "t", () => this.#all("tie")), act("All bad", "X", "x", () => this.#all("both_bad"))];
    this.voter = h(
      "button",
      { type: "button", class: "primary", "aria-keyshortcuts": "Enter", onclick: () => this.#vote() },
      icon("check"),
      "Vote",
    );
    this.buttons = [...this.picks, ...alike, this.voter];
    return h("div", { class: "acts", role: "group", "aria-label": "Order" }, this.joiner, this.back, ...alike, this.voter);
  }

  #tap(side, event) {
    this.#pick(side);
    if (event.detail) this.focus(); // by pointer: Enter shall vote then, not take this one back
  }

  #pick(side) {
    const before = this.#places.flat().includes(side);
    this.#places = pick(this.#places, side, this.#joining);
    this.#joining = false;
    this.#show();
    const whole = complete(this.#places, this.sides);
    const said = before ? `${side.toUpperCase()} taken back.` : `${side.toUpperCase()} is ${ordinal(ranks(this.#places)[side])}.`;
    announce(whole ? `${said} The order is ${inWords(whole)}. Enter votes.` : said);
  }

  #join() {
    if (!this.#places.length) return;
    this.#joining = !this.#joining;
    this.#show();
    announce(this.#joining ? `The next one shares the place of ${this.#places.at(-1).at(-1).toUpperCase()}.` : "The next one comes after it.");
  }

  #undo() {
    if (!this.#places.length) return;
    this.#places = undo(this.#places);
    this.#joining = false;
    this.#show();
    announce(this.#places.length ? `The order so far is ${inWords(this.#places)}.` : "No answer has a place.");
  }

  #all(choice) {
    this.cast({ choice });
  }

  #vote() {
    const whole = complete(this.#places, this.sides);
    if (!whole) announce("Give more answers a place first.");
    else this.cast(whole.length === 1 ? { choice: "tie" } : { ranking: whole });
  }

  #show() {
    const whole = complete(this.#places, this.sides);
    const placed = ranks(this.#places);
    const implied = ranks(whole ?? []);
    this.picks.forEach((button, at) => {
      const side = this.sides[at];
      const rank = placed[side] ?? implied[side];
      button.setAttribute("aria-pressed", String(side in placed));
      button.setAttribute("aria-label", `Answer ${side.toUpperCase()}${rank === undefined ? "" : `, ${ordinal(rank)}`}`);
      button.querySelector(".place").textContent = rank === undefined ? "" : ordinal(rank);
    });
    this.joiner.setAttribute("aria-pressed", String(this.#joining));
    for (const button of [this.joiner, this.back]) button.disabled = !this.#places.length;
    this.voter.setAttribute("aria-disabled", String(!whole));
    this.handlers.onPlaces(whole ?? this.#places);
  }
}
