// The Loop page: asks for the loop's state every two seconds while it is in view, and shows it.

import { loopState } from "./api.js";
import { chart } from "./chart.js";
import { byId, h, icon } from "./dom.js";
import { DASH, figure, percent, since } from "./format.js";
import { Leaderboard } from "./leaderboard.js";
import { Picture } from "./picture.js";
import { Releases } from "./releases.js";
import { setUpTheme } from "./toggle.js";

const EVERY_MS = 2000;
const SLOWEST_MS = 15000;
const PATIENCE_MS = 10000;

const MOST_SAMPLES = 3;

const CHARTS = [
  { key: "win_rate", title: "Win rate", note: "over the base, as the reward model sees it", format: percent, reference: 0.5 },
  { key: "reward", title: "Reward", note: "mean score by the reward model", format: figure },
  { key: "kl", title: "KL", note: "distance from the base, nats an answer", format: figure, bounds: [0, 0] },
];
const COLUMNS = [
  ["Cycle", (cycle) => String(cycle.cycle)],
  ["Adapter", (cycle) => cycle.adapter ?? DASH],
  ["Win rate", (cycle) => percent(cycle.win_rate)],
  ["Reward", (cycle) => figure(cycle.reward)],
  ["KL", (cycle) => figure(cycle.kl)],
  ["Outcome", (cycle) => [cycle.outcome, cycle.reason].filter(Boolean).join(": ") || DASH],
  ["Finished", (cycle, now) => since(cycle.finished_at, now)],
  ["Report", (cycle) => (cycle.report ? h("a", { href: reportOf(cycle) }, "Report") : DASH)],
];

function reportOf({ cycle }) {
  return `loop/cycles/${cycle}/report`;
}

/** The last question of a prompt: the trainer decodes whole chat templates, in which role names stand on lines of their own. */
const promptText = (prompt) => prompt.split(/(?:^|\n)user\n/).at(-1).replace(/\s*\bassistant\s*$/, "").trim();

class LoopPage {
  #failures = 0;
  #timer = 0;
  #drawn = "";

  constructor() {
    this.picture = new Picture(byId("picture"));
    this.releases = new Releases(() => this.refresh());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.refresh();
    });
    this.refresh();
  }

  /** Ask now, then again every two seconds (seldomer while the server is away, never while nobody looks). */
  async refresh() {
    clearTimeout(this.#timer);
    try {
      const loop = await loopState(AbortSignal.timeout(PATIENCE_MS));
      this.#failures = 0;
      this.#show(loop);
    } catch (error) {
      this.#failures += 1;
      this.#lost(error);
    }
    clearTimeout(this.#timer);
    const wait = Math.min(SLOWEST_MS, EVERY_MS * 2 ** Math.min(this.#failures, 5));
    if (!document.hidden) this.#timer = setTimeout(() => this.refresh(), this.#failures ? wait : EVERY_MS);
  }

  #show(loop) {
    const now = Date.parse(loop.now) || Date.now();
    byId("pulse").className = "pulse alive";
    byId("pulse").lastElementChild.textContent = "Live";
    if (loop.ready === false) this.#say(`Serving isn't ready: ${loop.not_ready_reason}`);
    else byId("trouble").hidden = true;
    this.picture.show(loop, now);
    this.releases.show(loop, now);
    this.#cycles(loop.cycles ?? [], now);
    this.#samples(loop.training?.samples ?? []);
  }

  #samples(samples) {
    const told = samples.filter(({ prompt, before, after }) => prompt && (before || after)).slice(0, MOST_SAMPLES);
    byId("samples-section").hidden = told.length === 0;
    const side = (title, text) => h("dl", {}, h("dt", {}, title), h("dd", { dir: "auto" }, text || DASH));
    byId("samples").replaceChildren(
      ...told.map(({ prompt, before, after }) =>
        h("article", { class: "sample" }, h("h3", { dir: "auto" }, promptText(prompt)), side("Before", before), side("Now", after)),
      ),
    );
  }

  #lost(error) {
    byId("pulse").className = "pulse lost";
    byId("pulse").lastElementChild.textContent = "No contact";
    this.#say(`${error.name === "TimeoutError" ? "The server doesn't answer." : error.message} Trying again.`);
  }

  #say(said) {
    const trouble = byId("trouble");
    if (!trouble.hidden && trouble.textContent === said) return;
    trouble.hidden = false;
    trouble.className = "notice";
    trouble.setAttribute("role", "alert");
    trouble.replaceChildren(icon("warning"), h("span", {}, said));
  }

  #cycles(cycles, now) {
    const drawn = JSON.stringify(cycles);
    if (drawn === this.#drawn) return;
    this.#drawn = drawn;
    const figures = CHARTS.map(({ key, ...options }) => {
      const points = cycles
        .filter((cycle) => typeof cycle[key] === "number")
        .map((cycle) => ({ x: cycle.cycle, y: cycle[key], label: cycle.adapter ?? `cycle ${cycle.cycle}` }));
      return points.length ? chart({ ...options, points }) : null;
    }).filter(Boolean);
    const empty = h("p", { class: "empty" }, "No cycle has ended yet. A cycle begins when enough new votes have come.");
    byId("charts").replaceChildren(...(figures.length ? figures : [empty]));
    byId("figures").hidden = cycles.length === 0;
    const told = cycles.findLast((cycle) => cycle.report);
    byId("report").hidden = !told;
    if (told) {
      byId("report").href = reportOf(told);
      byId("report").textContent = `Report of cycle ${told.cycle}`;
    }
    byId("cycles-table").replaceChildren(
      h("thead", {}, h("tr", {}, ...COLUMNS.map(([title]) => h("th", { scope: "col" }, title)))),
      h("tbody", {}, ...cycles.map((cycle) => h("tr", {}, ...COLUMNS.map(([, show]) => h("td", {}, show(cycle, now)))))),
    );
  }
}

setUpTheme();
new LoopPage();
new Leaderboard();
