// A conversation as data: what was asked, answered and chosen. No DOM in here.

/**
 * @typedef {"streaming" | "voting" | "voted" | "skipped" | "answered" | "stopped" | "failed"} TurnState
 * @typedef {{text: string, finish: string | null}} Side
 * @typedef {{question: string, state: TurnState, pairId: string | null, sides: string[], a: Side, b: Side, c?: Side, d?: Side,
 *   choice: string | null, ranking: string[][] | null, edited: string | null, reveal: Object | null, error: string | null, alone: boolean, answerId: string | null, review?: boolean,
 *   thumb: "up" | "down" | null}} Turn
 * `alone`: one answer (in `a`), to be given a thumb; kept conversations of older versions lack it, and have two
 * `review`: a prepared pair, to a question of nobody here
 * `sides`: positions of the answers, two to four; kept conversations of older versions lack it, and have two
 * @typedef {{id: string, serverId: string | null, turns: Turn[], updatedAt: number}} Conversation
 */

/** @returns {Conversation} */
export function newConversation() {
  // Not randomUUID: it is missing on plain http off localhost.
  const id = [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return { id, serverId: null, turns: [], updatedAt: Date.now() };
}

/**
 * @param {boolean} alone whether one answer is expected; the server's first event decides
 * @param {number} answers how many are expected otherwise
 * @returns {Turn}
 */
export function newTurn(question, alone = false, answers = 2) {
  const turn = {
    question, state: "streaming", pairId: null, choice: null, ranking: null, edited: null, reveal: null, error: null,
    alone, answerId: null, thumb: null,
  };
  return seat(turn, ["a", "b", "c", "d"].slice(0, answers));
}

/** Give the turn these sides; those that it has keep what they said. */
export function seat(turn, sides) {
  turn.sides = sides;
  for (const side of sides) turn[side] ??= { text: "", finish: null };
  return turn;
}

/** The positions of a turn's answers. */
export const sidesOf = (turn) => (turn.alone ? ["a"] : (turn.sides ?? ["a", "b"]));

/** Which side the conversation goes on with, or null when neither will do. A tie goes on with the first of the best, a skipped vote with A. */
export function chosenSide(turn) {
  if (turn.state === "skipped" || turn.state === "answered") return "a";
  if (turn.state !== "voted" || turn.choice === "both_bad") return null;
  if (turn.ranking) return [...turn.ranking[0]].sort()[0];
  return turn.choice === "b" ? "b" : "a";
}

/** The answer that the conversation goes on with, or null. */
export function chosenText(turn) {
  if (turn.state === "voted" && turn.edited) return turn.edited;
  const side = chosenSide(turn);
  return side ? turn[side].text : null;
}

/**
 * The messages of the next request, ending with `question`.
 * Turns that were stopped or failed are left out. A question whose answers were both bad is asked together with the next
 * one, for chat templates want user and assistant to alternate.
 */
export function messagesFor(turns, question) {
  const messages = [];
  let open = [];
  for (const turn of turns) {
    if (!["voted", "skipped", "answered"].includes(turn.state)) continue;
    open.push(turn.question);
    const answer = chosenText(turn);
    if (!answer) continue;
    messages.push({ role: "user", content: open.join("\n\n") }, { role: "assistant", content: answer });
    open = [];
  }
  messages.push({ role: "user", content: [...open, question].join("\n\n") });
  return messages;
}

const KEY = "hustings.conversations.v1";
const KEPT = 30;

/** The conversations kept in this browser, the latest first. */
export class Archive {
  #forgotten = new Set();

  /** @returns {Conversation[]} */
  all() {
    try {
      const kept = JSON.parse(localStorage.getItem(KEY) ?? "[]");
      return Array.isArray(kept) ? kept.filter((one) => Array.isArray(one?.turns) && one.turns.length > 0) : [];
    } catch {
      return []; // storage is forbidden or holds nonsense: begin afresh
    }
  }

  /** Keep it; gives false where the browser won't, or where it was forgotten: a stream that ends later brings nothing back. */
  keep(conversation) {
    if (this.#forgotten.has(conversation.id)) return false;
    const others = this.all().filter((one) => one.id !== conversation.id);
    const kept = conversation.turns.length ? [{ ...conversation, updatedAt: Date.now() }, ...others] : others;
    return this.#write(kept.slice(0, KEPT));
  }

  /** Forget one, for good. */
  forget(id) {
    this.#forgotten.add(id);
    return this.#write(this.all().filter((one) => one.id !== id));
  }

  #write(kept) {
    for (let count = kept.length; count >= 0; count = Math.floor(count / 2)) {
      try {
        localStorage.setItem(KEY, JSON.stringify(kept.slice(0, count)));
        return true;
      } catch {
        if (count === 0) return false; // full even so: drop the older half and try again
      }
    }
    return false;
  }
}

/** After a reload: answers that were still being written will not come any more. */
export function revive(conversation) {
  for (const turn of conversation.turns) if (turn.state === "streaming") turn.state = "stopped";
  return conversation;
}
