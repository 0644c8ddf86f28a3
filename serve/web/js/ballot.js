// The ballot of a pair: four choices. One click or key casts it.

import { BallotForm } from "./ballot_form.js";
import { h } from "./dom.js";

const CHOICES = [
  { choice: "a", label: "A is better", key: "1", class: "side-a" },
  { choice: "b", label: "B is better", key: "2", class: "side-b" },
  { choice: "tie", label: "Tie", key: "3", class: "" },
  { choice: "both_bad", label: "Both bad", key: "4", class: "" },
];

export class Ballot extends BallotForm {
  constructor(turn, handlers) {
    super(turn, handlers);
    this.build("two", "Which answer is better?", this.#choices());
    this.element.addEventListener("keydown", (event) => this.#arrows(event));
  }

  /** What to say when the answers are there. */
  get invitation() {
    return "Both answers are ready. Which is better? Press 1 for A, 2 for B, 3 for a tie, 4 if both are bad.";
  }

  /** A key was pressed anywhere on the page; gives true if it was a vote. */
  key(event) {
    if (!this.mayTake(event)) return false;
    const found = CHOICES.find(({ key }) => key === event.key);
    if (!found) return false;
    if (this.settled) this.cast({ choice: found.choice });
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
          onclick: () => this.cast({ choice }),
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
}
