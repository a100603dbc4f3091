// The selected region's name, colour and numbers, to be typed.
import { edgesOf, withEdges } from "./regions_editor_boxes.js";
import { colourOf } from "./regions_editor_model.js";
import { made } from "./regions_editor_stage.js";

const PIXELS = [
  ["x", "X", "Left edge in pixels", "width"],
  ["y", "Y", "Upper edge in pixels", "height"],
  ["width", "W", "Width in pixels", "width"],
  ["height", "H", "Height in pixels", "height"],
];
const SHARES = [
  ["feather", "Feather", "Width of the soft edge, as a share of the picture's shorter side", 1],
  ["weight", "Weight", "Against other regions where they overlap", 100],
  ["blend", "Blend", "Share of the global prompt inside the region", 1],
  ["start_percent", "Start", "Share of the sampling run from which on the region acts", 1],
  ["end_percent", "End", "Share of the sampling run up to which the region acts", 1],
];

const tidy = (pixels) => String(Math.round(pixels * 10) / 10);

export class Fields {
  // editor: { model, size, fixed, say(problem), redraw() }
  constructor(editor) {
    this.editor = editor;
    this.element = made("div", "pastiche-fields");
    this.row("pastiche-field-row");
    this.name = this.field("Name", "Name of the region, as a prompt calls it", "text");
    this.colour = this.field("Colour", "Colour of the region in the editor", "color");
    this.name.addEventListener("change", () => this.rename());
    this.colour.addEventListener("change", () => this.take({ colour: this.colour.value }));
    this.row("pastiche-field-row");
    this.pixels = PIXELS.map(([key, label, title, side]) => {
      const input = this.number(label, title, 1);
      input.addEventListener("change", () => this.takePixels(key, side, input));
      return [key, side, input];
    });
    this.row("pastiche-field-row pastiche-shares");
    this.shares = SHARES.map(([key, label, title, most]) => {
      const input = this.number(label, title, 0.05);
      input.addEventListener("change", () => this.takeShare(key, label, most, input));
      return [key, input];
    });
  }

  row(className) {
    this.element.append(made("div", className));
  }

  field(label, title, type) {
    const frame = made("label", `pastiche-field pastiche-field-${type}`, label);
    const input = made("input");
    input.type = type;
    input.title = title;
    input.setAttribute("aria-label", title);
    frame.append(input);
    this.element.lastChild.append(frame);
    // Enter takes over, as leaving does; the graph's own keys stay away from what is typed.
    input.addEventListener("keydown", (event) => {
      if (!event.ctrlKey && !event.metaKey) event.stopPropagation();
    });
    return input;
  }

  number(label, title, step) {
    const input = this.field(label, title, "number");
    input.step = step;
    return input;
  }

  take(fields) {
    this.editor.model.change(fields);
    this.editor.redraw();
  }

  refuse(sentence) {
    this.editor.redraw();
    this.editor.say(sentence);
  }

  rename() {
    const { model } = this.editor;
    const name = this.name.value.trim();
    const taken = model.regions.some((one, i) => one.name === name && i !== model.selected);
    if (!name) this.refuse("A region must have a name, got none; type one");
    else if (taken) this.refuse(`The regions must have each name once, got "${name}" twice`);
    else this.take({ name });
  }

  takePixels(key, side, input) {
    const { model, size } = this.editor;
    const share = input.valueAsNumber / size[side];
    const { region } = model;
    const edges = edgesOf(region);
    const [low, high] = side === "width" ? ["left", "right"] : ["top", "bottom"];
    if (key === side) edges[high] = edges[low] + share;
    else [edges[low], edges[high]] = [share, share + region[side]];
    const inside = edges[low] >= 0 && edges[high] > edges[low] && edges[high] <= 1 + 1e-6;
    if (inside) this.take(withEdges(region, edges));
    else {
      const got = `got ${input.value || "nothing"}`;
      this.refuse(`The region must lie inside the picture, ${tidy(size[side])} pixels, ${got}`);
    }
  }

  takeShare(key, label, most, input) {
    const value = input.valueAsNumber;
    const changed = { ...this.editor.model.region, [key]: value };
    const { start_percent: start, end_percent: end } = changed;
    const got = `got ${input.value || "nothing"}`;
    if (!(value >= 0 && value <= most)) {
      this.refuse(`${label} must be a number from 0 to ${most}, ${got}`);
    } else if (end <= start) this.refuse(`The end must be above the start, ${got}`);
    else this.take({ [key]: value });
  }

  // Without a region the fields are empty but keep their place: the picture stays where it is.
  draw() {
    const { model, size, fixed, asText, stage } = this.editor;
    const { region } = model;
    this.element.hidden = asText;
    this.show(this.name, region?.name ?? "");
    this.show(this.colour, region ? colourOf(region, model.selected).toLowerCase() : "#808080");
    for (const [key, side, input] of this.pixels) {
      this.show(input, region ? tidy(region[key] * size[side]) : "");
    }
    for (const [key, input] of this.shares) this.show(input, region ? String(region[key]) : "");
    for (const input of this.element.querySelectorAll("input")) {
      input.disabled = fixed || !region;
      // A field that can't be typed in would lose the focus to the graph, and undo with it.
      if (input.disabled && input === document.activeElement) stage.focus(model.selected);
    }
  }

  // dataset.shown tells what is typed and not taken over from what is shown.
  show(input, text) {
    input.value = text;
    input.dataset.shown = input.value;
  }
}
