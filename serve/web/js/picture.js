// The picture of the loop: six stations on a ring, each with its live numbers.

import { h, svg } from "./dom.js";
import { count, counted, DASH, duration, figure, percent, since } from "./format.js";

const STATIONS = [
  ["chat", "Chat"],
  ["votes", "Votes"],
  ["outbox", "On its way"],
  ["dataset", "Dataset"],
  ["training", "Training"],
  ["office", "In office"],
];
const PHASES = {
  idle: "Waiting for votes",
  snapshot: "Taking a snapshot",
  features: "Reading the votes",
  reward: "Reward model",
  sft: "Learning from edited answers",
  ppo: "PPO",
  evaluate: "Evaluating",
  publish: "Publishing",
  failed: "Failed",
};
const LONG_WAIT_S = 60;
// Clockwise from the chat; loop.css lays the box's corners on the stations' centres.
const RING = "M0 0 H300 V200 H0 Z";

/** Whether the trainer is at work. */
export const isTraining = (training) => Boolean(training?.phase) && !["idle", "failed"].includes(training.phase);

class Station {
  constructor([key, title], index) {
    this.big = h("p", { class: "big" });
    this.middle = h("div", {});
    this.lines = h("p", { class: "lines" });
    this.element = h(
      "section",
      { class: "station", "data-station": key, "aria-label": title },
      h("h3", {}, h("b", { "aria-hidden": "true" }, String(index + 1)), title),
      this.big,
      this.middle,
      this.lines,
    );
  }

  show(big, unit, lines) {
    const name = unit === null;
    this.big.classList.toggle("name", name);
    this.big.replaceChildren(big, ...(name ? [] : [h("small", {}, unit)]));
    this.lines.replaceChildren(...lines.filter(Boolean).map((line) => h("span", {}, line)));
  }
}

