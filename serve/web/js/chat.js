// The chat page: ties the conversation, its turns, the ballot and the server together.

import { castVote, giveThumb, readReveal, streamTurn } from "./api.js";
import { Ballot } from "./ballot.js";
import { Archive, messagesFor, newConversation, newTurn, revive, seat, sidesOf } from "./conversation.js";
import { announce, byId, h, icon } from "./dom.js";
import { setUpHistory } from "./history.js";
import { RankBallot } from "./rank_ballot.js";
import { inWords } from "./ranking.js";
import { judge, setUpReviews } from "./reviews.js";
import { Follower } from "./scroll.js";
import { suggestions } from "./suggestions.js";
import { setUpTheme } from "./toggle.js";
import { speaker, TurnView } from "./turn_view.js";

/** How many answers a turn is configured to have; the server's first event decides. */
const ANSWERS = Number(document.documentElement.dataset.answers) || 2;
const COUNTS = { 1: "One", 2: "Two", 3: "Three", 4: "Four" };
const WRITING = `${COUNTS[ANSWERS]} candidates are answering`;
const WAITING = "The model isn't ready yet. Your question is kept, and sent as soon as it is.";
const SPOKEN = { a: "A is better", b: "B is better", tie: "Tie", both_bad: "Both bad" };

class Chat {
  #views = [];
  #abort = null;
  #ballot = null;
  #waiting = false;

  constructor() {
    this.archive = new Archive();
    this.follower = new Follower();
    this.input = byId("question");
    this.#wire();
    const [latest] = this.archive.all();
    this.open(latest ? revive(latest) : newConversation());
  }

  /** Show this conversation. */
  open(conversation) {
    this.#abort?.abort();
    this.#abort = null;
    this.conversation = conversation;
    this.#views = [];
    byId("turns").replaceChildren();
    for (const turn of conversation.turns) this.#addView(turn);
    this.#showFace();
    this.follower.begin(this.#views.at(-1)?.element ?? null);
  }

  /** Begin another conversation; the old one stays in the history. */
  startAfresh() {
    this.open(newConversation());
    this.input.focus();
    announce("New conversation");
  }

  /** Put a prepared turn before the person, in a conversation of its own. */
  openReview(serverId, turn) {
    const conversation = newConversation();
    Object.assign(conversation, { serverId, turns: [turn] });
    this.archive.keep(conversation);
    this.open(conversation);
    this.#settled(turn);
  }

  /** Ask a question: a new turn, two answers. */
  async ask(question) {
    const { turns } = this.conversation;
    const messages = messagesFor(turns, question);
    const turn = newTurn(question, turns.at(-1)?.alone, ANSWERS); // most likely as the last one
    turns.push(turn);
    this.archive.keep(this.conversation);
    const view = this.#addView(turn);
    this.#showFace();
    this.follower.begin(view.element);
    announce(turn.alone ? "The model is answering" : WRITING);
    await this.#stream(turn, view, messages);
  }

  /** Ask the last question again, in place of the turn that failed, was stopped, or was bad on both sides. */
  retry(view) {
    const { turns } = this.conversation;
    const at = turns.indexOf(view.turn);
    if (this.#abort || at !== turns.length - 1) return;
    turns.splice(at, 1);
    this.#views.splice(at, 1);
    view.element.remove();
    this.ask(view.turn.question);
  }

  async #stream(turn, view, messages) {
    const abort = new AbortController();
    this.#abort = abort;
    this.#waits(false, abort);
    const { conversation } = this;
    try {
      const asked = { messages, conversationId: conversation.serverId };
      for await (const { event, data } of streamTurn(asked, abort.signal, () => this.#waits(true, abort))) {
        this.#waits(false, abort);
        if (event === "pair") {
          turn.pairId = data.pair_id;
          this.#among(turn, view, false, data.positions);
          conversation.serverId = data.conversation_id ?? conversation.serverId;
        } else if (event === "answer") {
          turn.answerId = data.answer_id;
          this.#among(turn, view, true);
          conversation.serverId = data.conversation_id ?? conversation.serverId;
        } else if (event === "delta" && turn[data.position]) {
          turn[data.position].text += data.content;
          view.grown(data.position);
        } else if (event === "done") {
          this.#finish(turn, data);
        }
      }
      turn.state = turn.alone ? "answered" : "voting";
    } catch (error) {
      turn.state = error.name === "AbortError" ? "stopped" : "failed";
      turn.error = error.name === "AbortError" ? null : error.message;
    }
    this.archive.keep(conversation);
    if (this.#abort !== abort) return; // another conversation has been opened meanwhile
    this.#abort = null;
    view.update();
    this.#settled(turn);
  }

  /** Say in the dock whether the question waits for the server to be ready. */
  #waits(waiting, abort) {
    if (this.#abort !== abort || waiting === this.#waiting) return; // another conversation has been opened meanwhile
    this.#waiting = waiting;
    byId("writing-text").textContent = waiting ? WAITING : WRITING;
    if (waiting) announce(WAITING);
  }

  #among(turn, view, alone, sides = ["a", "b"]) {
    if (turn.alone === alone && (alone || turn.sides.length === sides.length)) return;
    turn.alone = alone;
    if (!alone) seat(turn, sides);
    view.update();
  }

  #finish(turn, data) {
    if (turn.alone) Object.assign(turn.a, { finish: data.finish_reason ?? null, text: data.message?.content ?? turn.a.text });
    turn.pairId = data.pair_id ?? turn.pairId;
    for (const { position, finish_reason: finish, message } of data.completions ?? []) {
      if (!turn[position]) continue;
      turn[position].finish = finish ?? null;
      if (typeof message?.content === "string") turn[position].text = message.content;
    }
  }

  #settled(turn) {
    this.#showFace();
    this.follower.grown();
    if (turn.state === "voting") {
      this.#ballot.focus();
      announce(this.#ballot.invitation);
    } else {
      this.input.focus({ preventScroll: true });
      if (turn.state === "stopped") announce("Stopped");
      if (turn.state === "answered") announce("The answer is ready.");
    }
  }

  async #vote(turn, view, vote) {
    const { conversation } = this;
    const { reveal } = await castVote(vote);
    const said = vote.ranking ? "ranking" : vote.choice;
    Object.assign(turn, { state: "voted", choice: said, ranking: vote.ranking ?? null, edited: vote.edited ?? null, reveal: readReveal(reveal) });
    this.archive.keep(conversation);
    if (conversation !== this.conversation) return;
    view.update();
    this.#showFace();
    this.follower.grown();
    if (!matchMedia("(hover: none)").matches) this.input.focus({ preventScroll: true });
    const who = sidesOf(turn).map((side) => `${side.toUpperCase()} was ${speaker(turn.reveal?.[side] ?? "base")}`);
    const names = turn.reveal ? ` ${who.join(", ")}.` : "";
    announce(`Vote saved: ${vote.ranking ? inWords(vote.ranking) : this.#spoken(turn, vote.choice)}.${names}`);
  }

