// @ts-check
// Fields for the name, colour and numbers of the selected region.
import { createElement } from "../dom.js";
import { edgesOf, withEdges } from "./boxes.js";
import { colourOf } from "./model.js";

/** @typedef {"x" | "y" | "width" | "height"} PixelKey */
/** @typedef {"feather" | "weight" | "blend" | "start_percent" | "end_percent"} ShareKey */

/** @type {[key: PixelKey, label: string, title: string, side: "width" | "height"][]} */
const PIXELS = [
  ["x", "X", "Left edge in pixels", "width"],
  ["y", "Y", "Upper edge in pixels", "height"],
  ["width", "W", "Width in pixels", "width"],
  ["height", "H", "Height in pixels", "height"],
];
/** @type {[key: ShareKey, label: string, title: string, most: number][]} */
const SHARES = [
  ["feather", "Feather", "Width of the soft edge, as a share of the picture's shorter side", 1],
  ["weight", "Weight", "Weight against other regions where they overlap", 100],
  ["blend", "Blend", "Share of the global prompt inside the region", 1],
  ["start_percent", "Start", "Start of the region's effect, as a share of the sampling run", 1],
  ["end_percent", "End", "End of the region's effect, as a share of the sampling run", 1],
];

const tidy = (/** @type {number} */ pixels) => String(Math.round(pixels * 10) / 10);

export class Fields {
  /** @param {import("./editor.js").Editor} editor */
  constructor(editor) {
    this.editor = editor;
    this.element = createElement("div", "pastiche-fields");
    const first = this.addRow("pastiche-field-row");
    this.name = this.addField(first, "Name", "Name of the region, for its Region Prompt", "text");
    this.colour = this.addField(first, "Colour", "Colour of the region in the editor", "color");
    this.name.addEventListener("change", () => this.rename());
    this.colour.addEventListener("change", () => this.apply({ colour: this.colour.value }));
    const second = this.addRow("pastiche-field-row");
    this.pixels = PIXELS.map(([key, label, title, side]) => {
      const input = this.addNumber(second, label, title, 1);
      input.addEventListener("change", () => this.applyPixels(key, side, input));
      return { key, side, input };
    });
    const third = this.addRow("pastiche-field-row pastiche-shares");
    this.shares = SHARES.map(([key, label, title, most]) => {
      const input = this.addNumber(third, label, title, 0.05);
      input.addEventListener("change", () => this.applyShare(key, label, most, input));
      return { key, input };
    });
  }

  /** @param {string} className */
  addRow(className) {
    const row = createElement("div", className);
    this.element.append(row);
    return row;
  }

  /**
   * @param {HTMLElement} row
   * @param {string} label
   * @param {string} title
   * @param {string} type
   */
  addField(row, label, title, type) {
    const frame = createElement("label", `pastiche-field pastiche-field-${type}`, label);
    const input = createElement("input");
    input.type = type;
    input.title = title;
    input.setAttribute("aria-label", title);
    frame.append(input);
    row.append(frame);
    // Keys that are typed in a field must not reach the graph's keyboard shortcuts.
    input.addEventListener("keydown", (event) => {
      if (!event.ctrlKey && !event.metaKey) event.stopPropagation();
    });
    return input;
  }

  /**
   * @param {HTMLElement} row
   * @param {string} label
   * @param {string} title
   * @param {number} step
   */
  addNumber(row, label, title, step) {
    const input = this.addField(row, label, title, "number");
    input.step = String(step);
    return input;
  }

  /** @param {Partial<import("./text.js").Region>} fields */
  apply(fields) {
    this.editor.model.change(fields);
    this.editor.redraw();
  }

  /** @param {string} sentence */
  refuse(sentence) {
    this.editor.redraw();
    this.editor.showRefusal(sentence);
  }

  rename() {
    const { model } = this.editor;
    const name = this.name.value.trim();
    const taken = model.regions.some((one, i) => one.name === name && i !== model.selected);
    if (!name) this.refuse("A region must have a name, got none; type one");
    else if (taken) this.refuse(`The regions must have each name once, got "${name}" twice`);
    else this.apply({ name });
  }

  /**
   * @param {PixelKey} key
   * @param {"width" | "height"} side
   * @param {HTMLInputElement} input
   */
  applyPixels(key, side, input) {
    const { model, size } = this.editor;
    const { region } = model;
    if (!region) return;
    const share = input.valueAsNumber / size[side];
    const box = edgesOf(region);
    const start = key === side ? (side === "width" ? box.left : box.top) : share;
    const end = start + (key === side ? share : region[side]);
    const edges =
      side === "width" ? { ...box, left: start, right: end } : { ...box, top: start, bottom: end };
    const inside = start >= 0 && end > start && end <= 1 + 1e-6;
    if (inside) this.apply(withEdges(region, edges));
    else {
      const got = `got ${input.value || "nothing"}`;
      this.refuse(`The region must lie inside the picture, ${tidy(size[side])} pixels, ${got}`);
    }
  }

  /**
   * @param {ShareKey} key
   * @param {string} label
   * @param {number} most
   * @param {HTMLInputElement} input
   */
  applyShare(key, label, most, input) {
    const { region } = this.editor.model;
    if (!region) return;
    const value = input.valueAsNumber;
    const changed = { ...region, [key]: value };
    const { start_percent: start, end_percent: end } = changed;
    const got = `got ${input.value || "nothing"}`;
    if (!(value >= 0 && value <= most)) {
      this.refuse(`${label} must be a number from 0 to ${most}, ${got}`);
    } else if (end <= start) this.refuse(`The end must be above the start, ${got}`);
    else this.apply({ [key]: value });
  }

  // Without a selected region the fields stay visible but empty, so that the picture doesn't move.
  draw() {
    const { model, size, fixed, asText, stage } = this.editor;
    const { region } = model;
    this.element.hidden = asText;
    this.show(this.name, region?.name ?? "");
    this.show(this.colour, region ? colourOf(region, model.selected).toLowerCase() : "#808080");
    for (const { key, side, input } of this.pixels) {
      this.show(input, region ? tidy(region[key] * size[side]) : "");
    }
    for (const { key, input } of this.shares) this.show(input, region ? String(region[key]) : "");
    for (const input of this.element.querySelectorAll("input")) {
      input.disabled = fixed || !region;
      // A disabled field would lose the focus to the graph, and Ctrl+Z would undo in the graph.
      if (input.disabled && input === document.activeElement) stage.focus(model.selected);
    }
  }

  /**
   * Show a text in a field. `dataset.shown` keeps it, to detect typed text that is not applied yet.
   *
   * @param {HTMLInputElement} input
   * @param {string} text
   */
  show(input, text) {
    input.value = text;
    input.dataset.shown = input.value;
  }
}
