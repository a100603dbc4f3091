// Drawing, moving and resizing with a mouse, a pen or a finger.
import { app } from "../../../scripts/app.js";
import { between, moved, resized } from "./regions_editor_boxes.js";

const SMALLEST_DRAG = 4; // screen pixels; what is shorter is a click

export class Gestures {
  // editor: { model, stage, size, grid(event), fixed, redraw() }
  constructor(editor) {
    this.editor = editor;
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

  down(event) {
    event.stopPropagation();
    if (event.button !== 0) return;
    if (this.gesture) {
      this.cancel(); // a second finger: the page zooms the graph with two
      return;
    }
    event.preventDefault(); // no selecting of text, no focus but the one given here
    const { model, stage } = this.editor;
    stage.focus(-1); // what is typed in a field is taken over, by the region it was typed for
    const index = event.shiftKey ? -1 : stage.indexOf(event.target);
    model.selected = index;
    this.editor.redraw();
    stage.focus(index);
    if (this.editor.fixed) return;
    const edges = event.target.dataset.edges?.split(" ");
    const [start, from] = [stage.place(event), model.region];
    this.gesture = { start, from, edges: index < 0 ? null : edges, event, moved: false };
    stage.area.setPointerCapture(event.pointerId);
  }

  move(event) {
    const { gesture } = this;
    if (gesture?.event.pointerId !== event.pointerId) return;
    event.stopPropagation();
    const { clientX, clientY } = gesture.event;
    const distance = Math.hypot(event.clientX - clientX, event.clientY - clientY);
    gesture.moved ||= distance >= SMALLEST_DRAG;
    if (gesture.moved) this.show(event);
  }

  show(event) {
    const { model, stage, size } = this.editor;
    const { start, from, edges } = this.gesture;
    const [place, grid] = [stage.place(event), this.editor.grid(event)];
    if (!from) {
      this.gesture.box = between({ ...start }, place, size, grid);
      stage.showDrawn(this.gesture.box);
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

  up(event) {
    const { gesture } = this;
    if (gesture?.event.pointerId !== event.pointerId) return;
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

  // True if there was a gesture to break off.
  cancel() {
    if (!this.gesture) return false;
    this.end();
    this.editor.redraw();
    return true;
  }

  end() {
    this.gesture = null;
    this.editor.model.draft = null;
    this.editor.stage.showDrawn(null);
  }
}
