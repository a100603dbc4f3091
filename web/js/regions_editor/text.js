// @ts-check
// Read and write the regions' text. lora_ops/region_text.py accepts exactly the same texts.
import { RegionTextError, readJson } from "./json.js";

/**
 * A region with all its fields; places and sizes are fractions of the picture.
 *
 * @typedef {object} Region
 * @property {string} name
 * @property {number} x
 * @property {number} y
 * @property {number} width
 * @property {number} height
 * @property {number} feather
 * @property {number} weight
 * @property {number} blend
 * @property {number} start_percent
 * @property {number} end_percent
 * @property {string} colour
 */

/** @type {Record<string, [low: number, high: number]>} */
const NUMBERS = {
  x: [0, 1],
  y: [0, 1],
  width: [0, 1],
  height: [0, 1],
  feather: [0, 1],
  weight: [0, 100],
  blend: [0, 1],
  start_percent: [0, 1],
  end_percent: [0, 1],
};
const NEEDED = ["name", "x", "y", "width", "height"];
export const DEFAULTS = {
  feather: 0,
  weight: 1,
  blend: 0,
  start_percent: 0,
  end_percent: 1,
  colour: "",
};
const KNOWN = /** @type {(keyof Region)[]} */ ([...NEEDED, ...Object.keys(DEFAULTS)]);
/** @type {[low: "x" | "y", size: "width" | "height"][]} */
const SIDES = [
  ["x", "width"],
  ["y", "height"],
];
const SLACK = 1e-6; // by how much a sum of typed numbers may exceed the picture's border

/**
 * @param {unknown} value
 * @returns {value is Record<string, unknown>}
 */
const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const short = (/** @type {number} */ number) => String(Number(number.toPrecision(6)));

/**
 * Return the regions of a text, and the optional "editor" entry next to them.
 *
 * @param {string} text
 * @returns {{ regions: Region[], editor: unknown }}
 */
export function parseRegions(text) {
  if (!text.trim()) return { regions: [], editor: undefined };
  const { value, lineOf } = readJson(text);
  if (!isObject(value) || Object.keys(value).length === 0) {
    throw new RegionTextError(1, 'the text must be one object with "regions", got something else');
  }
  const unknown = Object.keys(value).find((key) => key !== "regions" && key !== "editor");
  if (unknown !== undefined || !("regions" in value)) {
    const line = unknown === undefined ? 1 : lineOf(unknown);
    const got = Object.keys(value).sort().map((key) => `'${key}'`);
    const sentence = `the object must have "regions" and nothing else, got [${got.join(", ")}]`;
    throw new RegionTextError(line, sentence);
  }
  if (!Array.isArray(value.regions)) {
    throw new RegionTextError(lineOf("regions"), '"regions" must be a list, got something else');
  }
  const names = new Map();
  const regions = value.regions.map((fields, index) => {
    const line = lineOf("regions", index);
    const region = completeRegion(fields, line, (key) => lineOf("regions", index, key));
    if (names.has(region.name)) {
      const where = `here and in line ${names.get(region.name)}`;
      const got = `got "${region.name}" ${where}; rename one`;
      throw new RegionTextError(line, `the regions must have each name once, ${got}`);
    }
    names.set(region.name, line);
    return region;
  });
  return { regions, editor: value.editor };
}

/**
 * Return a region in which defaults replace the missing fields.
 *
 * @param {unknown} fields
 * @param {number} line
 * @param {(key: string) => number} lineOf
 * @returns {Region}
 */
function completeRegion(fields, line, lineOf) {
  if (!isObject(fields)) {
    const example = '{"name": "cat", "x": 0, ...}';
    throw new RegionTextError(
      line,
      `a region must be written in braces, such as ${example}, got something else`,
    );
  }
  const { name } = fields;
  const title = typeof name === "string" ? `region "${name.trim()}"` : "a region";
  const missing = NEEDED.filter((key) => !(key in fields)).map((key) => `"${key}"`);
  if (missing.length) {
    throw new RegionTextError(line, `${title} must have a ${missing.join(", ")}; add what is missing`);
  }
  if (typeof name !== "string" || !name.trim()) {
    const got = JSON.stringify(name);
    const sentence = `a region's "name" must be a text that is not empty, got ${got}`;
    throw new RegionTextError(lineOf("name"), sentence);
  }
  for (const [key, value] of Object.entries(fields)) {
    const wrong = faultOf(key, value, title);
    if (wrong) throw new RegionTextError(lineOf(key), wrong);
  }
  const region = /** @type {Region} */ ({ ...DEFAULTS, ...fields, name: name.trim() });
  const { start_percent: start, end_percent: end } = region;
  if (end <= start) {
    const key = "end_percent" in fields ? "end_percent" : "start_percent";
    const got = `got ${short(end)} after ${short(start)}`;
    const sentence = `"end_percent" of ${title} must be above its "start_percent", ${got}`;
    throw new RegionTextError(lineOf(key), sentence);
  }
  for (const [low, size] of SIDES) {
    if (region[low] + region[size] <= 1 + SLACK) continue;
    const got = `got ${low} ${short(region[low])} + ${size} ${short(region[size])}`;
    const why = "both are shares of the picture and their sum is at most 1";
    throw new RegionTextError(lineOf(low), `${title} must end inside the picture, ${got}; ${why}`);
  }
  return region;
}

/**
 * Return what is wrong with a field, "" if nothing is.
 *
 * @param {string} key
 * @param {unknown} value
 * @param {string} title
 */
function faultOf(key, value, title) {
  const got = `got ${JSON.stringify(value)}`;
  if (key === "name") return "";
  if (key === "colour") {
    const right = typeof value === "string" && /^#[0-9a-fA-F]{6}$/.test(value);
    return right ? "" : `"colour" of ${title} must be written as #rrggbb, ${got}`;
  }
  if (!Object.hasOwn(NUMBERS, key)) {
    return `${title} has no "${key}"; what it can have is ${KNOWN.join(", ")}`;
  }
  if (typeof value !== "number") return `"${key}" of ${title} must be a number, ${got}`;
  const [low, high] = NUMBERS[key];
  if ((key === "width" || key === "height") && (value <= low || value > high)) {
    return `"${key}" of ${title} must be above 0 and at most 1, ${got}`;
  }
  const inside = low <= value && value <= high;
  return inside ? "" : `"${key}" of ${title} must lie between ${low} and ${high}, ${got}`;
}

/**
 * Return the text of the regions, one region on each line; default values are left out.
 *
 * @param {Region[]} regions
 * @param {unknown} editor
 */
export function regionsText(regions, editor) {
  /** @type {Partial<Region>} */
  const defaults = DEFAULTS;
  const rows = regions.map((region) => {
    const kept = KNOWN.filter((key) => region[key] !== defaults[key]);
    const fields = kept.map((key) => `${JSON.stringify(key)}: ${JSON.stringify(region[key])}`);
    return `    {${fields.join(", ")}}`;
  });
  const inside = rows.length ? `\n${rows.join(",\n")}\n  ` : "";
  const editorEntry = editor === undefined ? "" : `,\n  "editor": ${JSON.stringify(editor)}`;
  return `{\n  "regions": [${inside}]${editorEntry}\n}`;
}
