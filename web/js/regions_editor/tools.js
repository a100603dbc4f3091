// @ts-check
// The toolbar, and the list of the regions in their order.
import { createElement } from "../dom.js";
import { colourOf } from "./model.js";

/** @typedef {"add" | "copy" | "remove" | "lower" | "raise" | "undo" | "redo" | "snap" | "text"} Action */

/** @type {[action: Action, label: string, title: string][]} */
const BUTTONS = [
  ["add", "Add", "Add a region; or drag on the picture, with Shift also over another region"],
  ["copy", "Copy", "Copy the selected region (Ctrl+D)"],
  ["remove", "Delete", "Delete the selected region (Delete)"],
  ["lower", "↓", "Put the selected region below the one before it (Page Down)"],
  ["raise", "↑", "Put the selected region above the one after it (Page Up)"],
  ["undo", "Undo", "Undo the last change of the regions (Ctrl+Z)"],
  ["redo", "Redo", "Redo the change of the regions (Ctrl+Y)"],
  ["snap", "Snap", "Snap edges to a grid; hold Alt to move without snapping"],
  ["text", "Text", "Show the regions as text, which you can edit"],
];

export class Tools {
  /** @param {import("./editor.js").Editor} editor */
  constructor(editor) {
    this.editor = editor;
    this.element = createElement("div", "pastiche-tools");
    this.element.setAttribute("role", "toolbar");
    this.element.setAttribute("aria-label", "Edit the regions");
    const buttons = BUTTONS.map(([action, label, title]) => [
      action,
      this.createButton(action, label, title),
    ]);
    this.buttons = /** @type {Record<Action, HTMLButtonElement>} */ (Object.fromEntries(buttons));
    const { text, ...others } = this.buttons;
    this.element.append(...Object.values(others));
    this.grid = createElement("input");
    Object.assign(this.grid, { type: "number", min: "1", max: "1024", step: "8" });
    this.grid.title = "Grid in pixels";
    this.grid.setAttribute("aria-label", "Grid in pixels");
    this.grid.addEventListener("change", () => this.applyGrid());
    this.element.append(this.grid, text);
    /** @type {HTMLButtonElement[]} */
    this.entries = [];
    this.list = createElement("div", "pastiche-list");
    this.list.setAttribute("role", "group");
    this.list.setAttribute("aria-label", "Regions in their order, the topmost last");
  }

  /**
   * @param {Action} action
   * @param {string} label
   * @param {string} title
   */
  createButton(action, label, title) {
    const button = createElement("button", "", label);
    button.type = "button";
    button.title = title;
    button.setAttribute("aria-label", title.split(/[;(]/)[0].trim());
    button.addEventListener("click", () => this.press(action));
    return button;
  }

  /** @param {Action} action */
  press(action) {
    const { model, stage, snap, asText } = this.editor;
    if (action === "add") this.add();
    if (action === "copy") model.copy();
    if (action === "remove") model.remove();
    if (action === "lower") model.order(-1);
    if (action === "raise") model.order(1);
    if (action === "undo" || action === "redo") model[action]();
    if (action === "snap") this.editor.setSnap({ on: !snap.on });
    if (action === "text") this.editor.setAsText(!asText);
    this.editor.redraw();
    // A button that is now disabled would lose the focus to the graph, and Ctrl+Z would undo there.
    if (this.buttons[action].disabled || action === "add") stage.focus(model.selected);
  }

  add() {
    const { model } = this.editor;
    const shift = (model.regions.length % 5) * 0.0625;
    model.add({ left: 0.25 + shift, top: 0.25 + shift, right: 0.5 + shift, bottom: 0.5 + shift });
  }

  applyGrid() {
    const grid = this.grid.valueAsNumber;
    if (grid >= 1) this.editor.setSnap({ on: true, grid });
    this.editor.redraw();
  }

  draw() {
    const { model, snap, asText, fixed } = this.editor;
    const { regions, selected } = model;
    const { add, copy, remove, lower, raise, undo, redo, text } = this.buttons;
    add.disabled = fixed;
    copy.disabled = remove.disabled = fixed || !model.region;
    lower.disabled = fixed || selected < 1;
    raise.disabled = fixed || selected < 0 || selected === regions.length - 1;
    undo.disabled = !model.past.length;
    redo.disabled = !model.future.length;
    this.buttons.snap.setAttribute("aria-pressed", String(snap.on));
    text.setAttribute("aria-pressed", String(asText));
    if (document.activeElement !== this.grid) this.grid.value = String(snap.grid);
    this.list.hidden = asText;
    while (this.entries.length > regions.length) this.entries.pop()?.remove();
    while (this.entries.length < regions.length) {
      const entry = this.createEntry();
      this.entries.push(entry);
      this.list.append(entry);
    }
    this.entries.forEach((entry, index) => {
      const region = regions[index];
      entry.textContent = region.name;
      entry.style.setProperty("--colour", colourOf(region, index));
      entry.setAttribute("aria-pressed", String(index === selected));
    });
  }

  createEntry() {
    const entry = createElement("button");
    entry.type = "button";
    entry.addEventListener("click", () => {
      this.editor.model.selected = this.entries.indexOf(entry);
      this.editor.redraw();
    });
    return entry;
  }
}
