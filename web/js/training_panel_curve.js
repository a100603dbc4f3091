// The loss curve of a run as SVG: raw faint, smoothed strong, on a linear or a logarithmic scale.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 1000; // of the drawing's own units; the page stretches them
const HEIGHT = 300;
const EDGE = 12;

function line(className) {
  const polyline = document.createElementNS(SVG, "polyline");
  polyline.setAttribute("class", className);
  polyline.setAttribute("fill", "none");
  polyline.setAttribute("vector-effect", "non-scaling-stroke");
  return polyline;
}

function short(value) {
  return Number(value.toPrecision(3)).toString();
}

export class Curve {
  constructor() {
    this.element = document.createElement("div");
    this.element.className = "pastiche-curve";
    this.element.setAttribute("role", "img");
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    this.raw = line("pastiche-raw");
    this.smooth = line("pastiche-smooth");
    svg.append(this.raw, this.smooth);
    this.most = document.createElement("span");
    this.most.className = "pastiche-most";
    this.least = document.createElement("span");
    this.least.className = "pastiche-least";
    this.element.append(svg, this.most, this.least);
  }

  // points: [step, loss, smoothed loss], in the order of their steps.
  draw(points, logarithmic) {
    const losses = points.map(([, loss]) => loss);
    const positive = losses.filter((loss) => loss > 0);
    const floor = positive.length ? positive.reduce((a, b) => Math.min(a, b)) : 1e-12;
    const scaled = (loss) => (logarithmic ? Math.log10(Math.max(loss, floor)) : loss);
    const least = losses.reduce((a, b) => Math.min(a, b), Infinity);
    const most = losses.reduce((a, b) => Math.max(a, b), -Infinity);
    const low = scaled(least);
    const range = scaled(most) - low || 1;
    const first = points.length ? points[0][0] : 0;
    const steps = points.length ? points[points.length - 1][0] - first || 1 : 1;
    const place = (step, loss) => {
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
