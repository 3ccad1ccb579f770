// `CurveChart` draws the losses of a run as SVG, with a table of the same figures.

import { compact, count, decimals } from "./format.js";
import { fill, h, setText, svg } from "./dom.js";

const HEIGHT = 280;
const LEFT = 44;
const RIGHT = 12;
const TOP = 10;
const BOTTOM = 40;
const MOST_ROWS = 50;

/** A chart that follows its curve. */
export class CurveChart {
  constructor(curve) {
    this.curve = curve;
    this.drawing = svg("svg", { class: "chart", role: "img", "aria-label": "Loss by step", height: HEIGHT });
    this.holder = h("div", { class: "chart-holder" }, this.drawing);
    this.legend = h("ul", { class: "legend", "aria-label": "Lines of the chart" });
    this.rows = h("tbody");
    this.element = h(
      "figure",
      {},
      this.legend,
      this.holder,
      h(
        "details",
        {},
        h("summary", {}, "The curve as a table"),
        h(
          "div",
          { class: "scroll", role: "region", "aria-label": "Losses by step", tabindex: "0" },
          h(
            "table",
            {},
            h(
              "thead",
              {},
              h(
                "tr",
                {},
                h("th", { scope: "col", class: "number" }, "Step"),
                h("th", { scope: "col", class: "number" }, "Training"),
                h("th", { scope: "col", class: "number" }, "Validation"),
              ),
            ),
            this.rows,
          ),
        ),
      ),
    );
    this.width = 0;
    this.waiting = 0;
    this.observer = new ResizeObserver(() => {
      const width = Math.floor(this.holder.clientWidth);
      if (width !== this.width) this.draw();
    });
    this.observer.observe(this.holder);
  }

  /** Draws soon; many calls at once draw once. */
  changed() {
    if (this.waiting) return;
    this.waiting = setTimeout(() => {
      this.waiting = 0;
      this.draw();
    }, 100);
  }

  /** Ends what the chart has begun. */
  close() {
    clearTimeout(this.waiting);
    this.observer.disconnect();
  }

  draw() {
    this.width = Math.floor(this.holder.clientWidth);
    if (this.width < LEFT + RIGHT + 50) return;
    const { train, valid, baseline } = this.curve;
    this.drawLegend();
    const all = [...train, ...valid].map((point) => point.loss);
    if (baseline !== null) all.push(baseline);
    this.drawing.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.drawing.setAttribute("width", this.width);
    this.drawing.setAttribute("aria-label", this.summary());
    if (!train.length && !valid.length) {
      const text = "The curve begins with the first report.";
      fill(this.drawing, svg("text", { x: this.width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, text));
      return;
    }
    const losses = ticks(all.reduce((a, b) => Math.min(a, b)), all.reduce((a, b) => Math.max(a, b)), 5);
    const last = Math.max(train.at(-1)?.step ?? 0, valid.at(-1)?.step ?? 0, 1);
    const steps = ticks(0, last, Math.max(2, Math.floor(this.width / 80)));
    const x = (step) => LEFT + (step / last) * (this.width - LEFT - RIGHT);
    const low = losses[0];
    const span = losses.at(-1) - low || 1;
    const y = (loss) => TOP + (1 - (loss - low) / span) * (HEIGHT - TOP - BOTTOM);
    const line = (kind, points) => {
      if (!points.length) return null;
      const corners = points.map((point) => `${x(point.step).toFixed(1)},${y(point.loss).toFixed(1)}`);
      return svg("polyline", { class: kind, points: corners.join(" ") });
    };
    const right = this.width - RIGHT;
    const bottom = HEIGHT - BOTTOM;
    const places = tickPlaces(losses);
    fill(
      this.drawing,
      losses.map((loss) => [
        svg("line", { class: "grid", x1: LEFT, x2: right, y1: y(loss), y2: y(loss) }),
        svg("text", { x: LEFT - 8, y: y(loss) + 4, "text-anchor": "end" }, loss.toFixed(places)),
      ]),
      steps
        .filter((step) => step <= last)
        .map((step) => [
          svg("line", { class: "axis", x1: x(step), x2: x(step), y1: bottom, y2: bottom + 4 }),
          svg("text", { x: x(step), y: bottom + 18, "text-anchor": "middle" }, compact(step)),
        ]),
      svg("line", { class: "axis", x1: LEFT, x2: right, y1: bottom, y2: bottom }),
      svg("text", { x: (LEFT + right) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "step"),
      baseline === null
        ? null
        : svg("line", { class: "baseline", x1: LEFT, x2: right, y1: y(baseline), y2: y(baseline) }),
      line("train", thinned(train, this.width)),
      line("valid", valid),
      valid.map((point) => svg("circle", { class: "dot", cx: x(point.step), cy: y(point.loss), r: 3 })),
    );
    this.drawTable();
  }

  drawLegend() {
    const { train, valid, baseline, order } = this.curve;
    const item = (kind, name, loss) =>
      h("li", {}, h("span", { class: `key ${kind}` }), `${name} `, h("strong", {}, decimals(loss, 3)));
    fill(
      this.legend,
      item("train", "Training", train.at(-1)?.loss),
      item("valid", "Validation", valid.at(-1)?.loss),
      baseline === null ? null : item("baseline", `${order}-gram model`, baseline),
      h("li", { class: "unit" }, "nats per token"),
    );
  }

  drawTable() {
    const rows = this.curve.valid.length ? this.curve.valid : this.curve.train;
    const shown = rows.slice(-MOST_ROWS);
    if (this.lastRow === `${rows.length} ${shown.at(-1)?.step}`) return;
    this.lastRow = `${rows.length} ${shown.at(-1)?.step}`;
    let at = 0;
    fill(
      this.rows,
      shown.map((point) => {
        while (at + 1 < this.curve.train.length && this.curve.train[at + 1].step <= point.step) at += 1;
        const valid = this.curve.valid.length ? point.loss : undefined;
        return h(
          "tr",
          {},
          h("td", { class: "number" }, count(point.step)),
          h("td", { class: "number" }, decimals(this.curve.train[at]?.loss, 4)),
          h("td", { class: "number" }, decimals(valid, 4)),
        );
      }),
    );
  }

  summary() {
    const { train, valid, baseline, order } = this.curve;
    if (!train.length && !valid.length) return "Loss by step: no figures yet";
    const parts = [`Loss by step, in nats per token. Training ${decimals(train.at(-1)?.loss)}`];
    if (valid.length) {
      parts.push(`validation ${decimals(valid.at(-1).loss)}, best ${decimals(this.curve.best().loss)}`);
    }
    if (baseline !== null) parts.push(`${order}-gram model ${decimals(baseline)}`);
    return `${parts.join("; ")}; at step ${count(train.at(-1)?.step ?? valid.at(-1)?.step)}.`;
  }
}

/** Returns round numbers from below `low` to above `high`. */
export function ticks(low, high, most) {
  const span = high - low || Math.abs(high) || 1;
  const raw = span / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
  const first = Math.floor(low / step + 1e-9);
  const end = Math.max(first + 1, Math.ceil(high / step - 1e-9));
  return Array.from({ length: end - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function tickPlaces(values) {
  const step = values[1] - values[0];
  return Math.max(0, Math.min(6, -Math.floor(Math.log10(step) + 1e-9)));
}

function thinned(points, most) {
  const every = Math.ceil(points.length / most);
  return every < 2 ? points : points.filter((_, i) => i % every === 0 || i === points.length - 1);
}
