// The editor's keys. Undo inside the editor is the editor's: the graph's never hears of it.
import { moved, resized } from "./regions_editor_boxes.js";

const ARROWS = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
};
const STEP = 8; // pixels: a cell of the latent; with Alt one pixel

let copied = null; // of any editor on the page

// The page looks at a key a frame later, wherever it was pressed and whatever stopped it, and takes
// the graph back. It asks the event for its modifiers: this event has none any more.
function hideFromPage(event) {
  for (const key of ["ctrlKey", "metaKey"]) Object.defineProperty(event, key, { value: false });
}

// A field in which something was typed and not yet taken over has its own undo.
export function isTyping({ tagName, value, dataset }) {
  return tagName === "TEXTAREA" || (tagName === "INPUT" && value !== (dataset.shown ?? value));
}

export class Keys {
  // editor: { element, model, stage, gestures, fields, size, grid(event), fixed, redraw() }
  constructor(editor) {
    this.editor = editor;
    editor.element.addEventListener("keydown", (event) => this.press(event));
  }

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
    } else if (!/^(INPUT|TEXTAREA)$/.test(event.target.tagName)) {
      const drawing = this.editor.stage.element.contains(event.target);
      const taken = drawing ? (command ? this.command(key) : this.plain(event)) : false;
      if (!taken && !this.deletes(event)) return;
      event.preventDefault();
      event.stopPropagation();
    }
  }

  command(key) {
    const { model, stage, fixed } = this.editor;
    if (key === "c" && model.region) copied = { ...model.region };
    else if (key === "v" && copied && !fixed) model.copy(copied);
    else if (key === "d" && model.region && !fixed) model.copy();
    else return false;
    stage.focus(model.selected);
    return true;
  }

  // Even where there is nothing to delete: the page would delete the node.
  deletes({ key }) {
    const { model, fixed } = this.editor;
    if (key !== "Delete" && key !== "Backspace") return false;
    if (model.region && !fixed) model.remove();
    return true;
  }

  plain(event) {
    const { model, gestures, fields, fixed } = this.editor;
    if (event.key === "Escape") {
      if (!gestures.cancel()) model.selected = -1;
      this.editor.redraw();
      return true;
    }
    if (!model.region || fixed) return false;
    if (event.key in ARROWS) this.arrow(event);
    else if (event.key === "PageUp") model.order(1);
    else if (event.key === "PageDown") model.order(-1);
    else if (event.key === "Enter" || event.key === "F2") fields.name.select();
    else return false;
    return true;
  }

  arrow(event) {
    const { model, size } = this.editor;
    const grid = this.editor.grid(event);
    const step = event.altKey ? 1 : grid || STEP;
    const [across, down] = ARROWS[event.key];
    const by = [(across * step) / size.width, (down * step) / size.height];
    const region = event.shiftKey
      ? resized(model.region, [across ? "right" : "bottom"], ...by, size, grid)
      : moved(model.region, ...by, size, grid);
    model.change(region, !event.repeat);
  }
}
