// The dark mode button: follows the system until it is pressed, then remembers.

import { byId, svg } from "./dom.js";

const SUN = "M12 7.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9z M12 2v2 M12 20v2 M2 12h2 M20 12h2 M5 5l1.4 1.4 M17.6 17.6 19 19 M5 19l1.4-1.4 M17.6 6.4 19 5";
const MOON = "M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5z";

const system = matchMedia("(prefers-color-scheme: dark)");

/** Whether the page is dark now. */
export function isDark() {
  const { theme } = document.documentElement.dataset;
  return theme ? theme === "dark" : system.matches;
}

/** Wire the button `#theme`. */
export function setUpTheme() {
  const button = byId("theme");
  const path = svg("path");
  button.append(svg("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" }, path));
  const show = () => {
    button.setAttribute("aria-pressed", String(isDark()));
    path.setAttribute("d", isDark() ? SUN : MOON);
  };
  button.addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem("hustings.theme", theme);
    } catch {
      // Storage is forbidden: the choice lasts as long as the page.
    }
    show();
  });
  system.addEventListener("change", show);
  show();
}
