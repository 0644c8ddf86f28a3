// Releases older than those that the loop's state brings: fetched a page at a time, on demand.

import { releasesBefore } from "./api.js";
import { byId } from "./dom.js";

/** Keeps the older releases that were asked for, and the line that tells how many there are. */
export class OlderReleases {
  #rows = [];
  #next = null;
  #pages = 0;
  #change = null;
  #loading = false;

  /** `onMore` is called when more have come. */
  constructor(onMore) {
    this.onMore = onMore;
    this.line = byId("older-releases");
    this.told = this.line.querySelector("span");
    this.button = this.line.querySelector("button");
    this.button.addEventListener("click", () => this.#load(this.#pages + 1));
  }

  /** The loop's releases and the older ones, each once, the newest first. */
  beside({ releases = [], release_pages: pages }) {
    if (!this.#pages) this.#next = pages?.next ?? null;
    else if (pages && pages.change !== this.#change) this.#load(this.#pages, pages);
    this.newest = pages;
    const byName = new Map([...this.#rows, ...releases].map((release) => [release.name, release]));
    const all = [...byName.values()].sort((one, other) => (one.name < other.name ? 1 : -1));
    this.line.hidden = !this.#next;
    this.told.textContent = pages ? `${all.length} of ${pages.total} shown` : "";
    return all;
  }

  /** Fetch so many pages: one more than there were, or all anew, for one of them may have changed. */
  async #load(count, newest = this.newest) {
    if (this.#loading || !newest) return;
    this.#loading = this.button.disabled = true;
    try {
      const anew = newest.change !== this.#change;
      let rows = anew ? [] : this.#rows;
      let next = anew ? newest.next : this.#next;
      for (let page = anew ? 0 : this.#pages; page < count && next; page += 1) {
        const found = await releasesBefore(next, AbortSignal.timeout(10_000));
        rows = [...rows, ...found.releases];
        next = found.next;
      }
      [this.#rows, this.#next, this.#pages, this.#change] = [rows, next, count, newest.change];
    } catch {
      this.told.textContent = "The older ones could not be fetched.";
      return;
    } finally {
      this.#loading = this.button.disabled = false;
    }
    this.onMore();
  }
}
