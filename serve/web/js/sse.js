// Server-sent events out of a fetch body (EventSource can't POST).

/** One event of a block of lines, or null for a comment or an empty block. */
export function parseBlock(block) {
  let event = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line === "" || line.startsWith(":")) continue;
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") event = value;
    else if (field === "data") data.push(value);
  }
  return data.length ? { event, data: data.join("\n") } : null;
}

/** Longest silence of a stream that lives: the server sends a comment after every 15 s without a word. */
const QUIET_MS = 60_000;

/** The reader's next piece. A connection that was lost without a word would never give one. */
function nextPiece(reader) {
  let timer;
  const lost = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("the stream fell silent")), QUIET_MS);
  });
  return Promise.race([reader.read(), lost]).finally(() => clearTimeout(timer));
}

/**
 * Read events as they arrive.
 * @param {ReadableStream<Uint8Array>} body
 * @throws {Error} where the stream breaks off or falls silent
 * @yields {{event: string, data: string}}
 */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await nextPiece(reader);
      if (done) break;
      // A carriage return at the very end waits for its line feed, lest it count as two line ends.
      const text = rest + value;
      const whole = text.endsWith("\r") ? text.slice(0, -1) : text;
      const blocks = whole.replace(/\r\n?/g, "\n").split("\n\n");
      rest = blocks.pop() + text.slice(whole.length);
      for (const block of blocks) {
        const parsed = parseBlock(block);
        if (parsed) yield parsed;
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}
