// `showModels` lists the models.

import { bytes, compact, count, decimals, time, word } from "./format.js";
import { fill, h, setText } from "./dom.js";
import { allModels, noModels } from "./model_select.js";
import { linkButton } from "./forms.js";

/** Shows the view. */
export async function showModels({ body, below, tools, signal }) {
  setText(below, "The newest version of each model.");
  fill(tools, linkButton("Train a model", "#/train", "primary"));
  const models = await allModels(signal);
  if (!models.length) {
    fill(body, noModels());
    return;
  }
  fill(
    body,
    h(
      "div",
      { class: "card flush scroll", role: "region", "aria-label": "Models", tabindex: "0" },
      h(
        "table",
        { class: "list" },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", { scope: "col" }, "Model"),
            h("th", { scope: "col", class: "number" }, "Version"),
            h("th", { scope: "col", class: "wide-only" }, "Aliases"),
            h("th", { scope: "col" }, "Network"),
            h("th", { scope: "col", class: "number wide-only" }, "Parameters"),
            h("th", { scope: "col", class: "number wide-only" }, "Validation loss"),
            h("th", { scope: "col", class: "number wide-only" }, "Size"),
            h("th", { scope: "col", class: "wide-only" }, "Stored"),
          ),
        ),
        h("tbody", {}, models.map(row)),
      ),
    ),
  );
}

function row(model) {
  const link = h("a", { class: "strong", href: `#/model/${encodeURIComponent(model.name)}` }, model.name);
  if (model.damage) {
    return h("tr", {}, h("th", { scope: "row" }, link), h("td", { class: "number" }, count(model.version)), h("td", { colspan: "6" }, model.damage));
  }
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, link, h("span", { class: "small" }, word(model.tokenizer?.kind, "TOKENIZER_KIND_"))),
    h("td", { class: "number" }, count(model.version)),
    h("td", { class: "wide-only" }, aliasChips(model)),
    h("td", {}, networkText(model)),
    h("td", { class: "number wide-only" }, compact(model.parameterCount)),
    h("td", { class: "number wide-only" }, decimals(model.training?.validLoss)),
    h("td", { class: "number wide-only" }, bytes(model.sizeBytes)),
    h("td", { class: "wide-only" }, time(model.createTime)),
  );
}

/** Returns the aliases of a version as chips. */
export function aliasChips(model) {
  const aliases = model.aliases ?? [];
  const more = Number(model.aliasCount ?? aliases.length) - aliases.length;
  return [
    aliases.map((alias) => [h("span", { class: "chip" }, alias), " "]),
    more > 0 ? `and ${count(more)} more` : null,
    aliases.length ? null : "–",
  ];
}

/** Returns the shape of a network in few characters: LSTM 2 × 128. */
export function networkText(model) {
  const network = model.network ?? {};
  const cell = word(network.cell, "CELL_").toUpperCase() || "LSTM";
  return `${cell} ${network.layers ?? 1} × ${network.hiddenSize ?? "?"}`;
}
