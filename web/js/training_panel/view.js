// @ts-check
// Show one training run: loss curve, time left, preview picture and buttons.
import { api } from "../../../../scripts/api.js";
import { createElement } from "../dom.js";
import { Curve } from "./curve.js";

/** @typedef {{filename: string, subfolder: string, type: string, step: number}} Picture */

/**
 * A run as the server describes it.
 *
 * @typedef {object} Run
 * @property {string} run id of the run
 * @property {string} name
 * @property {string} node_id
 * @property {string | null} workflow
 * @property {number} started seconds since the epoch
 * @property {"running" | "finished" | "stopped" | "broken"} state
 * @property {string} doing activity between two steps, such as saving; "" during steps
 * @property {number} step
 * @property {number} steps
 * @property {number | null} loss
 * @property {Record<string, number>} rows losses by kind of row
 * @property {number | null} learning_rate
 * @property {number | null} seconds_left
 * @property {Picture | null} picture
 * @property {string[]} notes
 * @property {string[]} pressed buttons that wait for the next step
 * @property {number} message number of the message
 * @property {import("./curve.js").Point[]} points
 */

/** @type {[action: string, label: string, title: string][]} */
const BUTTONS = [
  ["sample", "Sample now", "Draw a preview picture after this step"],
  ["save", "Save now", "Write what is learnt so far to files; training goes on"],
  ["stop", "Stop and keep", "End training after this step; the graph goes on with what is learnt"],
];
const ENDINGS = { finished: "Finished", stopped: "Stopped and kept", broken: "Broken off" };
const STYLE = `
.pastiche-panel { display: flex; flex-direction: column; gap: 4px; box-sizing: border-box;
  width: 100%; min-height: 260px; padding: 6px 8px; overflow: hidden; border-radius: 6px;
  background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd);
  font: 12px/1.35 sans-serif; }
.pastiche-panel button { padding: 4px 6px; border: 1px solid var(--border-color, #4e4e4e);
  border-radius: 5px; background: var(--comfy-menu-bg, #353535); color: inherit; font: inherit;
  cursor: pointer; }
.pastiche-panel button:hover:enabled { filter: brightness(1.25); }
.pastiche-panel button:focus-visible { outline: 2px solid #6ab0ff; outline-offset: 1px; }
.pastiche-panel button:disabled { opacity: 0.5; cursor: default; }
.pastiche-top { display: flex; align-items: center; gap: 8px; }
.pastiche-status { flex: 1; font-weight: 600; }
.pastiche-top button { padding: 1px 6px; }
.pastiche-middle { display: flex; flex: 1; gap: 8px; min-height: 110px; }
.pastiche-curve { position: relative; flex: 1; min-width: 0; border-radius: 4px;
  background: color-mix(in srgb, currentColor 6%, transparent); }
.pastiche-curve svg { position: absolute; left: 44px; top: 0; width: calc(100% - 46px);
  height: 100%; }
.pastiche-raw { stroke: #6ab0ff; stroke-opacity: 0.4; stroke-width: 1; }
.pastiche-smooth { stroke: #6ab0ff; stroke-width: 2; stroke-linejoin: round; }
.pastiche-most, .pastiche-least { position: absolute; left: 4px; font-size: 10px; opacity: 0.75; }
.pastiche-most { top: 1px; } .pastiche-least { bottom: 1px; }
.pastiche-picture { flex: 0 1 38%; min-width: 0; position: relative; }
.pastiche-picture img { position: absolute; inset: 0; width: 100%; height: 100%;
  object-fit: contain; }
.pastiche-buttons { display: flex; gap: 6px; } .pastiche-buttons button { flex: 1; }
.pastiche-notes { max-height: 48px; overflow-y: auto; overflow-wrap: anywhere; opacity: 0.85; }
.pastiche-panel [hidden] { display: none; }
`;

