// @ts-check
// Draw the loss curve of a run as SVG: the raw losses faint, the smoothed ones strong, on a linear
// or a logarithmic scale.
import { createElement } from "../dom.js";

/** @typedef {[step: number, loss: number, smoothed: number]} Point */

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 1000; // units of the drawing, which the page stretches
const HEIGHT = 300;
const EDGE = 12;

/** @param {string} className */
function createLine(className) {
  const polyline = document.createElementNS(SVG, "polyline");
  polyline.setAttribute("class", className);
  polyline.setAttribute("fill", "none");
  polyline.setAttribute("vector-effect", "non-scaling-stroke");
  return polyline;
}

/** @param {number} value */
function short(value) {
  return Number(value.toPrecision(3)).toString();
}

export class Curve {
  constructor() {
    this.element = createElement("div", "pastiche-curve");
    this.element.setAttribute("role", "img");
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    this.raw = createLine("pastiche-raw");
    this.smooth = createLine("pastiche-smooth");
    svg.append(this.raw, this.smooth);
    this.most = createElement("span", "pastiche-most");
    this.least = createElement("span", "pastiche-least");
    this.element.append(svg, this.most, this.least);
  }

  /**
   * @param {Point[]} points in the order of their steps
   * @param {boolean} logarithmic
   */
  draw(points, logarithmic) {
    const losses = points.map(([, loss]) => loss);
    const positive = losses.filter((loss) => loss > 0);
    const floor = positive.length ? positive.reduce((a, b) => Math.min(a, b)) : 1e-12;
    const scaled = (/** @type {number} */ loss) => (logarithmic ? Math.log10(Math.max(loss, floor)) : loss);
    const least = losses.reduce((a, b) => Math.min(a, b), Infinity);
    const most = losses.reduce((a, b) => Math.max(a, b), -Infinity);
    const low = scaled(least);
    const range = scaled(most) - low || 1;
    const first = points.length ? points[0][0] : 0;
    const steps = points.length ? points[points.length - 1][0] - first || 1 : 1;
    const place = (/** @type {number} */ step, /** @type {number} */ loss) => {
      const x = ((step - first) / steps) * WIDTH;
      const y = HEIGHT - EDGE - ((scaled(loss) - low) / range) * (HEIGHT - 2 * EDGE);
      return `${x.toFixed(1)},${y.toFixed(1)}`;
    };
    this.raw.setAttribute("points", points.map(([step, loss]) => place(step, loss)).join(" "));
    this.smooth.setAttribute(
      "points",
      points.map(([step, , smooth]) => place(step, smooth)).join(" "),
    );
    this.most.textContent = points.length ? short(most) : "";
    this.least.textContent = points.length ? short(least) : "";
    this.element.setAttribute(
      "aria-label",
      points.length
        ? `Loss from step ${first} to ${first + steps}, between ${short(least)} and ${short(most)}`
        : "Loss curve, empty so far",
    );
  }
}
