// Numbers and times as people read them. What isn't known is a dash.

export const DASH = "–";

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const fine = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const ago = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
const STEPS = [
  ["day", 86400],
  ["hour", 3600],
  ["minute", 60],
];

const known = (value) => typeof value === "number" && Number.isFinite(value);

/** A count: 1,234. */
export const count = (value) => (known(value) ? whole.format(value) : DASH);

/** A measured figure: three significant digits. */
export const figure = (value) => (known(value) ? fine.format(value) : DASH);

/** A share as a percentage. */
export const percent = (value) => (known(value) ? `${fine.format(value * 100)}%` : DASH);

/** A length of time: "45 s", "3 min", "2.5 h". */
export function duration(seconds) {
  if (!known(seconds)) return DASH;
  if (seconds < 90) return `${whole.format(seconds)} s`;
  return seconds < 5400 ? `${whole.format(seconds / 60)} min` : `${fine.format(seconds / 3600)} h`;
}

/** A moment seen from another: "5 minutes ago". */
export function since(moment, now) {
  const seconds = (Date.parse(moment) - now) / 1000;
  if (!Number.isFinite(seconds)) return DASH;
  const [unit, length] = STEPS.find(([, step]) => Math.abs(seconds) >= step) ?? ["second", 1];
  return Math.abs(seconds) < 5 ? "just now" : ago.format(Math.round(seconds / length), unit);
}

/** "1 vote", "2 votes". */
export const counted = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
