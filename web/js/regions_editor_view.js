// The editor of one node: its parts, and what they share of the node.
import { app } from "../../../scripts/app.js";
import { pictureOf } from "./regions_editor_background.js";
import { Fields } from "./regions_editor_fields.js";
import { Gestures } from "./regions_editor_gestures.js";
import { isTyping, Keys } from "./regions_editor_keys.js";
import { Model } from "./regions_editor_model.js";
import { Note } from "./regions_editor_note.js";
import { made, Stage } from "./regions_editor_stage.js";
import { addStyle } from "./regions_editor_style.js";
import { Tools } from "./regions_editor_tools.js";

const GRID = "pastiche_grid"; // a property of the node: snapping changes no picture

export class Editor {
  constructor(node) {
    addStyle();
    this.node = node;
    this.asText = false;
    this.said = "";
    this.writing = false;
    const texts = { read: () => this.read(), write: (changed) => this.write(changed) };
    this.model = new Model(texts, () => (this.said = ""));
    this.element = made("div", "pastiche-regions");
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

  widget(name) {
    return this.node.widgets?.find((widget) => widget.name === name);
  }

  isLinked(name) {
    return this.node.inputs?.some((input) => input.name === name && input.link != null) ?? false;
  }

  read() {
    const text = (name) => (this.isLinked(name) ? "" : String(this.widget(name)?.value ?? ""));
    return { regions: text("regions"), layout: text("layout") };
  }

  write(texts) {
    this.writing = true;
    for (const [name, text] of Object.entries(texts)) {
      const widget = this.widget(name);
      if (widget && widget.value !== text && !this.isLinked(name)) widget.value = text;
    }
    this.writing = false;
    this.redraw();
    requestAnimationFrame(() => this.announce());
  }

  // The page keeps the graph, and counts it as changed, after what it knows to be a change.
  announce() {
    app.canvas.emitBeforeChange();
    app.canvas.emitAfterChange();
    const focused = document.activeElement;
    if (this.element.contains(focused) && !/^(INPUT|TEXTAREA)$/.test(focused.tagName)) {
      focused.dispatchEvent(new Event("change")); // ends the page's waiting for it
    }
  }

  get size() {
    const { naturalWidth, naturalHeight, hidden } = this.stage.picture;
    if (!hidden && naturalWidth) return { width: naturalWidth, height: naturalHeight };
    const pixels = (name) => Math.max(1, Number(this.widget(name)?.value) || 1024);
    return { width: pixels("width"), height: pixels("height") };
  }

  // Without a grid of the user's, about a sixteenth of the longer side: 64 pixels of 1024.
  get snap() {
    const { width, height } = this.size;
    const grid = 2 ** Math.max(0, Math.round(Math.log2(Math.max(width, height) / 16)));
    return { on: true, grid, ...this.node.properties?.[GRID] };
  }

  setSnap(changed) {
    this.node.properties[GRID] = { ...this.node.properties[GRID], ...changed };
    requestAnimationFrame(() => this.announce());
  }

  grid(event) {
    return this.snap.on && !event?.altKey ? this.snap.grid : 0;
  }

  // True where there is nothing to be drawn with the mouse.
  get fixed() {
    const { problem, inRows } = this.model;
    return this.asText || Boolean(problem) || inRows || this.isLinked("regions");
  }

  setAsText(on) {
    this.asText = on;
    this.redraw();
  }

  say(sentence) {
    this.said = sentence;
    this.note.draw();
  }

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

  // The editor shows both texts; where one is wired, the node shows where its wire ends.
  hideTexts() {
    for (const name of ["regions", "layout"]) {
      const widget = this.widget(name);
      if (widget) widget.hidden = widget.options.hidden = !this.isLinked(name);
    }
  }

  refresh() {
    if (this.writing || this.gestures.gesture) return;
    if (this.model.sync()) this.said = "";
    else if (this.fields.element.contains(document.activeElement)) {
      if (isTyping(document.activeElement)) return; // not over what is being typed
    }
    this.redraw();
  }
}