  #spoken(turn, choice) {
    if (sidesOf(turn).length === 2) return SPOKEN[choice];
    return choice === "tie" ? "All alike" : "All bad";
  }

  async #thumb(turn, view, thumb) {
    const { conversation } = this;
    try {
      const { reveal } = await giveThumb(turn.answerId, thumb);
      Object.assign(turn, { thumb, reveal: { a: reveal }, error: null });
      announce(thumb === "up" ? "Thumb up saved." : "Thumb down saved.");
    } catch (error) {
      turn.error = error.message;
      announce(error.message);
    }
    this.archive.keep(conversation);
    if (conversation === this.conversation) view.update();
  }

  #skip(turn, view) {
    turn.state = "skipped";
    this.archive.keep(this.conversation);
    view.update();
    this.#showFace();
    this.input.focus({ preventScroll: true });
    announce("No vote. The conversation goes on with answer A.");
  }

  #addView(turn) {
    const view = new TurnView(turn, {
      onGrown: () => this.follower.grown(),
      onRetry: () => this.retry(view),
      onThumb: (thumb) => this.#thumb(turn, view, thumb),
      onNext: () => judge(this),
    });
    this.#views.push(view);
    byId("turns").append(view.element);
    return view;
  }

  /** The dock has one task at a time: ask, wait or vote. */
  #showFace() {
    const last = this.#views.at(-1);
    const state = last?.turn.state;
    byId("welcome").hidden = Boolean(last);
    byId("composer").hidden = state === "streaming" || state === "voting";
    byId("writing").hidden = state !== "streaming";
    this.#ballot = state === "voting" ? this.#makeBallot(last) : null;
    byId("ballot-place").replaceChildren(...(this.#ballot ? [this.#ballot.element] : []));
    // Only the last turn can be asked again.
    for (const view of this.#views) view.element.classList.toggle("past", view !== last);
  }

  #makeBallot(view) {
    const { turn } = view;
    const Kind = sidesOf(turn).length > 2 ? RankBallot : Ballot;
    return new Kind(turn, {
      onVote: (vote) => this.#vote(turn, view, vote),
      onSkip: () => this.#skip(turn, view),
      onPreview: (choice) => {
        for (const side of sidesOf(turn)) view.cards[side].element.classList.toggle("preview", choice === side);
      },
      onPlaces: (places) => view.showPlaces(places),
      onResize: () => this.follower.grown(),
    });
  }

  #submit() {
    const question = this.input.value.trim();
    if (!question || this.#abort || this.#ballot) return;
    this.input.value = "";
    this.#fit();
    this.ask(question);
  }

  #fit() {
    // Browsers without `field-sizing` are helped along.
    if (!CSS.supports("field-sizing", "content")) {
      this.input.style.height = "auto";
      this.input.style.height = `${this.input.scrollHeight + 2}px`;
    }
    byId("composer").classList.toggle("tall", this.input.offsetHeight > 70);
  }

  #wire() {
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.input.addEventListener("input", () => this.#fit());
    this.input.addEventListener("keydown", (event) => {
      // An Enter that ends an input method's composition is not for us.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
      event.preventDefault();
      this.#submit();
    });
    byId("stop").addEventListener("click", () => this.#abort?.abort());
    byId("new").addEventListener("click", () => this.startAfresh());
    byId("to-latest").append(icon("down"));
    addEventListener("keydown", (event) => {
      if (document.querySelector("dialog[open]")) return;
      if (event.key === "Escape" && this.#abort) this.#abort.abort();
      else if (this.#ballot?.key(event)) event.preventDefault();
    });
    byId("suggestions").append(
      ...suggestions().map(([title, question]) =>
        h("li", {}, h("button", { type: "button", onclick: () => this.ask(question) }, h("b", {}, title), h("span", {}, question))),
      ),
    );
  }
}

setUpTheme();
if (ANSWERS > 2) {
  byId("welcome-title").textContent = `${COUNTS[ANSWERS]} answers. You decide.`;
  byId("welcome-text").textContent = `Ask anything. ${COUNTS[ANSWERS]} candidates answer side by side, unnamed. Your vote trains the next model.`;
  byId("writing-text").textContent = WRITING;
}
const chat = new Chat();
setUpHistory(chat);
setUpReviews(chat);
