// @ts-check
// The editor's model: the regions, the selected one, and the history for undo.
import { edgesOf, moved, withEdges } from "./boxes.js";
import { parseLayout } from "./layout.js";
import { DEFAULTS, parseRegions, regionsText } from "./text.js";

// Colours of regions without one, the same as on the server.
const COLOURS = "#e6553c #3c82e6 #41ab5d #f2b134 #9b5de5 #21b5b5 #e0559b #8d6e4a".split(" ");
const MAX_UNDONE = 200;

/** @typedef {import("./text.js").Region} Region */
/** @typedef {{regions: string, layout: string}} Texts the texts of the node's widgets */

/**
 * @param {{colour?: string}} region
 * @param {number} index
 */
export const colourOf = (region, index) => region.colour || COLOURS[index % COLOURS.length];

const messageOf = (/** @type {unknown} */ error) =>
  error instanceof Error ? error.message : String(error);

export class Model {
  /**
   * @param {{read(): Texts, write(texts: Texts): void}} texts access to the node's widgets
   * @param {() => void} changed called before a change is written
   */
  constructor(texts, changed) {
    this.texts = texts;
    this.changed = changed;
    this.selected = -1;
    /** @type {Texts[]} */
    this.past = [];
    /** @type {Texts[]} */
    this.future = [];
    /** @type {Texts} */
    this.seen = texts.read();
    /** @type {Region[]} */
    this.boxes = [];
    /** @type {Region[]} */
    this.rows = [];
    /** @type {unknown} */
    this.editor = undefined;
    /** @type {Region[] | null} */
    this.draft = null; // regions during a gesture
    this.unreadable = ""; // why the text of the boxes can't be read
    this.problem = ""; // why there are no regions to edit
    this.load(this.seen);
  }

  reset() {
    [this.past, this.future] = [[], []];
    this.load(this.texts.read());
  }

  // Load the widgets' texts if they were changed outside the editor; return whether they were. The
  // history is cleared then, so undo never reverts such a change.
  sync() {
    const now = this.texts.read();
    if (this.seen.regions === now.regions && this.seen.layout === now.layout) return false;
    [this.past, this.future] = [[], []];
    this.load(now);
    return true;
  }

  /** @param {Texts} texts */
  load(texts) {
    this.seen = texts;
    [this.boxes, this.editor, this.rows] = [[], undefined, []];
    this.unreadable = this.problem = "";
    try {
      ({ regions: this.boxes, editor: this.editor } = parseRegions(texts.regions));
    } catch (error) {
      this.unreadable = messageOf(error);
    }
    try {
      this.rows = parseLayout(texts.layout);
    } catch (error) {
      this.problem = messageOf(error);
    }
    if (!this.usesLayout) this.problem = this.unreadable;
    this.selected = Math.min(this.selected, this.regions.length - 1);
  }

  // Return whether the layout of rows and columns is used in place of the boxes.
  get usesLayout() {
    return this.seen.layout.trim() !== "";
  }

  get regions() {
    return this.draft ?? (this.usesLayout ? this.rows : this.boxes);
  }

  /** @returns {Region | undefined} */
  get region() {
    return this.regions[this.selected];
  }

  /**
   * Change the texts and write them to the widgets.
   *
   * @param {Texts} texts
   * @param {boolean} [history] whether undo can revert this change alone
   */
  put(texts, history = true) {
    if (history) {
      this.past = [...this.past, this.seen].slice(-MAX_UNDONE);
      this.future = [];
    }
    this.draft = null;
    this.load(texts);
    this.changed();
    this.texts.write(texts);
  }

  /**
   * @param {Partial<Texts>} texts
   * @param {boolean} [history]
   */
  putText(texts, history) {
    this.put({ ...this.seen, ...texts }, history);
  }

  /**
   * @param {Region[]} regions
   * @param {boolean} [history] false joins the change to the one before, while a key is held down
   */
  edit(regions, history = true) {
    this.draft = null;
    if (this.problem || this.usesLayout) return;
    const text = regionsText(regions, this.editor);
    if (text !== this.seen.regions) this.putText({ regions: text }, history);
  }

  /**
   * Change fields of the selected region.
   *
   * @param {Partial<Region>} fields
   * @param {boolean} [history]
   */
  change(fields, history = true) {
    const { selected } = this;
    const regions = this.regions.map((one, index) =>
      index === selected ? { ...one, ...fields } : one,
    );
    this.edit(regions, history);
  }

  /**
   * @param {import("./boxes.js").Edges} box
   * @param {Partial<Region>} [from] fields of the new region
   */
  add(box, from = {}) {
    const names = this.regions.map(({ name }) => name);
    let number = names.length + 1;
    while (names.includes(`region ${number}`)) number += 1;
    const used = this.regions.map(colourOf);
    const colour = COLOURS.find((one) => !used.includes(one)) ?? colourOf({}, names.length);
    const name = `region ${number}`;
    const nowhere = { x: 0, y: 0, width: 0, height: 0 };
    const region = withEdges({ ...DEFAULTS, ...nowhere, ...from, name, colour }, box);
    this.selected = names.length;
    this.edit([...this.regions, region]);
  }

  /** @param {Region} [region] */
  copy(region = this.region) {
    if (!region) return;
    const by = region.x + region.width + 0.04 > 1 ? -0.04 : 0.04;
    this.add(edgesOf(moved(region, by, 0.04)), region);
  }

  remove() {
    const index = this.selected;
    this.edit(this.regions.filter((_, i) => i !== index));
  }

  /**
   * Move the selected region in the order; later regions cover earlier ones.
   *
   * @param {number} by
   */
  order(by) {
    const [from, to] = [this.selected, this.selected + by];
    const regions = [...this.regions];
    const [one, other] = [regions[from], regions[to]];
    if (!one || !other) return;
    [regions[from], regions[to]] = [other, one];
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
    const texts = this.past.pop();
    if (!texts) return;
    this.future.push(this.seen);
    this.put(texts, false);
  }

  redo() {
    const texts = this.future.pop();
    if (!texts) return;
    this.past.push(this.seen);
    this.put(texts, false);
  }
}
