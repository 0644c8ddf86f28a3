// A model's answer as DOM. The text is hostile by assumption: raw HTML is shown as text, pictures become links (loading one
// would tell its host what was asked), and DOMPurify has the last word with a short list of allowed tags.

import { Marked } from "../vendor/marked.esm.js";

const { DOMPurify } = globalThis;

const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escapeHtml = (text) => text.replace(/[&<>"']/g, (character) => ESCAPES[character]);

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text }) => escapeHtml(text),
    image: ({ href, text }) => `<a href="${escapeHtml(href)}">${escapeHtml(text || "picture")}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    // Headings of an answer stand below the page's own (h3 names the answer).
    heading({ tokens, depth }) {
      const level = Math.min(6, depth + 3);
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>\n`;
    },
  },
});

const ALLOWED = {
  ALLOWED_TAGS: [
    "p", "br", "strong", "em", "del", "code", "pre", "blockquote", "ul", "ol", "li", "h4", "h5", "h6", "hr",
    "table", "thead", "tbody", "tr", "th", "td", "a",
  ],
  ALLOWED_ATTR: ["href", "title", "start", "align"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

function sanitise(html) {
  const fragment = DOMPurify.sanitize(html, ALLOWED);
  for (const link of fragment.querySelectorAll("a")) {
    if (!link.hasAttribute("href")) {
      link.replaceWith(...link.childNodes); // its address was refused: the words alone stay
      continue;
    }
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const wide of fragment.querySelectorAll("pre, table")) {
    wide.tabIndex = 0; // it scrolls sideways, so the keyboard must reach it
    if (wide.tagName === "PRE") wide.setAttribute("role", "group");
    wide.setAttribute("aria-label", wide.tagName === "PRE" ? "Code" : "Table");
  }
  return fragment;
}

/** Quotes, lists and their items within each other, at most. A small model may say ">" a thousand times: the browser's own stack ends, and with it the page. */
const DEEPEST = 100;

const tooDeep = (token, left = DEEPEST) =>
  left === 0 || [...(token.tokens ?? []), ...(token.items ?? [])].some((inner) => tooDeep(inner, left - 1));

/** Tokens of a text; one for all of it where the parser's stack ends first. */
function tokensOf(text) {
  try {
    return marked.lexer(text);
  } catch {
    return [{ type: "plain", raw: text }];
  }
}

/** A token as DOM; as it was written where it is nested too deep. */
function drawn(token, links) {
  if (token.type !== "plain" && !tooDeep(token)) return sanitise(marked.parser(Object.assign([token], { links })));
  const text = document.createElement("p");
  text.className = "plain";
  text.textContent = token.raw;
  return text;
}

/**
 * A growing answer. Only the blocks that changed are drawn again, so a selection in a finished paragraph survives and
 * long answers stay cheap.
 */
export class Answer {
  #blocks = [];
  #links = "{}";

  constructor(element) {
    this.element = element;
    element.dir = "auto";
  }

  /** Show this markdown. */
  show(text) {
    const tokens = tokensOf(text);
    const { links } = tokens;
    const defined = JSON.stringify(links); // a link's address may come after its words: then what was drawn isn't true any more
    const same = defined === this.#links;
    this.#links = defined;
    const wanted = tokens.filter((token) => token.type !== "space" && token.type !== "def");
    wanted.forEach((token, index) => {
      const old = this.#blocks[index];
      if (same && old?.raw === token.raw) return;
      const block = document.createElement("div");
      block.className = "block";
      block.append(drawn(token, links));
      if (old) old.node.replaceWith(block);
      else this.element.append(block);
      this.#blocks[index] = { raw: token.raw, node: block };
    });
    for (const { node } of this.#blocks.splice(wanted.length)) node.remove();
  }
}
