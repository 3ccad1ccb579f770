// `showWatcher` scores the lines of a log, and marks those that the model did not expect.

import { decimals, plural, precisionWord } from "./format.js";
import { announce, fill, h, setText, spoken } from "./dom.js";
import { button, checkbox, field, numberInput, numberOf, PRECISION_HINT, precisionSelect, setFault } from "./forms.js";
import { errorBox, isAborted } from "./errors.js";
import { heatLegend, HeatText } from "./heat.js";
import { ModelSelect, noModels } from "./model_select.js";
import { stream } from "./connect.js";

const MOST_LINES = 2000;

/** Shows the view. */
export async function showWatcher({ body, below, query, signal }) {
  setText(below, "Paste lines as they come. A line is marked if one of its tokens is not among the likeliest.");
  const models = new ModelSelect();
  if (!(await models.load(query, signal))) {
    fill(body, noModels());
    return;
  }
  new Watcher(models, signal).show(body);
}

class Watcher {
  constructor(models, signal) {
    Object.assign(this, { models, signal });
    this.lines = h("textarea", { rows: "6", spellcheck: "false", wrap: "off" });
    this.top = numberInput({ min: "1", step: "1", value: "4" });
    this.precision = precisionSelect();
    this.only = checkbox("Show marked lines only");
    this.watch = h("button", { class: "button primary" }, "Watch these lines");
    this.again = button("Start over", () => this.reset());
    this.fault = h("div");
    this.summary = h("p", { class: "hint", role: "status" });
    this.rows = h("tbody");
    this.results = h(
      "section",
      { class: "card flush" },
      h("h2", {}, "Lines"),
      h("div", { class: "padded" }, heatLegend(), this.summary, this.only.element),
      h(
        "div",
        { class: "scroll", role: "region", "aria-label": "Scored lines", tabindex: "0" },
        h(
          "table",
          { class: "list log" },
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              h("th", { scope: "col", class: "number" }, "Line"),
              h("th", { scope: "col" }, spoken("Marked")),
              h("th", { scope: "col", class: "number wide-only" }, "Bits"),
              h("th", { scope: "col", class: "number" }, "Rank"),
              h("th", { scope: "col" }, "Text"),
            ),
          ),
          this.rows,
        ),
      ),
    );
    this.only.input.addEventListener("change", () => this.filter());
    this.models.select.addEventListener("change", () => this.reset());
  }

  show(body) {
    const submit = (event) => {
      event.preventDefault();
      this.run();
    };
    fill(
      body,
      h(
        "form",
        { class: "card form", on: { submit }, novalidate: true },
        h("div", { class: "wide" }, this.models.element),
        field("Lines", this.lines, { wide: true, hint: "What you paste next continues where these lines end." }),
        field("A token may have rank up to", this.top, { hint: "4 to 8 suits events of a log. A model of characters needs more." }),
        field("Precision", this.precision, { hint: PRECISION_HINT }),
        h("div", { class: "buttons wide" }, this.watch, this.again),
      ),
      this.fault,
      this.results,
    );
    this.reset();
  }

  reset() {
    this.state = "";
    this.number = 0;
    this.marked = 0;
    this.skipped = 0;
    fill(this.rows);
    fill(this.fault);
    this.results.hidden = true;
  }

  async run() {
    const lines = this.lines.value.split("\n");
    if (lines.at(-1) === "") lines.pop();
    const top = numberOf(this.top);
    if (!lines.length) {
      setFault(this.lines, "Paste some lines first.");
      this.lines.focus();
      return;
    }
    if (lines.length > MOST_LINES) {
      setFault(this.lines, `The page takes ${MOST_LINES} lines at once; treadle score-stream takes any number.`);
      this.lines.focus();
      return;
    }
    if (!(top >= 1)) {
      setFault(this.top, "Give a rank of 1 or more.");
      this.top.focus();
      return;
    }
    this.watch.disabled = true;
    fill(this.fault);
    const items = this.models.isLines();
    const spec = {
      ...this.models.fields(),
      state: items ? "" : this.state,
      inferencePrecision: this.precision.value,
      logProbabilities: true,
      ranks: true,
      returnState: !items,
      onError: "ON_ERROR_SKIP",
    };
    const pieces = lines.map((text) => ({ piece: items ? { text, end: true } : { text: `${text}\n` } }));
    let at = 0;
    try {
      for await (const { piece, result } of stream("ScoreStream", [{ spec }, ...pieces], this.signal)) {
        if (piece) this.add(lines[at++], piece, top);
        if (result) this.finish(result);
      }
      this.lines.value = "";
      announce(this.summary.textContent);
    } catch (error) {
      if (!isAborted(error)) fill(this.fault, errorBox(error));
    } finally {
      this.watch.disabled = false;
    }
  }

  finish(result) {
    this.state = result.state ?? "";
    const precision = precisionWord(result.inferencePrecision);
    if (precision) setText(this.summary, `${this.summary.textContent} Precision ${precision}.`);
  }

  add(text, piece, top) {
    this.number += 1;
    const tokens = piece.tokens ?? [];
    const worst = tokens.reduce((most, token) => Math.max(most, token.rank ?? 0), 0);
    const marked = worst > top;
    const heat = new HeatText("Line");
    heat.add(text, tokens);
    heat.settle();
    const shown = piece.error ? h("span", { class: "fault" }, `${text} (skipped: ${piece.error.message})`) : h("code", {}, ...heat.text.childNodes);
    // The end of an item is a token too, and has no text.
    const end = tokens.at(-1);
    const early = !piece.error && end && !end.text && (end.rank ?? 0) > top;
    const bits = Math.max(0, -Number(piece.totalLogProbability ?? 0)) / Math.LN2;
    this.marked += marked ? 1 : 0;
    this.skipped += piece.error ? 1 : 0;
    this.rows.append(
      h(
        "tr",
        { class: marked ? "marked" : "" },
        h("td", { class: "number" }, String(this.number)),
        h("td", { class: "mark" }, marked ? [h("span", { "aria-hidden": "true" }, "!"), spoken("surprising")] : null),
        h("td", { class: "number wide-only" }, decimals(bits, 1)),
        h("td", { class: "number" }, worst ? String(worst) : "–"),
        h("td", { class: "line" }, shown, early ? h("span", { class: "small" }, " ends unexpectedly") : null),
      ),
    );
    this.results.hidden = false;
    const skipped = this.skipped ? `, ${this.skipped} skipped` : "";
    setText(this.summary, `${plural(this.number, "line")}, ${this.marked} marked${skipped}.`);
    this.filter();
  }

  filter() {
    this.rows.classList.toggle("only-marked", this.only.input.checked);
  }
}
