// @ts-check
// Create the parts of one node's editor and give them access to the node.
import { app } from "../../../../scripts/app.js";
import { createElement } from "../dom.js";
import { pictureOf } from "./background.js";
import { Fields } from "./fields.js";
import { Gestures } from "./gestures.js";
import { isField, isTyping, Keys } from "./keys.js";
import { Model } from "./model.js";
import { Note } from "./note.js";
import { Stage } from "./stage.js";
import { addStyle } from "./style.js";
import { Tools } from "./tools.js";

const GRID = "pastiche_grid"; // a property of the node, because snapping does not change its result

export class Editor {
  /** @param {ComfyUI.Node} node */
  constructor(node) {
    addStyle();
    this.node = node;
    this.asText = false;
    this.refusal = ""; // why the last typed value was not applied
    this.writing = false;
    /** @type {ConstructorParameters<typeof Model>[0]} */
    const texts = { read: () => this.read(), write: (changed) => this.write(changed) };
    this.model = new Model(texts, () => (this.refusal = ""));
    this.element = createElement("div", "pastiche-regions");
    this.element.setAttribute("role", "group");
    this.element.setAttribute("aria-label", "Editor of the regions");
    this.stage = new Stage();
    this.stage.area.addEventListener("focusin", ({ target }) => this.select(target));
    this.stage.picture.addEventListener("load", () => this.redraw());
    this.stage.picture.addEventListener("error", () => (this.stage.picture.hidden = true));
    this.gestures = new Gestures(this);
    this.tools = new Tools(this);
    this.fields = new Fields(this);
    this.note = new Note(this);
    this.keys = new Keys(this);
    this.element.append(this.tools.element, this.stage.element, this.note.text, this.tools.list);
    this.element.append(this.fields.element, this.note.rows, this.note.element);
  }

  /** @param {string} name */
  widget(name) {
    return this.node.widgets?.find((widget) => widget.name === name);
  }

  /** @param {string} name */
  isLinked(name) {
    return this.node.inputs?.some((input) => input.name === name && input.link != null) ?? false;
  }

  read() {
    const text = (/** @type {string} */ name) => (this.isLinked(name) ? "" : String(this.widget(name)?.value ?? ""));
    return { regions: text("regions"), layout: text("layout") };
  }

  /** @param {import("./model.js").Texts} texts */
  write(texts) {
    this.writing = true;
    for (const [name, text] of Object.entries(texts)) {
      const widget = this.widget(name);
      if (widget && widget.value !== text && !this.isLinked(name)) widget.value = text;
    }
    this.writing = false;
    this.redraw();
    requestAnimationFrame(() => this.announceChange());
  }

  // Notify the page of a change, so that it saves the graph and marks it as modified.
  announceChange() {
    app.canvas.emitBeforeChange();
    app.canvas.emitAfterChange();
    const focused = document.activeElement;
    if (focused && this.element.contains(focused) && !isField(focused)) {
      focused.dispatchEvent(new Event("change")); // the page waits for this event
    }
  }

  get size() {
    const { naturalWidth, naturalHeight, hidden } = this.stage.picture;
    if (!hidden && naturalWidth) return { width: naturalWidth, height: naturalHeight };
    const pixels = (/** @type {string} */ name) => Math.max(1, Number(this.widget(name)?.value) || 1024);
    return { width: pixels("width"), height: pixels("height") };
  }

  /**
   * Return the user's grid, else about a sixteenth of the longer side, such as 64 of 1024 pixels.
   *
   * @returns {{on: boolean, grid: number}}
   */
  get snap() {
    const { width, height } = this.size;
    const grid = 2 ** Math.max(0, Math.round(Math.log2(Math.max(width, height) / 16)));
    return { on: true, grid, ...this.ownSnap };
  }

  /** @returns {{on?: boolean, grid?: number} | undefined} */
  get ownSnap() {
    return /** @type {{on?: boolean, grid?: number} | undefined} */ (this.node.properties?.[GRID]);
  }

  /** @param {{on?: boolean, grid?: number}} changed */
  setSnap(changed) {
    this.node.properties[GRID] = { ...this.ownSnap, ...changed };
    requestAnimationFrame(() => this.announceChange());
  }

  /**
   * Return the grid in pixels; 0 if nothing snaps.
   *
   * @param {MouseEvent | KeyboardEvent} event
   */
  grid(event) {
    return this.snap.on && !event.altKey ? this.snap.grid : 0;
  }

  // Return whether the regions can't be edited on the stage.
  get fixed() {
    const { problem, usesLayout } = this.model;
    return this.asText || Boolean(problem) || usesLayout || this.isLinked("regions");
  }

  /** @param {boolean} on */
  setAsText(on) {
    this.asText = on;
    this.redraw();
  }

  /** @param {string} sentence */
  showRefusal(sentence) {
    this.refusal = sentence;
    this.note.draw();
  }

  /** @param {EventTarget | null} target */
  select(target) {
    const index = this.stage.indexOf(target);
    if (index < 0 || index === this.model.selected) return;
    this.model.selected = index;
    this.redraw();
  }

  redraw() {
    this.hideTexts();
    this.stage.showPicture(pictureOf(this.node, "background"));
    this.stage.element.hidden = this.asText;
    this.stage.draw(this.model, this.size, this.snap.on ? this.snap.grid : 0, this.fixed);
    this.tools.draw();
    this.fields.draw();
    this.note.draw();
  }

  // Hide the widgets of both texts, which the editor shows; a connected one needs its input slot.
  hideTexts() {
    for (const name of ["regions", "layout"]) {
      const widget = this.widget(name);
      if (widget) widget.hidden = widget.options.hidden = !this.isLinked(name);
    }
  }

  refresh() {
    if (this.writing || this.gestures.gesture) return;
    if (this.model.sync()) this.refusal = "";
    else if (this.fields.element.contains(document.activeElement)) {
      if (isTyping(document.activeElement)) return; // a redraw would overwrite the typed text
    }
    this.redraw();
  }
}
