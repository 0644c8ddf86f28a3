// The standings: who is how strong, with intervals, asked for now and then while the page is in view.

import { standings } from "./api.js";
import { byId, h, svg } from "./dom.js";
import { count, counted, DASH, percent } from "./format.js";

const EVERY_MS = 15000;
const PATIENCE_MS = 10000;
const HEADS = ["Rank", "Contender", "Strength at equal length", "Win rate", "Won, lost, tied"];
const signed = new Intl.NumberFormat("en", { signDisplay: "exceptZero", minimumFractionDigits: 2, maximumFractionDigits: 2 });
const number = (value) => (Number.isFinite(value) ? signed.format(value) : DASH);
const range = ([low, high]) => `${number(low)} to ${number(high)}`;

/** A whisker from low to high with a dot at the strength, on a scale from -reach to reach. */
function whisker(strength, [low, high], reach) {
  const at = (value) => 100 + (98 * Math.max(-reach, Math.min(reach, value))) / reach;
  return svg(
    "svg",
    { class: "whisker", viewBox: "0 0 200 16", "aria-hidden": "true", focusable: "false" },
    svg("line", { class: "zero", x1: 100, x2: 100, y1: 1, y2: 15 }),
    svg("line", { class: "range", x1: at(low), x2: at(high), y1: 8, y2: 8 }),
    svg("circle", { class: "dot", cx: at(strength), cy: 8, r: 4 }),
  );
}

function row(standing, reach) {
  const { contender, rank, controlled, controlled_interval: interval, win_rate: rate, wins, losses, ties, both_bad: bad } = standing;
  const cell = (index, ...children) => h("td", { "data-label": HEADS[index] }, ...children);
  return h(
    "tr",
    {},
    cell(0, count(rank)),
    h("th", { scope: "row" }, contender === "base" ? "The base model" : contender),
    cell(2, whisker(controlled, interval, reach), h("span", { class: "strength" }, `${number(controlled)} (${range(interval)})`)),
    cell(3, percent(rate)),
    cell(4, `${count(wins)}, ${count(losses)}, ${count(ties + bad)}`),
  );
}

function notes(board) {
  const said = [`${counted(board.votes, "vote")} of ${board.voters === 1 ? "1 voter" : `${count(board.voters)} voters`}, each weighed by how far its voter can be relied on`];
  if (board.position_bias_interval) said.push(`the left answer's advantage is taken out (${number(board.position_bias)}, ${range(board.position_bias_interval)})`);
  if (board.length_effect_interval) said.push(`so is that of longer answers (${number(board.length_effect)}, ${range(board.length_effect_interval)})`);
  const out = [
    board.planted ? counted(board.planted, "planted pair") : null,
    board.leaking ? `${counted(board.leaking, "pair")} in which an answer gave itself away` : null,
  ].filter(Boolean);
  if (out.length) said.push(`left out: ${out.join(", ")}`);
  return `Log-odds of beating an average contender, with 95% intervals. ${said.join("; ")}.`;
}

/** Keeps the section of the standings up to date. */
export class Leaderboard {
  #timer = 0;
  #drawn = "";

  constructor() {
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.refresh();
    });
    this.refresh();
  }

  async refresh() {
    clearTimeout(this.#timer);
    try {
      this.#show(await standings(AbortSignal.timeout(PATIENCE_MS)));
    } catch {
      // The loop's own requests, made more often, tell that the server is away; what was shown stays.
    }
    clearTimeout(this.#timer);
    if (!document.hidden) this.#timer = setTimeout(() => this.refresh(), EVERY_MS);
  }

  #show(board) {
    const drawn = JSON.stringify(board);
    if (drawn === this.#drawn) return;
    this.#drawn = drawn;
    const contenders = board.contenders ?? [];
    byId("standings-notes").textContent = contenders.length ? notes(board) : "";
    if (!contenders.length) {
      byId("standings").replaceChildren(h("p", { class: "empty" }, "Nobody has met anybody else yet. Standings come from votes between different adapters."));
      return;
    }
    const reach = Math.max(0.5, ...contenders.flatMap(({ controlled_interval: interval }) => interval.map(Math.abs)));
    byId("standings").replaceChildren(
      h(
        "table",
        { "aria-labelledby": "standings-title" },
        h("thead", {}, h("tr", {}, ...HEADS.map((text) => h("th", { scope: "col" }, text)))),
        h("tbody", {}, ...contenders.map((standing) => row(standing, reach))),
      ),
    );
  }
}
