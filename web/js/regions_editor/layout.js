// @ts-check
// Parse rows of columns such as "1,2,1 / 1" as parse_layout in lora_ops/region_text.py does.
import { DEFAULTS } from "./text.js";

const NUMBER = /^\s*\+?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$/;

/**
 * Return the positive number in a text, null if there is none.
 *
 * @param {string} text
 */
function positive(text) {
  const number = NUMBER.test(text) ? Number(text) : NaN;
  return Number.isFinite(number) && number > 0 ? number : null;
}

/**
 * Return start and end of each size, as fractions of the sum of all sizes.
 *
 * @param {number[]} sizes
 */
function edges(sizes) {
  let end = 0;
  const ends = sizes.map((size) => (end += size));
  const shares = [0, ...ends.slice(0, -1).map((each) => each / end), 1];
  return sizes.map((_, index) => [shares[index], shares[index + 1]]);
}

/**
 * Return the height of a row and the widths of its columns.
 *
 * @param {string} row
 * @param {number} index
 */
function parseRow(row, index) {
  const colon = row.lastIndexOf(":");
  const high = colon < 0 ? 1 : positive(row.slice(0, colon));
  if (high === null) {
    const got = `got "${row.slice(0, colon).trim()}"; write for example "3: 1,2,1 / 1: 1"`;
    throw new Error(`row ${index + 1} must begin with a positive height before its colon, ${got}`);
  }
  const widths = row.slice(colon + 1);
  const columns = widths.split(",").flatMap((width) => positive(width) ?? []);
  if (columns.length < widths.split(",").length) {
    const got = `got "${widths.trim()}"; write for example "1,2,1 / 1"`;
    throw new Error(`row ${index + 1} must be positive numbers with commas between them, ${got}`);
  }
  return { high, columns };
}

/**
 * Return the regions left to right, then top to bottom, named "region 1" and so on.
 *
 * @param {string} text
 * @returns {import("./text.js").Region[]}
 */
export function parseLayout(text) {
  if (!text.trim()) return [];
  const rows = text.trim().split(/[/\n]/).map(parseRow);
  const places = edges(rows.map(({ high }) => high));
  const boxes = rows.flatMap(({ columns }, row) =>
    edges(columns).map((column) => [...column, ...places[row]]),
  );
  return boxes.map(([left, right, top, bottom], index) => ({
    ...DEFAULTS,
    name: `region ${index + 1}`,
    x: left,
    y: top,
    width: right - left,
    height: bottom - top,
  }));
}
