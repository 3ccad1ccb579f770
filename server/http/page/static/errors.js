// `errorBox` shows an error in words.

import { h } from "./dom.js";

/** Returns an error as a sentence. */
export function sentence(error) {
  if (error.code === "permission_denied") return `You may not do this: ${ended(error.message)}`;
  if (error.code === "unimplemented") return "The server does not offer this call.";
  if (error.code === "resource_exhausted") return `The server is busy: ${ended(error.message)}`;
  return capital(ended(error.message || String(error)));
}

function ended(text) {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

function capital(text) {
  // Names of fields and models keep their case.
  return /^[a-z]+ /.test(text) ? text[0].toUpperCase() + text.slice(1) : text;
}

/** Returns a box with an error, and a button that tries again if there is something to try. */
export function errorBox(error, retry) {
  const button = retry && h("button", { type: "button", class: "button", on: { click: retry } }, "Try again");
  return h("div", { class: "error", role: "alert" }, h("p", {}, sentence(error)), button ?? null);
}

/** Returns whether an error only says that its view was left. */
export function isAborted(error) {
  return error.name === "AbortError";
}
