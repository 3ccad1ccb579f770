// `HeatText` shows text with each token coloured by its surprisal.

import { bits, decimals } from "./format.js";
import { fill, h } from "./dom.js";

const BOUNDS = [1, 2, 4, 6, 9];
const NAMES = ["below 1 bit", "1 to 2", "2 to 4", "4 to 6", "6 to 9", "9 and more"];
const MOST_ROWS = 500;

/** Returns a token's surprisal in bits; undefined for a token without context. */
export function surprisal(token) {
  return token.logProbability === undefined ? undefined : bits(-Number(token.logProbability));
}

/** Returns the explanation of the colours. */
export function heatLegend() {
  return h(
    "ul",
    { class: "legend heat-legend", "aria-label": "Colours by surprisal" },
    NAMES.map((name, i) => h("li", {}, h("span", { class: `swatch heat-${i}` }), name)),
    h("li", { class: "unit" }, "bits of surprisal"),
  );
}

function level(value) {
  const found = BOUNDS.findIndex((bound) => value < bound);
  return found < 0 ? BOUNDS.length : found;
}

/** A text that grows token by token, with a table of its tokens for those who cannot see colours. */
export class HeatText {
  /** @param {string} label what the text is */
  constructor(label) {
    this.text = h("div", { class: "heat sample", role: "group", "aria-label": label, tabindex: "0" });
    this.rows = h("tbody");
    this.note = h("p", { class: "hint" });
    this.table = h(
      "details",
      { on: { toggle: () => this.drawTable() } },
      h("summary", {}, "The tokens as a table"),
      this.note,
      h(
        "div",
        { class: "scroll tall", role: "region", "aria-label": `Tokens: ${label}`, tabindex: "0" },
        h("table", {}, h("thead", {}, tokenHead()), this.rows),
      ),
    );
    this.clear();
  }

  /** Begins again with nothing. */
  clear() {
    this.tokens = [];
    this.pending = "";
    this.queue = [];
    fill(this.text);
    this.drawTable();
  }

  /** Adds text that has no surprisal, such as a prompt. */
  addPlain(text, kind = "plain") {
    this.settle();
    if (text) this.text.append(h("span", { class: kind }, text));
  }

  /** Adds the next text and tokens, which may be ahead of the text or behind it. */
  add(text, tokens) {
    this.pending += text ?? "";
    this.queue.push(...(tokens ?? []));
    const added = document.createDocumentFragment();
    while (this.queue.length && this.pending) {
      const piece = this.next();
      if (piece === null) break;
      added.append(this.span(piece.text, piece.tokens));
    }
    this.text.append(added);
    if (this.table.open) this.drawTable();
  }

  /** Shows what is left: the text is complete. */
  settle() {
    if (this.pending) this.text.append(this.span(this.pending, this.queue));
    this.pending = "";
    this.queue = [];
    this.drawTable();
  }

  // A token stands for its own text, and for what precedes it and has no token with a text: a
  // space between words, or the bytes of a character.
  next() {
    let taken = 0;
    while (taken < this.queue.length) {
      const token = this.queue[taken];
      taken += 1;
      if (!token.text) continue;
      const at = this.pending.indexOf(token.text);
      if (at < 0 || at > 4 * taken) return this.unmatched(taken);
      if (at > 0 && taken > 1) return this.cut(taken - 1, at);
      return this.cut(taken, at + token.text.length);
    }
    return null;
  }

  // A token whose text does not appear, such as the unknown token, stands for what the next one
  // leaves; as long as no more is known it waits.
  unmatched(taken) {
    for (let ahead = taken; ahead < Math.min(this.queue.length, taken + 8); ahead += 1) {
      const text = this.queue[ahead].text;
      const at = text ? this.pending.indexOf(text) : -1;
      if (at > 0 && at <= 64) return this.cut(ahead, at);
    }
    return null;
  }

  cut(taken, length) {
    const text = this.pending.slice(0, length);
    this.pending = this.pending.slice(length);
    return { text, tokens: this.queue.splice(0, taken) };
  }

  span(text, tokens) {
    const values = tokens.map(surprisal).filter((value) => value !== undefined);
    this.tokens.push({ text, tokens });
    if (!values.length) return h("span", { class: "plain" }, text);
    const total = values.reduce((a, b) => a + b);
    const rank = tokens.at(-1).rank ? `, rank ${tokens.at(-1).rank}` : "";
    const title = `${decimals(total, 1)} bits${rank}`;
    return h("span", { class: `heat-${level(total)}`, title }, text);
  }

  drawTable() {
    if (!this.table.open) return;
    const shown = this.tokens.slice(-MOST_ROWS);
    this.note.textContent =
      shown.length < this.tokens.length ? `The last ${MOST_ROWS} of ${this.tokens.length} tokens.` : "";
    fill(this.rows, shown.map((piece) => tokenRow(piece.text, piece.tokens)));
  }
}

/** Returns the head of a table of tokens. */
export function tokenHead(place) {
  return h(
    "tr",
    {},
    h("th", { scope: "col", class: place && "wide-only" }, "Token"),
    place ? h("th", { scope: "col" }, place) : null,
    h("th", { scope: "col", class: "number" }, "Bits"),
    h("th", { scope: "col", class: "number" }, "Rank"),
    h("th", { scope: "col" }, "Likelier were"),
  );
}

/** Returns the row of one token, or of several that stand for one text. */
export function tokenRow(text, tokens, place) {
  const values = tokens.map(surprisal).filter((value) => value !== undefined);
  const total = values.length ? values.reduce((a, b) => a + b) : undefined;
  const last = tokens.at(-1) ?? {};
  const others = (last.alternatives ?? []).filter((other) => other.id !== last.id).slice(0, 3);
  return h(
    "tr",
    {},
    h("td", { class: place && "wide-only" }, h("code", {}, visible(text))),
    place ?? null,
    h("td", { class: "number" }, decimals(total, 2)),
    h("td", { class: "number" }, last.rank ? String(last.rank) : "–"),
    h("td", {}, others.flatMap((other, i) => [i ? " " : "", h("code", {}, visible(other.text))])),
  );
}

/** Returns a token's text with its white space made visible. */
export function visible(text) {
  return text ? whiteSpace(text) : "(end)";
}

/** Returns a text with its white space made visible. */
export function whiteSpace(text) {
  return text.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
}
