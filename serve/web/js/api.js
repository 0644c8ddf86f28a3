// The HTTP API. Addresses are relative, so that a proxy may put everything under a prefix.

import { events } from "./sse.js";

/** A request that failed; the message is fit to be shown. */
export class Problem extends Error {
  constructor(message, { status = 0, retryAfterS = null } = {}) {
    super(message);
    this.name = "Problem";
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

const BY_STATUS = {
  429: "Many people are asking just now. Please wait a moment.",
  502: "The server can't be reached behind its proxy.",
  503: "The model isn't ready yet.",
  504: "The model took too long.",
};

async function problemOf(response) {
  let detail = null;
  try {
    const body = await response.json();
    if (typeof body.detail === "string") detail = body.detail;
    else detail = body.title ?? body.error?.message ?? null;
  } catch {
    // Not JSON: a proxy's page. The status says enough.
  }
  const seconds = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  return new Problem(detail ?? BY_STATUS[response.status] ?? `The server answered with status ${response.status}.`, {
    status: response.status,
    retryAfterS: Number.isFinite(seconds) ? seconds : null,
  });
}

const PATIENCE_MS = 600_000;
/** For what is answered at once. A connection that was lost without a word would otherwise hold the ballot for ever; votes and thumbs may be sent again. */
const AT_ONCE_MS = 30_000;

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

/** As `send`, again and again while the server says that it isn't ready yet and when to come back; for ten minutes. */
async function sendWhenReady(path, options, onWait) {
  const patience = performance.now() + PATIENCE_MS;
  for (;;) {
    try {
      return await send(path, options);
    } catch (error) {
      if (error.status !== 503 || error.retryAfterS === null || performance.now() > patience) throw error;
      onWait();
      await pause(error.retryAfterS * 1000, options.signal);
    }
  }
}

async function send(path, { method = "GET", body, headers = {}, signal } = {}) {
  let response;
  try {
    response = await fetch(path, {
      method,
      signal,
      headers: body === undefined ? headers : { "Content-Type": "application/json", ...headers },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (error.name === "TimeoutError") throw new Problem("The server doesn't answer.");
    throw new Problem("The server can't be reached. Is it running, and are you online?");
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

/**
 * The stream of a turn. Who has lost the cookie that began a conversation (a year is over, or it was cleared) begins
 * another with the same messages: the server would refuse this one for ever.
 */
async function begin(body, signal, onWait) {
  const options = { method: "POST", body, signal, headers: { Accept: "text/event-stream" } };
  try {
    return await sendWhenReady("v1/turns", options, onWait);
  } catch (error) {
    if (error.status !== 403 || !body.conversation_id) throw error;
    delete body.conversation_id;
    return sendWhenReady("v1/turns", options, onWait);
  }
}

/**
 * Ask, and yield what the server streams: `{event: "pair" | "answer" | "delta" | "done", data}`; the first event tells
 * whether several answers come (to be voted on) or one (for a thumb).
 * An `error` event, or a stream that ends without `done`, throws a Problem. While the model is being loaded, the
 * question waits: `onWait` is called each time it is put off.
 */
export async function* streamTurn({ messages, conversationId }, signal, onWait = () => {}) {
  const body = { messages, stream: true };
  if (conversationId) body.conversation_id = conversationId;
  const response = await begin(body, signal, onWait);
  try {
    for await (const { event, data } of events(response.body)) {
      if (data === "[DONE]") break;
      const parsed = JSON.parse(data);
      if (event === "error") {
        throw new Problem(parsed.detail ?? parsed.title ?? "The answers broke off.", { status: parsed.status ?? 0 });
      }
      yield { event, data: parsed };
      if (event === "done") return;
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Problem) throw error;
    throw new Problem("The connection was lost while the answers were being written.");
  }
  throw new Problem("The answers broke off before they were complete.");
}

/** Cast a vote; gives `{vote_id, reveal}`. */
export async function castVote(vote) {
  return (await send("v1/votes", { method: "POST", body: vote, signal: AbortSignal.timeout(AT_ONCE_MS) })).json();
}

/** How many prepared pairs wait for this person. */
export async function reviewsWaiting() {
  return (await (await send("v1/reviews")).json()).waiting;
}

/** Take a prepared pair: a pair with the `messages` that it answers; null where none waits. */
export async function takeReview() {
  try {
    return await (await send("v1/reviews", { method: "POST" })).json();
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

/** Give a single answer a thumb, "up" or "down"; gives `{thumb_id, reveal}`. */
export async function giveThumb(answerId, thumb) {
  const signal = AbortSignal.timeout(AT_ONCE_MS);
  return (await send("v1/thumbs", { method: "POST", body: { answer_id: answerId, thumb }, signal })).json();
}

/** The Loop page's data. */
export async function loopState(signal) {
  return (await send("v1/loop", { signal })).json();
}

/** The standings of the leaderboard. */
export async function standings(signal) {
  return (await send("v1/leaderboard", { signal })).json();
}

/** The releases that came before this one: `{releases, next}`; `next` is null where there are no more. */
export async function releasesBefore(name, signal) {
  return (await send(`v1/releases?before=${encodeURIComponent(name)}&limit=50`, { signal })).json();
}

/** An operator's act on the releases: `policy-000002/promote`, `policy-000002/reject`, `rollback`, `pause` or `resume`. */
export async function changeRelease(act, { reason, by }, token) {
  const headers = { Authorization: `Bearer ${token}` };
  const body = { ...(reason && { reason }), ...(by && { by }) };
  const response = await send(`v1/releases/${act}`, { method: "POST", body, headers });
  return response.status === 204 ? null : response.json();
}

/** Who spoke in each position: `{a: name, b: name}`, whichever of the allowed forms the reveal has. */
export function readReveal(reveal) {
  const name = (value) => {
    if (value === null || value === undefined || value === "base") return "base";
    return typeof value === "string" ? value : name(value.adapter ?? value.model);
  };
  if (!reveal) return null;
  const sides = Array.isArray(reveal) ? reveal : (reveal.completions ?? reveal.positions ?? reveal);
  if (Array.isArray(sides)) return Object.fromEntries(sides.map((side) => [side.position, name(side)]));
  return Object.fromEntries(["a", "b", "c", "d"].filter((side) => side in sides).map((side) => [side, name(sides[side])]));
}
