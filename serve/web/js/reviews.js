// Prepared answers to be judged: offered on the welcome page as long as any wait.

import { reviewsWaiting, takeReview } from "./api.js";
import { newTurn, seat } from "./conversation.js";
import { announce, byId } from "./dom.js";

/** Wire the offer to the chat, and show it if anything waits. */
export function setUpReviews(chat) {
  byId("review").addEventListener("click", () => judge(chat));
  offer();
}

/** Show the offer if anything waits; whatever goes wrong, there is none. */
export async function offer() {
  try {
    byId("judge").hidden = !(await reviewsWaiting());
  } catch {
    byId("judge").hidden = true;
  }
}

let taking = false;

/** Put a prepared pair before the person, in a conversation of its own; a second click takes no second one. */
export async function judge(chat) {
  if (taking) return;
  taking = true;
  try {
    await take(chat);
  } finally {
    taking = false;
  }
}

async function take(chat) {
  let pair = null;
  try {
    if (await reviewsWaiting()) pair = await takeReview();
  } catch (error) {
    announce(error.message);
    return;
  }
  if (pair) chat.openReview(pair.conversation_id, turnOf(pair));
  else {
    byId("judge").hidden = true;
    announce("Nothing waits to be judged just now.");
    chat.startAfresh();
  }
}

function turnOf(pair) {
  const { messages, completions } = pair;
  const asked = messages.length > 1 ? messages.map(({ role, content }) => `${role}: ${content}`).join("\n\n") : messages[0].content;
  const turn = seat(newTurn(asked), completions.map(({ position }) => position));
  for (const { position, message, finish_reason: finish } of completions) Object.assign(turn[position], { text: message.content, finish });
  return Object.assign(turn, { state: "voting", pairId: pair.pair_id, review: true });
}
