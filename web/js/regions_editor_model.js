// What the editor edits: the regions, which of them is selected, and what undo goes back to.
import { edgesOf, moved, withEdges } from "./regions_editor_boxes.js";
import { parseLayout } from "./regions_editor_layout.js";
import { DEFAULTS, parseRegions, regionsText } from "./regions_editor_text.js";

// As in nodes/regions/layout/sets.py, for regions that have no colour of their own.
const COLOURS = "#e6553c #3c82e6 #41ab5d #f2b134 #9b5de5 #21b5b5 #e0559b #8d6e4a".split(" ");
const MOST_UNDONE = 200;

export const colourOf = (region, index) => region.colour || COLOURS[index % COLOURS.length];

export class Model {
  // texts: { read() -> { regions, layout }, write({ regions, layout }) }, the node's widgets.
  constructor(texts, changed) {
    this.texts = texts;
    this.changed = changed;
    this.selected = -1;
    this.reset();
  }

  reset() {
    this.past = [];
    this.future = [];
    this.seen = null;
    this.sync();
  }

  // Takes up what others have written; true if there was anything. Undo never crosses that.
  sync() {
    const now = this.texts.read();
    if (this.seen?.regions === now.regions && this.seen.layout === now.layout) return false;
    if (this.seen) [this.past, this.future] = [[], []];
    this.take(now);
    return true;
  }

  take(texts) {
    this.seen = texts;
    [this.boxes, this.editor, this.rows] = [[], undefined, []];
    this.unread = this.problem = ""; // why the boxes can't be read; why there is nothing to edit
    try {
      ({ regions: this.boxes, editor: this.editor } = parseRegions(texts.regions));
    } catch (error) {
      this.unread = error.message;
    }
    try {
      this.rows = parseLayout(texts.layout);
    } catch (error) {
      this.problem = error.message;
    }
    if (!this.inRows) this.problem = this.unread;
    this.selected = Math.min(this.selected, this.regions.length - 1);
  }

  // A layout that is not empty takes the place of the boxes.
  get inRows() {
    return this.seen.layout.trim() !== "";
  }

  get regions() {
    return this.draft ?? (this.inRows ? this.rows : this.boxes);
  }

  get region() {
    return this.regions[this.selected];
  }

  put(texts, history = true) {
    if (history) {
      this.past = [...this.past, this.seen].slice(-MOST_UNDONE);
      this.future = [];
    }
    this.draft = null;
    this.take(texts);
    this.changed();
    this.texts.write(texts);
  }

  // texts: { regions } or { layout }, or both.
  putText(texts, history) {
    this.put({ ...this.seen, ...texts }, history);
  }

  // history false joins the change to the one before, as while a key is held down.
  edit(regions, history = true) {
    this.draft = null;
    if (this.problem || this.inRows) return;
    const text = regionsText(regions, this.editor);
    if (text !== this.seen.regions) this.putText({ regions: text }, history);
  }

  change(fields, history = true) {
    const { selected } = this;
    const changed = (one, index) => (index === selected ? { ...one, ...fields } : one);
    this.edit(this.regions.map(changed), history);
  }

  add(box, from = {}) {
    const names = this.regions.map(({ name }) => name);
    let number = names.length + 1;
    while (names.includes(`region ${number}`)) number += 1;
    const used = this.regions.map(colourOf);
    const colour = COLOURS.find((one) => !used.includes(one)) ?? colourOf({}, names.length);
    const name = `region ${number}`;
    const region = withEdges({ ...DEFAULTS, ...from, name, colour }, box);
    this.selected = names.length;
    this.edit([...this.regions, region]);
  }

  copy(region = this.region) {
    const by = region.x + region.width + 0.04 > 1 ? -0.04 : 0.04;
    this.add(edgesOf(moved(region, by, 0.04)), region);
  }

  remove() {
    const index = this.selected;
    this.edit(this.regions.filter((_, i) => i !== index));
  }

  // Later regions lie above earlier ones.
  order(by) {
    const [from, to] = [this.selected, this.selected + by];
    if (!this.regions[from] || !this.regions[to]) return;
    const regions = [...this.regions];
    [regions[from], regions[to]] = [regions[to], regions[from]];
    this.selected = to;
    this.edit(regions);
  }

  rowsToBoxes() {
    const boxes = this.rows.map((row, index) => {
      return { ...withEdges(row, edgesOf(row)), colour: colourOf(row, index) };
    });
    this.put({ regions: regionsText(boxes, this.editor), layout: "" });
  }

  undo() {
    if (!this.past.length) return;
    this.future.push(this.seen);
    this.put(this.past.pop(), false);
  }

  redo() {
    if (!this.future.length) return;
    this.past.push(this.seen);
    this.put(this.future.pop(), false);
  }
}
