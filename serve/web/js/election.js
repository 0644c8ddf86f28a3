// The election: what puts an adapter into office, how the canary stands against the office-holder, and the guards.

import { byId, h, svg } from "./dom.js";
import { count, counted, DASH, figure, percent } from "./format.js";

const MODES = {
  probes: "A new adapter takes office as soon as it has proved to be the one that was trained.",
  votes: "A new adapter takes office when people's votes have elected it.",
  operator: "A new adapter takes office when an operator promotes it.",
};
const signed = (value) => (typeof value === "number" ? `${value < 0 ? "−" : "+"}${percent(Math.abs(value))}` : DASH);
const GUARDS = {
  length: ["Length", (value) => (typeof value === "number" ? `${figure(value)} times` : DASH)],
  refusals: ["Refusals", signed],
  repetition: ["Repetition", signed],
  kl: ["KL", (value) => (typeof value === "number" ? `${figure(value)} nats` : DASH)],
  errors: ["Errors", percent],
  both_bad: ["Both bad", percent],
};
const WIDTH = 320;
const HEIGHT = 46;
const EDGE = 14;
const MIDDLE = 15;

/** A share of 0 to 1 on an axis from 0 to 100%: its interval as a band, its mean as a dot, a half as the line to pass. */
function intervalDrawing({ win_rate: mean, lower, upper }) {
  const at = (share) => EDGE + share * (WIDTH - 2 * EDGE);
  const words = mean === null ? "No win rate yet" : `Win rate ${percent(mean)}, between ${percent(lower)} and ${percent(upper)}`;
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": words, class: "interval" });
  drawing.append(
    svg("line", { class: "axis", x1: at(0), x2: at(1), y1: MIDDLE, y2: MIDDLE }),
    svg("line", { class: "half", x1: at(0.5), x2: at(0.5), y1: 2, y2: 28 }),
  );
  if (mean !== null) {
    drawing.append(
      svg("line", { class: "band", x1: at(lower), x2: at(upper), y1: MIDDLE, y2: MIDDLE }),
      svg("circle", { class: "mean", cx: at(mean), cy: MIDDLE, r: 5.5 }),
    );
  }
  for (const [share, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) {
    drawing.append(svg("text", { x: share === 0.5 ? at(0.5) : share * WIDTH, y: 43, "text-anchor": anchor }, percent(share)));
  }
  return drawing;
}

function guardItem({ guard, value, limit, vetoes }) {
  const [title, format] = GUARDS[guard] ?? [guard, figure];
  return h(
    "li",
    { class: vetoes ? "veto" : null },
    h("span", {}, vetoes ? `${title} (veto)` : title),
    h("b", {}, format(value)),
    h("small", {}, `limit ${format(limit)}`),
  );
}

function contestCard(title, standing, lines, guards) {
  const rate = standing.win_rate === null ? DASH : percent(standing.win_rate);
  const bounds = standing.win_rate === null ? "no ballot counts yet" : `${percent(standing.lower)} to ${percent(standing.upper)}`;
  return h(
    "article",
    { class: "contest", "aria-label": title },
    h("h3", {}, title),
    h("p", { class: "rate" }, h("b", {}, rate), h("span", {}, `win rate, ${bounds}`)),
    intervalDrawing(standing),
    h("p", { class: "contest-lines" }, ...lines.map((line) => h("span", {}, line))),
    guards.length ? h("ul", { class: "guards", "aria-label": "Guards" }, ...guards.map(guardItem)) : null,
  );
}

const votesLine = ({ votes, voters, ballots }) =>
  `${counted(votes, "vote")} of ${count(voters)} ${voters === 1 ? "person" : "people"}; ${counted(ballots, "ballot")} ${ballots === 1 ? "counts" : "count"}`;
const outcomesLine = ({ wins, losses, ties, both_bad: bothBad }) =>
  `${count(wins)} won, ${count(losses)} lost, ${count(ties)} tied, ${count(bothBad)} both bad`;

/** Draws gate, canary and alarm; leaves alone what hasn't changed. */
export class Election {
  #drawn = "";

  constructor(onPause) {
    this.mode = byId("gate");
    this.place = byId("election");
    this.pause = byId("pause");
    this.paused = false;
    this.pause.addEventListener("click", () => onPause(this.paused));
  }

  /** Show the loop's `gate`, `canary` and `alarm`. */
  show({ gate = null, canary = null, alarm = null }) {
    this.paused = Boolean(gate?.paused);
    this.pause.hidden = !gate;
    this.pause.textContent = this.paused ? "Resume releases" : "Pause releases";
    const drawn = JSON.stringify([gate, canary, alarm]);
    if (drawn === this.#drawn) return;
    this.#drawn = drawn;
    const paused = this.paused ? ` Paused by ${gate.actor}: ${gate.reason}` : "";
    this.mode.textContent = gate ? `${MODES[gate.mode] ?? ""}${paused}` : "";
    this.place.replaceChildren(...[canary && this.#canary(canary), alarm?.votes ? this.#alarm(alarm) : null].filter(Boolean));
    this.place.hidden = !this.place.children.length;
  }

  #canary(standing) {
    const needed = `${percent(Math.max(0, Math.round(standing.evidence * 100) / 100))} of the evidence that a promotion needs`;
    const lines = [votesLine(standing), outcomesLine(standing), this.paused ? "Paused: it gets no pairs" : needed];
    return contestCard(`${standing.adapter} against ${standing.opponent}`, standing, lines, standing.guards);
  }

  #alarm(standing) {
    const lines = [votesLine(standing), outcomesLine(standing), "Rolled back by itself if voters are shown to prefer the other"];
    return contestCard(`In office: ${standing.adapter} against ${standing.opponent}`, standing, lines, []);
  }
}