/** @param {number | null} seconds */
function timeLeft(seconds) {
  if (seconds == null) return "";
  if (seconds < 90) return `${Math.round(seconds)} s left`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min left`;
  return `${(seconds / 3600).toFixed(1)} h left`;
}

/** @param {Run} run */
function values({ loss, rows, learning_rate: rate }) {
  const parts = Object.entries({ loss, ...rows }).flatMap(([name, value]) =>
    value == null ? [] : [`${name} ${value.toPrecision(3)}`],
  );
  if (rate != null) parts.push(`rate ${Number(rate.toPrecision(3))}`);
  return parts.join(" · ");
}

export class View {
  constructor() {
    /** @type {Run | undefined} */
    this.run = undefined;
    if (!document.getElementById("pastiche-panel-style")) {
      const style = createElement("style", "", STYLE);
      style.id = "pastiche-panel-style";
      document.head.append(style);
    }
    this.element = createElement("div", "pastiche-panel");
    this.element.setAttribute("role", "group");
    this.element.setAttribute("aria-label", "Training run");
    this.logarithmic = false;
    this.status = createElement("span", "pastiche-status");
    this.scale = createElement("button", "", "log");
    this.scale.type = "button";
    this.scale.title = "Logarithmic scale";
    this.scale.setAttribute("aria-label", "Logarithmic scale of the loss");
    this.scale.addEventListener("click", () => this.switchScale());
    this.curve = new Curve();
    this.picture = createElement("a", "pastiche-picture");
    this.picture.target = "_blank";
    this.image = createElement("img", "");
    this.picture.append(this.image);
    this.values = createElement("div", "pastiche-values");
    this.buttons = Object.fromEntries(
      BUTTONS.map(([action, label, title]) => [action, this.createButton(action, label, title)]),
    );
    this.notes = createElement("div", "pastiche-notes");
    this.notes.setAttribute("role", "status");
    const top = createElement("div", "pastiche-top");
    top.append(this.status, this.scale);
    const middle = createElement("div", "pastiche-middle");
    middle.append(this.curve.element, this.picture);
    this.row = createElement("div", "pastiche-buttons");
    this.row.append(...Object.values(this.buttons));
    this.element.append(top, middle, this.values, this.row, this.notes);
  }

  /**
   * @param {string} action
   * @param {string} label
   * @param {string} title
   */
  createButton(action, label, title) {
    const button = createElement("button", "", label);
    button.type = "button";
    button.title = title;
    button.addEventListener("click", () => this.press(action));
    return button;
  }

  /** @param {string} action */
  async press(action) {
    if (!this.run) return;
    this.buttons[action].disabled = true;
    let problem = "";
    try {
      const path = `/pastiche/runs/${encodeURIComponent(this.run.run)}/${action}`;
      const answer = await api.fetchApi(path, { method: "POST" });
      if (!answer.ok) problem = (await answer.json()).error;
    } catch (error) {
      problem = `The server did not answer: ${error}`;
    }
    if (problem) {
      this.buttons[action].disabled = false;
      this.notes.textContent = problem;
    }
  }

  switchScale() {
    this.logarithmic = !this.logarithmic;
    if (this.run) this.show(this.run);
  }

  /** @param {Run} run */
  show(run) {
    this.run = run;
    const { state } = run;
    const running = state === "running";
    this.element.dataset.run = run.run;
    this.element.dataset.state = run.state;
    const step = `step ${run.step} of ${run.steps}`;
    const now = running ? run.doing || timeLeft(run.seconds_left) : "";
    this.status.textContent =
      state === "running"
        ? [step[0].toUpperCase() + step.slice(1), now].filter(Boolean).join(" · ")
        : `${ENDINGS[state]} at ${step}`;
    this.scale.setAttribute("aria-pressed", String(this.logarithmic));
    this.scale.textContent = this.logarithmic ? "linear" : "log";
    this.curve.draw(run.points, this.logarithmic);
    this.values.textContent = values(run);
    for (const [action, button] of Object.entries(this.buttons)) {
      button.disabled = run.pressed.includes(action);
    }
    this.row.hidden = !running;
    this.notes.textContent = run.notes.join("\n");
    this.notes.hidden = run.notes.length === 0;
    this.showPicture(run);
  }

  /** @param {Run} run */
  showPicture({ picture, started }) {
    this.picture.hidden = !picture;
    if (!picture) return;
    const { filename, subfolder, type, step } = picture;
    // A restarted run may write a picture of the same name, so the address contains its start.
    const query = new URLSearchParams({ filename, subfolder, type, run: String(started) });
    const address = api.apiURL(`/view?${query}`);
    if (this.image.getAttribute("src") === address) return;
    this.image.src = this.picture.href = address;
    this.image.alt = this.picture.title = `Preview at step ${step}`;
  }
}
