// What every ballot has: reasons, a comment, a better answer, and how a vote is sent and sent again.

import { h, icon } from "./dom.js";
import { sidesOf } from "./conversation.js";

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

export class BallotForm {
  #reasons = new Set();
  #shownAt = performance.now();
  #sending = false;

  /**
   * @param {import("./conversation.js").Turn} turn
   * @param {{onVote: (vote: Object) => Promise<void>, onSkip: () => void, onPreview: (side: string | null) => void,
   *   onPlaces: (places: string[][]) => void, onResize: () => void}} handlers
   */
  constructor(turn, handlers) {
    this.turn = turn;
    this.handlers = handlers;
  }

  /** The whole ballot; `choices` are what is peculiar to one kind. `this.buttons` must hold what casts. */
  build(name, title, ...choices) {
    this.element = h(
      "section",
      { class: `ballot ${name}`, "aria-labelledby": "ballot-title", tabindex: "-1" },
      h("h2", { id: "ballot-title" }, title),
      ...choices,
      h("button", { type: "button", class: "quiet small skip", onclick: this.handlers.onSkip }, "Skip"),
      this.why(),
      this.comments(),
      this.rewrite(),
      (this.problem = h("div", { hidden: true })),
    );
  }

  /** Take the focus as a whole: a ring around one of the choices would be a nudge. */
  focus() {
    this.element.focus({ preventScroll: true });
  }

  /** Whether a key press may be for the ballot. */
  mayTake(event) {
    return !(event.repeat || event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target));
  }

  /** Whether the ballot has stood for so long that a digit can't have been meant for the question. */
  get settled() {
    return performance.now() - this.#shownAt > GUARD_MS;
  }

  why() {
    const several = sidesOf(this.turn).length > 2;
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
      ...REASONS.map(([reason, label]) => chip([reason, several && reason === "other_wrong" ? "Others are wrong" : label])),
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

  comments() {
    this.comment = h("textarea", { id: "comment-text", dir: "auto", rows: "2", maxlength: "2000" });
    return h(
      "div",
      { class: "extra", id: "ballot-comment", hidden: true },
      h("label", { for: "comment-text" }, "Comment"),
      this.comment,
    );
  }

  rewrite() {
    this.better = h("textarea", { id: "better-text", dir: "auto", rows: "5", maxlength: "20000", "aria-describedby": "better-hint" });
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
      h("div", { class: "row" }, h("label", { for: "better-text" }, "A better answer"), h("span", { class: "from" }, ...sidesOf(this.turn).map(from))),
      this.better,
      h("p", { class: "card-foot", id: "better-hint" }, "Sent with your vote; the conversation goes on with it."),
    );
  }

  /** Send the vote: `{choice}` or `{ranking}`. */
  async cast(said) {
    if (this.#sending) return;
    this.#setSending(true);
    const vote = { pair_id: this.turn.pairId, ...said, dwell_ms: Math.round(performance.now() - this.#shownAt) };
    if (this.#reasons.size) vote.reasons = [...this.#reasons];
    if (!this.element.querySelector("#ballot-comment").hidden && this.comment.value.trim()) vote.comment = this.comment.value.trim();
    if (!this.element.querySelector("#ballot-better").hidden && this.better.value.trim()) vote.edited = this.better.value.trim();
    try {
      await this.handlers.onVote(vote);
    } catch (error) {
      this.#setSending(false);
      this.#fail(error, said);
    }
  }

  #setSending(sending) {
    this.#sending = sending;
    // aria-disabled and not disabled: the focus stays where it is.
    for (const button of this.buttons) button.setAttribute("aria-disabled", String(sending));
    this.element.setAttribute("aria-busy", String(sending));
  }

  #fail(error, said) {
    this.problem.hidden = false;
    this.problem.className = "notice";
    this.problem.setAttribute("role", "alert");
    this.problem.replaceChildren(
      icon("warning"),
      h("span", {}, `Your vote wasn't saved. ${error.message}`),
      h("button", { type: "button", class: "secondary small", onclick: () => this.cast(said) }, icon("retry"), "Try again"),
    );
    this.handlers.onResize();
  }
}
