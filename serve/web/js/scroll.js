// Scrolling that follows growing answers until the reader takes over.

import { byId } from "./dom.js";

const NEAR = 48;

/**
 * Follows the page's end while answers grow, but never pushes the current question out of view: once it stands at the top,
 * the page rests, so that nobody reads moving lines. A scroll up by the reader ends it; reaching the end starts it again.
 */
export class Follower {
  #following = true;
  #anchor = null;
  #own = 0;

  constructor() {
    this.button = byId("to-latest");
    this.button.addEventListener("click", () => this.toEnd());
    addEventListener("scroll", () => this.#scrolled(), { passive: true });
    for (const name of ["wheel", "touchmove"]) addEventListener(name, () => this.#read(), { passive: true });
    addEventListener("keydown", (event) => {
      if (["PageUp", "PageDown", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) this.#read();
    });
    addEventListener("resize", () => this.grown());
  }

  /** A new turn begins: follow it, its question at the top at most. */
  begin(turn) {
    this.#anchor = turn;
    this.#following = true;
    this.grown();
  }

  /** The page has grown (or its dock has). */
  grown() {
    if (this.#following) this.#moveTo(this.#restingPlace());
    this.#showButton();
  }

  /** Go to the end, because the reader asked for it. */
  toEnd() {
    this.#following = true;
    this.#anchor = null;
    this.#moveTo(this.#bottom(), true);
  }

  #bottom() {
    return document.documentElement.scrollHeight - innerHeight;
  }

  #restingPlace() {
    if (!this.#anchor?.isConnected) return this.#bottom();
    const header = byId("top").getBoundingClientRect().height;
    const top = this.#anchor.getBoundingClientRect().top + scrollY - header - 12;
    return Math.min(this.#bottom(), top);
  }

  #moveTo(top, gently = false) {
    if (Math.abs(top - scrollY) < 1) return;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.#own = performance.now();
    scrollTo({ top, behavior: gently && !calm ? "smooth" : "instant" });
  }

  #read() {
    this.#own = 0;
    this.#following = false;
  }

  #scrolled() {
    if (performance.now() - this.#own > 150) this.#following = scrollY >= this.#restingPlace() - NEAR;
    this.#showButton();
  }

  #showButton() {
    this.button.hidden = this.#bottom() - scrollY < 160;
  }
}
