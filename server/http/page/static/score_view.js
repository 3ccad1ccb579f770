// `showScore` shows how well a model predicts a text, and where it does not.

import { count, decimals, plural, precisionWord } from "./format.js";
import { announce, fill, h, setText } from "./dom.js";
import { field, PRECISION_HINT, precisionSelect, stats } from "./forms.js";
import { heatLegend, HeatText, surprisal, tokenHead, tokenRow, whiteSpace } from "./heat.js";
import { ModelSelect, noModels } from "./model_select.js";
import { errorBox, isAborted } from "./errors.js";
import { unary } from "./connect.js";

const MOST = 20000;
const WORST = 12;
const AROUND = 12;

/** Shows the view. */
export async function showScore({ body, below, query, signal }) {
  setText(below, "See how surprising a model finds each token of a text.");
  const models = new ModelSelect();
  if (!(await models.load(query, signal))) {
    fill(body, noModels());
    return;
  }
  const text = h("textarea", { rows: "8", spellcheck: "false", required: true, maxlength: String(MOST) });
  const context = h("textarea", { rows: "2", spellcheck: "false" });
  const precision = precisionSelect();
  const go = h("button", { class: "button primary" }, "Score");
  const fault = h("div");
  const results = h("div", { class: "view" });
  const submit = async (event) => {
    event.preventDefault();
    fill(fault);
    go.disabled = true;
    try {
      const request = {
        ...models.fields(),
        texts: [text.value],
        context: context.value,
        inferencePrecision: precision.value,
        logProbabilities: true,
        ranks: true,
        topLogProbabilities: 4,
      };
      const reply = await unary("Score", request, signal);
      fill(results, shown(reply.scores[0], text.value, models.model()?.tokenizer?.lowerCase));
      announce("The score is below.");
    } catch (error) {
      if (!isAborted(error)) fill(fault, errorBox(error));
    } finally {
      go.disabled = false;
    }
  };
  fill(
    body,
    h(
      "form",
      { class: "card form", on: { submit } },
      h("div", { class: "wide" }, models.element),
      field("Text", text, { wide: true, hint: `Up to ${count(MOST)} characters; treadle score takes more.` }),
      field("Context", context, { wide: true, hint: "Comes before the text and is not scored. It may be empty." }),
      field("Precision", precision, { hint: PRECISION_HINT }),
      h("div", { class: "buttons wide" }, go),
    ),
    fault,
    results,
  );
}

function shown(score, source, lowerCase) {
  const text = lowerCase ? source.toLowerCase() : source;
  const heat = new HeatText("Scored text");
  // Nothing predicts the first token of a running text.
  const symbols = [...text];
  const free = Number(score.unknownCount ?? 0) ? 0 : Math.max(0, symbols.length - Number(score.characterCount ?? 0));
  heat.addPlain(symbols.slice(0, free).join(""));
  heat.add(symbols.slice(free).join(""), score.tokens);
  heat.settle();
  const worst = heat.tokens
    .map((piece, at) => ({ ...piece, place: place(heat.tokens, at), bits: piece.tokens.reduce((sum, token) => sum + (surprisal(token) ?? 0), 0) }))
    .filter((piece) => piece.tokens.length)
    .sort((a, b) => b.bits - a.bits)
    .slice(0, WORST);
  const unknown = Number(score.unknownCount ?? 0);
  return [
    h(
      "section",
      { class: "card" },
      h("h2", {}, "Score"),
      stats([
        ["Bits per character", decimals(score.bitsPerCharacter)],
        ["Perplexity", decimals(score.perplexity, 2)],
        ["Nats per token", decimals(score.meanNats)],
        ["Log-probability", `${decimals(score.totalLogProbability, 2)} nats`],
        ["Tokens", count(score.tokenCount)],
        ["Precision", precisionWord(score.inferencePrecision) || "–"],
      ]),
      unknown ? h("p", { class: "reason" }, `${plural(unknown, "token")} not in the model's vocabulary.`) : null,
    ),
    h("section", { class: "card" }, h("h2", {}, "Heat map"), heatLegend(), heat.text, heat.table),
    h(
      "section",
      { class: "card flush" },
      h("h2", {}, "Most surprising tokens"),
      h(
        "div",
        { class: "scroll", role: "region", "aria-label": "Most surprising tokens", tabindex: "0" },
        h("table", { class: "list" }, h("thead", {}, tokenHead("In the text")), h("tbody", {}, worst.map((piece) => tokenRow(piece.text, piece.tokens, piece.place)))),
      ),
    ),
  ];
}

// The text around a token, on one line.
function place(pieces, at) {
  const around = (from, to) => whiteSpace(pieces.slice(Math.max(0, from), to).map((piece) => piece.text).join(""));
  const before = around(at - AROUND, at).slice(-AROUND);
  const after = around(at + 1, at + AROUND).slice(0, AROUND);
  return h("td", {}, h("code", {}, before, h("mark", {}, whiteSpace(pieces[at].text)), after));
}
