// The table of releases, and an operator's acts on them.

import { changeRelease } from "./api.js";
import { announce, byId, h, icon } from "./dom.js";
import { Election } from "./election.js";
import { figure, percent, since } from "./format.js";
import { OlderReleases } from "./older_releases.js";

const STATES = {
  candidate: "Candidate",
  verified: "Verified",
  canary: "Canary",
  in_office: "In office",
  retired: "Retired",
  rejected: "Rejected",
};
const PROMOTABLE = new Set(["candidate", "verified", "canary", "retired"]);
const REJECTABLE = new Set(["candidate", "verified", "canary"]);
const TOKEN = "hustings.operator_token";
const NAME = "hustings.operator_name";

const ACTS = {
  promote: (name) => ({
    path: `${encodeURIComponent(name)}/promote`,
    title: `Put ${name} into office?`,
    text: "It answers every new request from now on. Running answers end on the adapter they began with.",
    button: "Promote",
  }),
  reject: (name) => ({
    path: `${encodeURIComponent(name)}/reject`,
    title: `Reject ${name}?`,
    text: "It gets no more live pairs and can't come into office.",
    button: "Reject",
  }),
  rollback: () => ({
    path: "rollback",
    title: "Roll back?",
    text: "The adapter in office is retired and the one before it (or the base) takes its place at once.",
    button: "Roll back",
  }),
  pause: () => ({
    path: "pause",
    title: "Pause releases?",
    text: "No adapter comes into canary or office by itself. You still can promote, reject and roll back; the alarm goes on.",
    button: "Pause",
  }),
  resume: () => ({
    path: "resume",
    title: "Let releases go on?",
    text: "A canary that waited gets its share of the pairs again and goes on with the votes that it has.",
    button: "Resume",
  }),
};

/** Asks for a reason and, once a tab, for the operator's token; then acts. */
class Operator {
  #act = null;

  constructor(onDone) {
    this.onDone = onDone;
    this.dialog = byId("act-dialog");
    this.token = byId("act-token");
    byId("act-cancel").addEventListener("click", () => this.dialog.close());
    byId("act-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#perform();
    });
  }

  ask(act) {
    this.#act = act;
    byId("act-title").textContent = act.title;
    byId("act-text").textContent = act.text;
    byId("act-do").textContent = act.button;
    byId("act-reason").value = "";
    byId("act-by").value = sessionStorage.getItem(NAME) ?? "";
    byId("act-problem").hidden = true;
    this.#showToken();
    this.dialog.showModal();
  }

  #showToken() {
    const wanted = !sessionStorage.getItem(TOKEN);
    byId("act-token-field").hidden = byId("act-token-hint").hidden = !wanted;
    this.token.required = wanted;
    this.token.value = "";
  }

  async #perform() {
    const token = sessionStorage.getItem(TOKEN) ?? this.token.value.trim();
    const button = byId("act-do");
    button.disabled = true;
    try {
      const by = byId("act-by").value.trim();
      await changeRelease(this.#act.path, { reason: byId("act-reason").value.trim(), by }, token);
      sessionStorage.setItem(TOKEN, token);
      if (by) sessionStorage.setItem(NAME, by);
      this.dialog.close();
      announce(`Done: ${this.#act.button}`);
      this.onDone();
    } catch (error) {
      if (error.status === 401 || error.status === 403) {
        sessionStorage.removeItem(TOKEN);
        this.#showToken();
      }
      byId("act-problem").hidden = false;
      byId("act-problem").replaceChildren(icon("warning"), h("span", {}, error.message));
    } finally {
      button.disabled = false;
    }
  }
}

/** Draws the releases and keeps them up to date without taking the focus away. */
export class Releases {
  #rows = new Map();

  constructor(onDone) {
    this.operator = new Operator(onDone);
    this.place = byId("releases");
    this.body = h("tbody", {});
    const heads = ["Adapter", "State", "Why", "Figures", "Changed"].map((text) => h("th", { scope: "col" }, text));
    this.table = h(
      "table",
      { "aria-labelledby": "releases-title" },
      h("thead", {}, h("tr", {}, ...heads, h("th", { scope: "col" }, h("span", { class: "visually-hidden" }, "Acts")))),
      this.body,
    );
    this.empty = h("p", { class: "empty" }, "No adapter yet. The first one comes out of the first training cycle.");
    byId("rollback").addEventListener("click", () => this.operator.ask(ACTS.rollback()));
    this.election = new Election((paused) => this.operator.ask(paused ? ACTS.resume() : ACTS.pause()));
    this.older = new OlderReleases(onDone);
  }

  /** Show the loop's releases, newest first, and the election. */
  show(loop, now) {
    const releases = this.older.beside(loop);
    const { office } = loop;
    this.election.show(loop);
    byId("rollback").disabled = !office?.adapter;
    const wanted = releases.length ? this.table : this.empty;
    if (wanted.parentElement !== this.place) this.place.replaceChildren(wanted);
    const names = new Set(releases.map(({ name }) => name));
    for (const [name, row] of this.#rows) {
      if (names.has(name)) continue;
      row.element.remove();
      this.#rows.delete(name);
    }
    releases.forEach((release, index) => {
      const row = this.#row(release.name);
      row.update(release, now);
      if (this.body.children[index] !== row.element) this.body.insertBefore(row.element, this.body.children[index] ?? null);
    });
  }

  #row(name) {
    if (!this.#rows.has(name)) this.#rows.set(name, this.#makeRow(name));
    return this.#rows.get(name);
  }

  #makeRow(name) {
    const parent = h("small", {});
    const state = h("span", { class: "state" });
    const cells = { reason: h("td", { class: "reason" }), figures: h("td", {}), time: h("time", {}) };
    const act = (kind, label, look) =>
      h(
        "button",
        { type: "button", class: `${look} small`, "aria-label": `${label} ${name}`, onclick: () => this.operator.ask(ACTS[kind](name)) },
        label,
      );
    const promote = act("promote", "Promote", "secondary");
    const reject = act("reject", "Reject", "danger");
    const element = h(
      "tr",
      {},
      h("td", { class: "name" }, name, parent),
      h("td", {}, state),
      cells.reason,
      cells.figures,
      h("td", {}, cells.time),
      h("td", { class: "acts" }, promote, reject),
    );
    const update = (release, now) => {
      element.classList.toggle("in-office", release.state === "in_office");
      parent.textContent = release.parent ? `from ${release.parent}` : "";
      state.dataset.state = release.state;
      state.textContent = STATES[release.state] ?? release.state;
      cells.reason.textContent = release.actor && release.actor !== "auto" ? `${release.reason} (${release.actor})` : (release.reason ?? "");
      cells.figures.textContent = figuresOf(release.metrics ?? {});
      cells.time.textContent = since(release.updated_at, now);
      cells.time.setAttribute("datetime", release.updated_at ?? "");
      cells.time.title = release.updated_at ?? "";
      promote.hidden = !PROMOTABLE.has(release.state);
      reject.hidden = !REJECTABLE.has(release.state);
    };
    return { element, update };
  }
}

/** The few figures of a manifest that tell most. */
function figuresOf(metrics) {
  const known = [
    ["win rate", metrics.reward_win_rate, percent],
    ["reward", metrics.reward, figure],
    ["KL", metrics.policy_kl, figure],
  ].filter(([, value]) => typeof value === "number");
  return known.map(([label, value, format]) => `${label} ${format(value)}`).join(", ");
}
