// `field`, `numberField` and their neighbours make the parts of forms.

import { freshId, h } from "./dom.js";

/** Returns a labelled field around an input. */
export function field(label, input, { hint, wide } = {}) {
  input.id ||= freshId("field");
  const note = hint ? h("p", { class: "hint", id: `${input.id}-hint` }, hint) : null;
  const fault = h("p", { class: "fault", id: `${input.id}-fault` });
  input.setAttribute("aria-describedby", `${note ? note.id : ""} ${fault.id}`.trim());
  input.addEventListener("input", () => setFault(input, ""));
  return h("div", { class: wide ? "field wide" : "field" }, h("label", { for: input.id }, label), input, note, fault);
}

/** Marks what is wrong with an input; empty: nothing. */
export function setFault(input, text) {
  const fault = document.getElementById(`${input.id}-fault`);
  if (fault) fault.textContent = text;
  if (text) input.setAttribute("aria-invalid", "true");
  else input.removeAttribute("aria-invalid");
}

/** Returns an input for a number; empty means that the server's default holds. */
export function numberInput(properties) {
  return h("input", { type: "number", inputmode: "decimal", step: "any", ...properties });
}

/** Returns a select with options of [value, label]. */
export function select(options, chosen) {
  const element = h(
    "select",
    {},
    options.map(([value, label]) => h("option", { value }, label)),
  );
  if (chosen !== undefined) element.value = chosen;
  return element;
}

/** Returns a select of the number format in which a model computes. */
export function precisionSelect() {
  return select(
    [
      ["INFERENCE_PRECISION_UNSPECIFIED", "default"],
      ["INFERENCE_PRECISION_FP32", "fp32"],
      ["INFERENCE_PRECISION_INT8", "int8"],
    ],
    "INFERENCE_PRECISION_UNSPECIFIED",
  );
}

/** What the precisions mean. */
export const PRECISION_HINT = "int8 is faster and less exact.";

/** Returns a checkbox with its label. */
export function checkbox(label, checked = false) {
  const input = h("input", { type: "checkbox", id: freshId("field") });
  input.checked = checked;
  return { input, element: h("div", { class: "check" }, input, h("label", { for: input.id }, label)) };
}

/** Returns the number in an input, or undefined if it is empty. */
export function numberOf(input) {
  return input.value.trim() === "" ? undefined : Number(input.value);
}

/** Returns a button. */
export function button(label, click, kind = "") {
  return h("button", { type: "button", class: `button ${kind}`.trim(), on: { click } }, label);
}

/** Returns a link that looks like a button. */
export function linkButton(label, href, kind = "") {
  return h("a", { class: `button ${kind}`.trim(), href }, label);
}

/** Returns pairs of a name and a figure. */
export function stats(pairs, kind = "") {
  return h(
    "dl",
    { class: `stats ${kind}`.trim() },
    pairs.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );
}