/** A progress bar; `share` is 0 to 1, or null when it isn't known. */
function progressBar(label) {
  const fill = h("i", {});
  const element = h("div", { class: "bar", role: "progressbar", "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "100" }, fill);
  return {
    element,
    show(share) {
      element.hidden = share === null;
      const part = Math.round(Math.min(1, Math.max(0, share ?? 0)) * 100);
      element.setAttribute("aria-valuenow", String(part));
      fill.style.width = `${part}%`;
    },
  };
}

const between = (interval) => (interval ? ` (${percent(interval[0])} to ${percent(interval[1])})` : "");
const shareOf = (part, whole) => (typeof part === "number" && whole > 0 ? part / whole : null);

/** Draws the loop into `place` and keeps it up to date. */
export class Picture {
  #last = null;

  constructor(place) {
    this.stations = Object.fromEntries(STATIONS.map((station, index) => [station[0], new Station(station, index)]));
    this.flow = svg("path", { d: RING, class: "flow" });
    this.text = h("p", { class: "ring-text" });
    place.append(
      svg(
        "svg",
        { class: "ring", viewBox: "0 0 300 200", preserveAspectRatio: "none", "aria-hidden": "true" },
        svg("path", { d: RING }),
        this.flow,
      ),
      ...STATIONS.map(([key]) => this.stations[key].element),
      this.text,
    );
    this.split = Object.fromEntries(["a", "b", "ranking", "tie", "both_bad"].map((choice) => [choice, h("i", { class: choice })]));
    this.stations.votes.middle.append(h("div", { class: "bar split", "aria-hidden": "true" }, ...Object.values(this.split)));
    this.untilTraining = progressBar("New votes until the next training");
    this.stations.dataset.middle.append(this.untilTraining.element);
    this.cycle = progressBar("Progress of the training cycle");
    this.stations.training.middle.append(this.cycle.element);
  }

  /** Show this state of the loop; `now` is the server's clock in milliseconds. */
  show(loop, now) {
    this.#chat(loop.chat ?? {});
    this.#votes(loop.votes ?? {});
    this.#outbox(loop.outbox ?? {});
    this.#dataset(loop.dataset ?? {});
    this.#training(loop.training ?? {});
    this.#office(loop, now);
    this.text.textContent = loop.base_model ? `Base: ${loop.base_model.split("/").filter(Boolean).at(-1)}` : "Every vote trains the next model";
    const moved = this.#last !== null && (loop.votes?.total !== this.#last.votes?.total || loop.chat?.pairs !== this.#last.chat?.pairs);
    this.flow.classList.toggle("moving", moved || loop.chat?.running > 0 || isTraining(loop.training));
    this.#last = loop;
  }

  #chat({ pairs, conversations, running, waiting }) {
    const { chat } = this.stations;
    chat.show(count(pairs), pairs === 1 ? "pair shown" : "pairs shown", [
      `in ${counted(conversations, "conversation")}`,
      running === undefined ? null : `${count(running)} being answered, ${count(waiting)} waiting`,
    ]);
    chat.element.classList.toggle("working", running > 0);
  }

  #votes(votes) {
    const { a, b, tie, both_bad: bad, ranking } = votes;
    this.stations.votes.show(count(votes.total), votes.total === 1 ? "vote" : "votes", [
      `A ${count(a)}, B ${count(b)}, tie ${count(tie)}, both bad ${count(bad)}${ranking ? `, ranked ${count(ranking)}` : ""}`,
      [
        typeof votes.per_minute === "number" ? `${figure(votes.per_minute)} a minute` : null,
        typeof votes.left_share === "number" ? `${percent(votes.left_share)} chose the left${between(votes.left_share_interval)}` : null,
      ]
        .filter(Boolean)
        .join(", "),
    ]);
    for (const [choice, part] of Object.entries(this.split)) part.style.flexGrow = String(votes[choice] ?? 0);
  }

  #outbox({ pending, unconfirmed, oldest_pending_age_s: age }) {
    const { outbox } = this.stations;
    outbox.show(count(pending), "waiting for the event log", [
      `${count(unconfirmed)} sent, receipt awaited`,
      pending > 0 ? `the oldest waits for ${duration(age)}` : "nothing is held up",
    ]);
    outbox.element.classList.toggle("waiting-long", pending > 0 && age > LONG_WAIT_S);
  }

  #dataset({ snapshot, votes, decisive, new: fresh, needed }) {
    this.stations.dataset.show(count(decisive ?? votes), "decisive votes", [
      typeof needed === "number" ? `${count(fresh)} new, training begins at ${count(needed)}` : `${count(fresh)} new since the last training`,
      snapshot ? `snapshot ${snapshot.slice(0, 14)}` : "no snapshot yet",
    ]);
    this.untilTraining.show(shareOf(fresh, needed));
  }

  #training(training) {
    const { phase, cycle, step, steps, progress, eta_s: eta, message } = training;
    const active = isTraining(training);
    this.stations.training.show(PHASES[phase] ?? phase ?? DASH, null, [
      active ? [`cycle ${count(cycle)}`, steps ? `step ${count(step)} of ${count(steps)}` : null, eta ? `${duration(eta)} left` : null].filter(Boolean).join(", ") : null,
      message ?? (active ? null : cycle ? `${counted(cycle, "cycle")} so far` : "no cycle yet"),
    ]);
    this.stations.training.element.classList.toggle("working", active);
    this.cycle.show(active ? (progress ?? shareOf(step, steps)) : null);
  }

  #office({ office, releases }, now) {
    const name = office?.adapter;
    const next = (releases ?? []).find(({ state }) => state === "canary" || state === "verified" || state === "candidate");
    this.stations.office.show(office ? (name ?? "The base model") : DASH, null, [
      name && office.since ? `since ${since(office.since, now)}`.replace("since just", "since").replace(/^since (.*) ago$/, "for $1") : name ? null : "no adapter has been elected yet",
      next ? `next: ${next.name} (${next.state})` : "answers people now",
    ]);
  }
}
