// `confirm` asks before something is lost, and `askToken` asks for a token.

import { h, freshId } from "./dom.js";

/**
 * Asks, and resolves to whether the answer is yes. The focus begins at the harmless button.
 */
export function confirm({ title, text, action }) {
  return new Promise((resolve) => {
    const heading = freshId("dialog");
    const dialog = h("dialog", { "aria-labelledby": heading });
    let answer = false;
    const choose = (value) => () => {
      answer = value;
      dialog.close();
    };
    dialog.append(
      h("h2", { id: heading }, title),
      h("p", {}, text),
      h(
        "div",
        { class: "buttons end" },
        h("button", { type: "button", class: "button", on: { click: choose(false) } }, "Keep it"),
        h("button", { type: "button", class: "button danger", on: { click: choose(true) } }, action),
      ),
    );
    opened(dialog, () => resolve(answer));
  });
}

/** Asks for a token until one is given; `refused` says why the last one was not accepted. */
export function askToken(refused, keep) {
  return new Promise((resolve, reject) => {
    const heading = freshId("dialog");
    const hint = freshId("hint");
    const input = h("input", {
      type: "password",
      id: freshId("field"),
      autocomplete: "off",
      spellcheck: "false",
      required: true,
      "aria-describedby": hint,
    });
    const dialog = h("dialog", { "aria-labelledby": heading });
    let given = false;
    const submit = (event) => {
      event.preventDefault();
      if (!input.value.trim()) return;
      given = true;
      keep(input.value.trim());
      dialog.close();
    };
    dialog.append(
      h("h2", { id: heading }, "This server asks who you are"),
      h(
        "form",
        { on: { submit } },
        refused ? h("p", { class: "error", role: "alert" }, "The token was not accepted: " + refused) : null,
        h(
          "div",
          { class: "field" },
          h("label", { for: input.id }, "Token"),
          input,
          h(
            "p",
            { class: "hint", id: hint },
            "Your server's administrator makes one with ",
            h("code", {}, "treadle-server token create"),
            ". It is kept until you close this tab.",
          ),
        ),
        h("div", { class: "buttons end" }, h("button", { class: "button primary" }, "Sign in")),
      ),
    );
    opened(dialog, () => {
      if (given) resolve();
      else {
        const error = new Error("The server asks for a token, and none was given.");
        reject(Object.assign(error, { code: "unauthenticated" }));
      }
    });
    input.focus();
  });
}

function opened(dialog, closed) {
  const before = document.activeElement;
  document.body.append(dialog);
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (before?.isConnected) before.focus();
    closed();
  });
  dialog.showModal();
}
