// @ts-check
// Draw, move and resize regions with a mouse, a pen or a finger.
import { app } from "../../../../scripts/app.js";
import { boxBetween, moved, resized } from "./boxes.js";

/** @typedef {import("./boxes.js").Edges} Edges */

/**
 * @typedef {object} Gesture
 * @property {import("./boxes.js").Point} start
 * @property {import("./text.js").Region | undefined} from region that is moved or resized
 * @property {(keyof Edges)[] | undefined} edges that are moved; none to move the whole region
 * @property {PointerEvent} event that began the gesture
 * @property {boolean} moved
 * @property {Edges | null} box that is being drawn
 */

const MIN_DRAG = 4; // screen pixels; a shorter drag is a click

export class Gestures {
  /** @param {import("./editor.js").Editor} editor */
  constructor(editor) {
    this.editor = editor;
    /** @type {Gesture | null} */
    this.gesture = null;
    const { area } = editor.stage;
    area.addEventListener("pointerdown", (event) => this.down(event));
    area.addEventListener("pointermove", (event) => this.move(event));
    area.addEventListener("pointerup", (event) => this.up(event));
    area.addEventListener("pointercancel", () => this.cancel());
    area.addEventListener("wheel", (event) => {
      // With Nodes 2.0 on, the page zooms over a node by itself.
      if (!globalThis.LiteGraph?.vueNodesMode) app.canvas.processMouseWheel(event);
    });
  }

  /** @param {PointerEvent} event */
  down(event) {
    event.stopPropagation();
    if (event.button !== 0) return;
    if (this.gesture) {
      this.cancel(); // a second finger is down, with which the page zooms the graph
      return;
    }
    event.preventDefault(); // no text is selected, and only this handler sets the focus
    const { model, stage } = this.editor;
    stage.focus(-1); // applies text that was typed in a field, before the selection changes
    const index = event.shiftKey ? -1 : stage.indexOf(event.target);
    model.selected = index;
    this.editor.redraw();
    stage.focus(index);
    if (this.editor.fixed) return;
    const handle = event.target instanceof HTMLElement ? event.target.dataset.edges : undefined;
    const names = /** @type {(keyof Edges)[] | undefined} */ (handle?.split(" "));
    const edges = index < 0 ? undefined : names;
    const [start, from] = [stage.place(event), model.region];
    this.gesture = { start, from, edges, event, moved: false, box: null };
    stage.area.setPointerCapture(event.pointerId);
  }

  /** @param {PointerEvent} event */
  move(event) {
    const { gesture } = this;
    if (!gesture || gesture.event.pointerId !== event.pointerId) return;
    event.stopPropagation();
    const { clientX, clientY } = gesture.event;
    const distance = Math.hypot(event.clientX - clientX, event.clientY - clientY);
    gesture.moved ||= distance >= MIN_DRAG;
    if (gesture.moved) this.show(gesture, event);
  }

  /**
   * @param {Gesture} gesture
   * @param {PointerEvent} event
   */
  show(gesture, event) {
    const { model, stage, size } = this.editor;
    const { start, from, edges } = gesture;
    const [place, grid] = [stage.place(event), this.editor.grid(event)];
    if (!from) {
      gesture.box = boxBetween(start, place, size, grid);
      stage.showOutline(gesture.box);
      return;
    }
    const [across, down] = [place.x - start.x, place.y - start.y];
    const changed = edges
      ? resized(from, edges, across, down, size, grid)
      : moved(from, across, down, size, grid);
    model.draft = null;
    model.draft = model.regions.map((one, i) => (i === model.selected ? changed : one));
    this.editor.redraw();
  }

  /** @param {PointerEvent} event */
  up(event) {
    const { gesture } = this;
    if (!gesture || gesture.event.pointerId !== event.pointerId) return;
    event.stopPropagation();
    const { model, stage } = this.editor;
    const { draft } = model;
    this.end();
    if (gesture.box) {
      model.add(gesture.box);
      stage.focus(model.selected);
    } else if (draft) {
      model.edit(draft);
    }
    this.editor.redraw();
  }

  // Cancel the gesture; return whether there was one.
  cancel() {
    if (!this.gesture) return false;
    this.end();
    this.editor.redraw();
    return true;
  }

  end() {
    this.gesture = null;
    this.editor.model.draft = null;
    this.editor.stage.showOutline(null);
  }
}
