// The ballot: four choices, optional reasons, a comment, a better answer. One click or key casts it.

import { h, icon } from "./dom.js";

const CHOICES = [
  { choice: "a", label: "A is better", key: "1", class: "side-a" },
  { choice: "b", label: "B is better", key: "2", class: "side-b" },
  { choice: "tie", label: "Tie", key: "3", class: "" },
  { choice: "both_bad", label: "Both bad", key: "4", class: "" },
];
const REASONS = [
  ["accurate", "Accurate"],
  ["clear", "Clear"],
  ["concise", "Concise"],
  ["thorough", "Thorough"],
  ["tone", "Good tone"],
  ["on_topic", "On topic"],
  ["other_wrong", "The other is wrong"],
];
const GUARD_MS = 250;

/** Whether a key press belongs to a text field. */
export const isTyping = (target) => target instanceof HTMLElement && target.matches("textarea, input, select, [contenteditable]");

export class Ballot {
  #reasons = new Set();
  #shownAt = performance.now();
  #sending = false;

  /**
   * @param {import("./conversation.js").Turn} turn
   * @param {{onVote: (vote: Object) => Promise<void>, onSkip: () => void, onPreview: (side: string | null) => void, onResize: () => void}} handlers
   */
  constructor(turn, handlers) {
    this.turn = turn;
    this.handlers = handlers;
    this.element = h(
      "section",
      { class: "ballot", "aria-labelledby": "ballot-title", tabindex: "-1", onkeydown: (event) => this.#arrows(event) },
      h("h2", { id: "ballot-title" }, "Which answer is better?"),
      this.#choices(),
      h("button", { type: "button", class: "quiet small skip", onclick: handlers.onSkip }, "Skip"),
      this.#why(),
      this.#comment(),
      this.#better(),
      (this.problem = h("div", { hidden: true })),
    );
  }

  /** Take the focus as a whole: a ring around one of the choices would be a nudge. */
  focus() {
    this.element.focus({ preventScroll: true });
  }

  /** A key was pressed anywhere on the page; gives true if it was a vote. */
  key(event) {
    if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return false;
    const found = CHOICES.find(({ key }) => key === event.key);
    if (!found) return false;
    // A digit that was being typed when the ballot came up is no vote.
    if (performance.now() - this.#shownAt > GUARD_MS) this.#cast(found.choice);
    return true;
  }

  #choices() {
    this.buttons = CHOICES.map(({ choice, label, key, class: name }) =>
      h(
        "button",
        {
          type: "button",
          class: name,
          "data-choice": choice,
          "aria-keyshortcuts": key,
          onclick: () => this.#cast(choice),
          onfocus: () => this.handlers.onPreview(choice),
          onblur: () => this.handlers.onPreview(null),
          onpointerenter: () => this.handlers.onPreview(choice),
          onpointerleave: () => this.handlers.onPreview(null),
        },
        label,
        h("kbd", { "aria-hidden": "true" }, key),
      ),
    );
    return h("div", { class: "choices", role: "group", "aria-labelledby": "ballot-title" }, ...this.buttons);
  }

  #arrows(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const at = this.buttons.indexOf(document.activeElement);
    if (!step || (at < 0 && document.activeElement !== this.element)) return;
    event.preventDefault();
    const first = step > 0 ? 1 : 0; // from outside: right is B, left is A, as on the page
    this.buttons[at < 0 ? first : (at + step + this.buttons.length) % this.buttons.length].focus();
  }

  #why() {
    const chip = ([reason, label]) =>
      h(
        "button",
        {
          type: "button",
          class: "chip",
          "aria-pressed": "false",
          onclick: (event) => {
            const on = !this.#reasons.has(reason);
            if (on) this.#reasons.add(reason);
            else this.#reasons.delete(reason);
            event.currentTarget.setAttribute("aria-pressed", String(on));
          },
        },
        label,
      );
    const opener = (name, id, sign, extra = "") =>
      h(
        "button",
        {
          type: "button",
          class: `chip ${extra}`,
          "aria-expanded": "false",
          "aria-controls": id,
          onclick: (event) => this.#open(event.currentTarget, id),
        },
        icon(sign),
        name,
      );
    return h(
      "div",
      { class: "why", role: "group", "aria-label": "Why? Optional; choose before you vote" },
      h("span", { "aria-hidden": "true" }, "Why? (optional)"),
      ...REASONS.map(chip),
      opener("Comment", "ballot-comment", "comment", "more"),
      opener("Write a better one", "ballot-better", "pencil"),
    );
  }

  #open(button, id) {
    const panel = this.element.querySelector(`#${id}`);
    panel.hidden = !panel.hidden;
    button.setAttribute("aria-expanded", String(!panel.hidden));
    this.handlers.onResize();
    if (!panel.hidden) panel.querySelector("textarea").focus();
  }

  #comment() {
    this.comment = h("textarea", { id: "comment-text", rows: "2", maxlength: "2000" });
    return h(
      "div",
      { class: "extra", id: "ballot-comment", hidden: true },
      h("label", { for: "comment-text" }, "Comment"),
      this.comment,
    );
  }

  #better() {
    this.better = h("textarea", { id: "better-text", rows: "5", maxlength: "20000", "aria-describedby": "better-hint" });
    const from = (side) =>
      h(
        "button",
        {
          type: "button",
          class: "secondary small",
          onclick: () => {
            this.better.value = this.turn[side].text;
            this.better.focus();
          },
        },
        `Start from ${side.toUpperCase()}`,
      );
    return h(
      "div",
      { class: "extra", id: "ballot-better", hidden: true },
      h("div", { class: "row" }, h("label", { for: "better-text" }, "A better answer"), h("span", {}, from("a"), " ", from("b"))),
      this.better,
      h("p", { class: "card-foot", id: "better-hint" }, "Sent with your vote; the conversation goes on with it."),
    );
  }

  async #cast(choice) {
    if (this.#sending) return;
    this.#setSending(true);
    const vote = { pair_id: this.turn.pairId, choice, dwell_ms: Math.round(performance.now() - this.#shownAt) };
    if (this.#reasons.size) vote.reasons = [...this.#reasons];
    if (!this.element.querySelector("#ballot-comment").hidden && this.comment.value.trim()) vote.comment = this.comment.value.trim();
    if (!this.element.querySelector("#ballot-better").hidden && this.better.value.trim()) vote.edited = this.better.value.trim();
    try {
      await this.handlers.onVote(vote);
    } catch (error) {
      this.#setSending(false);
      this.#fail(error, choice);
    }
  }

  #setSending(sending) {
    this.#sending = sending;
    // aria-disabled and not disabled: the focus stays where it is.
    for (const button of this.buttons) button.setAttribute("aria-disabled", String(sending));
    this.element.setAttribute("aria-busy", String(sending));
  }

  #fail(error, choice) {
    this.problem.hidden = false;
    this.problem.className = "notice";
    this.problem.setAttribute("role", "alert");
    this.problem.replaceChildren(
      icon("warning"),
      h("span", {}, `Your vote wasn't saved. ${error.message}`),
      h("button", { type: "button", class: "secondary small", onclick: () => this.#cast(choice) }, icon("retry"), "Try again"),
    );
    this.handlers.onResize();
  }
}
