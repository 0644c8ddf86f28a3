// One turn on the page: the question, two to four answers beside each other, and what came of the vote.

import { chosenSide, sidesOf } from "./conversation.js";
import { h, icon } from "./dom.js";
import { Answer } from "./markdown.js";
import { inWords, ordinal, ranks } from "./ranking.js";

const REDRAW_MS = 60;
const NARROW = matchMedia("(max-width: 719px)"); // as in chat.css: the answers are a strip to be swiped
const GROUPS = { 1: "The answer", 2: "The two answers", 3: "The three answers", 4: "The four answers" };
const FINISH_NOTES = { length: "Cut off at the length limit.", abort: "Broken off.", error: "Broken off by an error." };

/** A name that people understand for an adapter. */
export const speaker = (name) => (name === "base" ? "the base model" : name);

class Card {
  #text = null;
  #drawnAt = 0;
  #timer = 0;

  constructor(side, titleId, onGrown) {
    this.side = side;
    this.onGrown = onGrown;
    this.who = h("span", { class: "who" });
    this.mark = h("span", { class: "mark", hidden: true });
    this.copy = h(
      "button",
      { type: "button", class: "quiet round copy", "aria-label": `Copy answer ${side.toUpperCase()}`, hidden: true },
      icon("copy"),
    );
    this.copy.addEventListener("click", () => this.#copy());
    this.body = h("div", { class: "answer" }, h("div", { class: "skeleton", "aria-hidden": "true" }, h("i"), h("i"), h("i")));
    this.foot = h("p", { class: "card-foot", hidden: true });
    this.element = h(
      "article",
      { class: "card", "data-side": side, "aria-labelledby": titleId, "aria-busy": "true" },
      h(
        "header",
        { class: "card-head" },
        h("span", { class: "badge", "aria-hidden": "true" }, side.toUpperCase()),
        (this.title = h("h3", { id: titleId }, `Answer ${side.toUpperCase()}`)),
        this.who,
        this.mark,
        this.copy,
      ),
      this.body,
      this.foot,
    );
  }

  /** Say beside the title what came of it; null for nothing. */
  label(text) {
    this.mark.hidden = text === null;
    this.mark.replaceChildren(...(text === null ? [] : text === "Your choice" ? [icon("check"), text] : [text]));
  }

  /** Show this text, at most every 60 ms while it grows. */
  write(text, { now = false } = {}) {
    this.#text = text;
    clearTimeout(this.#timer);
    const wait = now ? 0 : REDRAW_MS - (performance.now() - this.#drawnAt);
    if (wait <= 0) this.#draw();
    else this.#timer = setTimeout(() => this.#draw(), wait);
  }

  finish(reason) {
    this.element.setAttribute("aria-busy", "false");
    this.copy.hidden = !this.#text;
    const note = this.#text ? FINISH_NOTES[reason] : "This candidate said nothing.";
    this.foot.textContent = note ?? "";
    this.foot.hidden = !note;
  }

  #draw() {
    clearTimeout(this.#timer);
    this.#drawnAt = performance.now();
    if (!this.answer) {
      if (!this.#text && this.element.getAttribute("aria-busy") === "true") return;
      this.body.replaceChildren();
      this.answer = new Answer(this.body);
    }
    this.answer.show(this.#text);
    this.onGrown();
  }

  async #copy() {
    const label = `Copy answer ${this.side.toUpperCase()}`;
    let done = true;
    try {
      await navigator.clipboard.writeText(this.#text);
    } catch {
      done = false;
    }
    this.copy.replaceChildren(icon(done ? "check" : "warning"));
    this.copy.setAttribute("aria-label", done ? "Copied" : "The browser didn't allow copying");
    setTimeout(() => {
      this.copy.replaceChildren(icon("copy"));
      this.copy.setAttribute("aria-label", label);
    }, 1600);
  }
}

let count = 0;

/** Draws one turn and keeps it up to date. The turn itself is the truth; call `update` after changing it. */
export class TurnView {
  /**
   * @param {import("./conversation.js").Turn} turn
   * @param {{onGrown: () => void, onRetry: () => void, onThumb: (thumb: "up" | "down") => void, onNext: () => void}} handlers
   */
  constructor(turn, { onGrown, onRetry, onThumb, onNext }) {
    this.turn = turn;
    this.onThumb = onThumb;
    this.onRetry = onRetry;
    this.onNext = onNext;
    const id = `turn-${(count += 1)}`;
    this.id = id;
    this.onGrown = onGrown;
    this.cards = {};
    this.pair = h("div", { class: "pair", role: "group" });
    this.below = h("div", { class: "below" });
    this.element = h(
      "li",
      { class: "turn" },
      h("div", { class: "question" }, h("h2", { id, dir: "auto" }, h("span", { class: "visually-hidden", dir: "ltr" }, "You asked: "), turn.question)),
      this.#sides(),
      this.pair,
      this.below,
    );
    this.update();
  }

  /** New text has come for this side. */
  grown(side) {
    this.cards[side].write(this.turn[side].text);
  }

  /** Show the turn's state. */
  update() {
    const { turn } = this;
    const busy = turn.state === "streaming";
    this.#seat();
    if (NARROW.matches) this.pair.tabIndex = 0; // what scrolls must be within the keyboard's reach
    else this.pair.removeAttribute("tabindex");
    const favoured = turn.alone || turn.state === "skipped" ? null : turn.choice === "tie" ? null : chosenSide(turn);
    const best = turn.ranking ? turn.ranking[0] : [favoured];
    for (const side of sidesOf(turn)) {
      const card = this.cards[side];
      if (!busy) {
        card.write(turn[side].text, { now: true });
        const cut = turn.state === "stopped" || turn.state === "failed";
        card.finish(cut ? (turn[side].finish ?? "abort") : turn[side].finish);
      }
      card.element.classList.toggle("chosen", best.includes(side));
      card.element.classList.toggle("passed", favoured !== null && !best.includes(side));
      if (!turn.ranking) card.label(favoured === side ? "Your choice" : null);
      card.who.textContent = turn.reveal?.[side] ? turn.reveal[side] : "";
    }
    if (turn.state !== "voting") this.showPlaces(turn.ranking ?? []);
    this.below.replaceChildren(...this.#below());
    if (favoured) this.showSide(favoured);
  }

  /** A card for each side; one answer needs no letter. */
  #seat() {
    const { turn } = this;
    const sides = sidesOf(turn);
    for (const side of sides) {
      if (this.cards[side]) continue;
      this.cards[side] = new Card(side, `${this.id}-${side}`, this.onGrown);
      if (turn[side].text) this.cards[side].write(turn[side].text, { now: true });
    }
    if (this.pair.childElementCount !== sides.length) this.pair.replaceChildren(...sides.map((side) => this.cards[side].element));
    this.pair.dataset.count = String(sides.length);
    this.element.classList.toggle("alone", sides.length === 1);
    this.element.classList.toggle("several", sides.length > 2);
    this.cards.a.title.textContent = sides.length === 1 ? "Answer" : "Answer A";
    this.pair.setAttribute("aria-label", GROUPS[sides.length]);
  }

  /** Show on each card the rank that it has in these places. */
  showPlaces(places) {
    if (sidesOf(this.turn).length < 3) return;
    const found = ranks(places);
    for (const side of sidesOf(this.turn)) this.cards[side].label(side in found ? ordinal(found[side]) : null);
  }

  /** On a narrow page: bring this side into view. */
  showSide(side) {
    const { element } = this.cards[side];
    if (this.pair.scrollWidth <= this.pair.clientWidth + 1) return;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.pair.scrollTo({ left: element.offsetLeft - this.pair.offsetLeft - 14, behavior: calm ? "instant" : "smooth" });
  }

  #sides() {
    const button = (side) =>
      h(
        "button",
        { type: "button", "data-side": side, "aria-pressed": String(side === "a"), onclick: () => this.showSide(side) },
        `Answer ${side.toUpperCase()}`,
      );
    const buttons = { a: button("a"), b: button("b") };
    this.pair.addEventListener(
      "scroll",
      () => {
        const onB = this.pair.scrollLeft > (this.pair.scrollWidth - this.pair.clientWidth) / 2;
        buttons.a.setAttribute("aria-pressed", String(!onB));
        buttons.b.setAttribute("aria-pressed", String(onB));
      },
      { passive: true },
    );
    return h("div", { class: "sides", role: "group", "aria-label": "Which answer to show" }, buttons.a, buttons.b);
  }

  #below() {
    const { turn } = this;
    if (turn.state === "failed") return [this.#notice("warning", turn.error, "alert")];
    if (turn.state === "stopped") return [this.#notice("close", "Stopped. These answers can't be voted on.", null)];
    if (turn.state === "answered") return this.#thumbs();
    if (turn.state === "skipped") return [h("p", { class: "verdict" }, "No vote. The conversation goes on with answer A.")];
    if (turn.state !== "voted") return [];
    return [this.#edited(), h("p", { class: "verdict" }, ...this.#verdict())].filter(Boolean);
  }

  #notice(sign, text, role) {
    return h(
      "div",
      { class: role ? "notice" : "notice plain", role },
      icon(sign),
      h("span", {}, text),
      h("button", { type: "button", class: "secondary small", onclick: this.onRetry }, icon("retry"), "Ask again"),
    );
  }

  #thumbs() {
    const { thumb, error } = this.turn;
    const button = (value, sign, label) =>
      h(
        "button",
        {
          type: "button",
          class: "quiet round thumb",
          "aria-label": label,
          "aria-pressed": String(thumb === value),
          disabled: thumb !== null && thumb !== undefined,
          onclick: () => this.onThumb(value),
        },
        icon(sign),
      );
    const said = { up: "You liked it.", down: "You didn't like it." }[thumb];
    return [
      h("div", { class: "thumbs", role: "group", "aria-label": "Was this answer good?" }, button("up", "thumbUp", "Good answer"), button("down", "thumbDown", "Bad answer"), said ? h("span", {}, said) : null),
      error ? h("div", { class: "notice", role: "alert" }, icon("warning"), h("span", {}, error)) : null,
    ].filter(Boolean);
  }

  #edited() {
    if (!this.turn.edited) return null;
    const body = h("div", { class: "answer" });
    new Answer(body).show(this.turn.edited);
    return h("article", { class: "edited" }, h("h3", {}, "Your answer"), body);
  }

  #verdict() {
    const { choice, ranking, reveal, edited } = this.turn;
    const sides = sidesOf(this.turn);
    const several = sides.length > 2;
    const said = ranking ? `Your order: ${inWords(ranking)}.` : several ? { tie: "You found all alike.", both_bad: "You found all bad." }[choice] : {
      a: "You preferred A.",
      b: "You preferred B.",
      tie: "You called it a tie.",
      both_bad: "You found both bad.",
    }[choice];
    const parts = [h("strong", {}, said)];
    if (reveal?.a && reveal?.b) {
      const same = sides.every((side) => reveal[side] === reveal.a);
      const each = sides.map((side) => `${side.toUpperCase()} was ${speaker(reveal[side])}`).join(", ");
      const all = several ? `All came from ${speaker(reveal.a)}, sampled anew each time.` : `Both came from ${speaker(reveal.a)}, sampled twice.`;
      parts.push(h("span", {}, same ? all : `${each}.`));
    }
    if (this.turn.review) {
      parts.push(h("button", { type: "button", class: "secondary small", onclick: this.onNext }, "Judge another"));
      return parts;
    }
    if (edited) parts.push(h("span", {}, "The conversation goes on with your answer."));
    else if (ranking) parts.push(h("span", {}, `The conversation goes on with ${chosenSide(this.turn).toUpperCase()}.`));
    else if (choice === "tie") parts.push(h("span", {}, "The conversation goes on with A."));
    else if (choice === "both_bad") {
      parts.push(h("button", { type: "button", class: "secondary small", onclick: this.onRetry }, icon("retry"), "Ask again"));
    }
    return parts;
  }
}
