// @ts-check
// Handle the editor's keys. Undo inside the editor only undoes changes of its regions.
import { moved, resized } from "./boxes.js";

/** @type {Record<string, [across: number, down: number]>} */
const ARROWS = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
};
const STEP = 8; // pixels, a cell of the latent; with Alt it is one pixel

/** @type {import("./text.js").Region | null} */
let copied = null; // shared by all editors on the page

/**
 * Hide a key's modifiers from the page. The page handles keys one frame later, even if propagation
 * was stopped, and would undo a change of the graph.
 *
 * @param {KeyboardEvent} event
 */
function hideFromPage(event) {
  for (const key of ["ctrlKey", "metaKey"]) Object.defineProperty(event, key, { value: false });
}

/**
 * Return whether text was typed in a field and is not applied yet; the field then has its own undo.
 *
 * @param {EventTarget | null} field
 */
export function isTyping(field) {
  if (field instanceof HTMLTextAreaElement) return true;
  if (!(field instanceof HTMLInputElement)) return false;
  return field.value !== (field.dataset.shown ?? field.value);
}

export const isField = (/** @type {Element} */ element) =>
  /^(INPUT|TEXTAREA)$/.test(element.tagName);

export class Keys {
  /** @param {import("./editor.js").Editor} editor */
  constructor(editor) {
    this.editor = editor;
    editor.element.addEventListener("keydown", (event) => this.press(event));
  }

  /** @param {KeyboardEvent} event */
  press(event) {
    const command = event.ctrlKey || event.metaKey;
    const key = event.key.toLowerCase();
    if (command && !event.altKey && (key === "z" || key === "y")) {
      const redo = key === "y" || event.shiftKey;
      hideFromPage(event);
      event.stopPropagation();
      if (isTyping(event.target)) return;
      event.preventDefault();
      this.editor.model[redo ? "redo" : "undo"]();
    } else if (event.target instanceof Element && !isField(event.target)) {
      const drawing = this.editor.stage.element.contains(event.target);
      const taken = drawing ? (command ? this.handleShortcut(key) : this.handleKey(event)) : false;
      if (!taken && !this.handleDelete(event)) return;
      event.preventDefault();
      event.stopPropagation();
    }
  }

  /** @param {string} key */
  handleShortcut(key) {
    const { model, stage, fixed } = this.editor;
    if (key === "c" && model.region) copied = { ...model.region };
    else if (key === "v" && copied && !fixed) model.copy(copied);
    else if (key === "d" && model.region && !fixed) model.copy();
    else return false;
    stage.focus(model.selected);
    return true;
  }

  /**
   * Delete the selected region. Return true even if there is none, or the page would delete the node.
   *
   * @param {KeyboardEvent} event
   */
  handleDelete({ key }) {
    const { model, fixed } = this.editor;
    if (key !== "Delete" && key !== "Backspace") return false;
    if (model.region && !fixed) model.remove();
    return true;
  }

  /** @param {KeyboardEvent} event */
  handleKey(event) {
    const { model, gestures, fields, fixed } = this.editor;
    if (event.key === "Escape") {
      if (!gestures.cancel()) model.selected = -1;
      this.editor.redraw();
      return true;
    }
    if (!model.region || fixed) return false;
    if (event.key in ARROWS) this.handleArrow(event, model.region);
    else if (event.key === "PageUp") model.order(1);
    else if (event.key === "PageDown") model.order(-1);
    else if (event.key === "Enter" || event.key === "F2") fields.name.select();
    else return false;
    return true;
  }

  /**
   * @param {KeyboardEvent} event
   * @param {import("./text.js").Region} selected
   */
  handleArrow(event, selected) {
    const { model, size } = this.editor;
    const grid = this.editor.grid(event);
    const step = event.altKey ? 1 : grid || STEP;
    const [across, down] = ARROWS[event.key];
    const [x, y] = [(across * step) / size.width, (down * step) / size.height];
    const region = event.shiftKey
      ? resized(selected, [across ? "right" : "bottom"], x, y, size, grid)
      : moved(selected, x, y, size, grid);
    model.change(region, !event.repeat);
  }
}
