// Small helpers to build DOM without innerHTML.

const SVG = "http://www.w3.org/2000/svg";

/** Drawings of the icons: paths in a 24 x 24 box, drawn as strokes. */
const ICONS = {
  copy: "M9 9h10v11H9z M5 15V4h10",
  check: "m5 12.5 4.5 4.5L19 7.5",
  retry: "M20 11a8 8 0 1 0-2.3 6.3 M20 4v7h-7",
  warning: "M12 4 2.8 20h18.4L12 4z M12 10v4.5 M12 17.3v.2",
  down: "M12 5v14 m-6-6 6 6 6-6",
  pencil: "M4 20h4L19 9l-4-4L4 16v4z M13 7l4 4",
  comment: "M4 5h16v11h-8l-5 4v-4H4z",
  close: "M6 6l12 12 M18 6 6 18",
  thumbUp: "M7 11v9H4v-9z M7 11l4-7.5c1.4 0 2.4 1 2.4 2.4V9.5h5.1a2 2 0 0 1 2 2.3l-1.1 6.5a2 2 0 0 1-2 1.7H7",
  thumbDown: "M7 13V4H4v9z M7 13l4 7.5c1.4 0 2.4-1 2.4-2.4v-3.6h5.1a2 2 0 0 0 2-2.3l-1.1-6.5a2 2 0 0 0-2-1.7H7",
  trash: "M5 7h14 M10 7V4h4v3 M7 7l1 13h8l1-13",
};

/**
 * An element with its properties and children.
 * `class`, `data-*`, `aria-*` and other attributes are set as attributes; `on*` functions as listeners; null and false are left out.
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An SVG element with attributes and children. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** A decorative icon, hidden from screen readers. */
export function icon(name) {
  return svg(
    "svg",
    { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true", focusable: "false" },
    svg("path", { d: ICONS[name] }),
  );
}

/** The element with this id; a page without it is a mistake worth an error. */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no #${id}`);
  return element;
}

/** Put text into the page's polite live region. Said again even if it is the same text. */
export function announce(text) {
  const region = byId("live");
  region.textContent = "";
  requestAnimationFrame(() => {
    region.textContent = text;
  });
}
