// The list of conversations that this browser keeps.

import { byId, h, icon } from "./dom.js";
import { revive } from "./conversation.js";

const when = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

/** Wire the History button and its dialog to the chat. */
export function setUpHistory(chat) {
  const dialog = byId("history-dialog");
  const close = dialog.querySelector("[data-close]");
  close.append(icon("close"));
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // a click beside it
  });

  const entry = (conversation) => {
    const title = conversation.turns[0].question;
    const open = () => {
      dialog.close();
      if (conversation.id !== chat.conversation.id) chat.open(revive(conversation));
    };
    const forget = () => {
      chat.archive.forget(conversation.id);
      if (conversation.id === chat.conversation.id) chat.startAfresh();
      fill();
      close.focus();
    };
    return h(
      "li",
      {},
      h("button", { type: "button", class: "open", onclick: open }, h("span", {}, title), h("small", {}, when.format(conversation.updatedAt))),
      h("button", { type: "button", class: "quiet round", "aria-label": `Forget: ${title}`, onclick: forget }, icon("trash")),
    );
  };
  const fill = () => {
    const kept = chat.archive.all();
    const items = kept.length ? kept.map(entry) : [h("li", { class: "empty" }, "Nothing yet. Conversations stay in this browser only.")];
    byId("history-list").replaceChildren(...items);
  };
  byId("history").addEventListener("click", () => {
    fill();
    dialog.showModal();
  });
}
