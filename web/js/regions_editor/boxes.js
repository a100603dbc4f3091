// @ts-check
// Move, resize and snap boxes. All numbers are fractions of the picture's sides.

/** @typedef {{left: number, top: number, right: number, bottom: number}} Edges */
/** @typedef {{x: number, y: number, width: number, height: number}} Box */
/** @typedef {{width: number, height: number}} Size in pixels */
/** @typedef {{x: number, y: number}} Point */

const DIGITS = 1e6; // fractions are rounded to 1 / DIGITS, which is less than a pixel
/** @type {Record<keyof Edges, keyof Size>} */
const EDGES = { left: "width", right: "width", top: "height", bottom: "height" };

/** @type {Record<keyof Edges, keyof Edges>} */
const OPPOSITE = { left: "right", right: "left", top: "bottom", bottom: "top" };

const rounded = (/** @type {number} */ share) => Math.round(share * DIGITS) / DIGITS;
/**
 * @param {number} share
 * @param {number} low
 * @param {number} high
 */
const clamped = (share, low, high) => Math.min(Math.max(share, low), high);

/**
 * @param {Box} region
 * @returns {Edges}
 */
export const edgesOf = (region) => ({
  left: region.x,
  top: region.y,
  right: region.x + region.width,
  bottom: region.y + region.height,
});

/**
 * Return the region with other edges. The edges are rounded instead of the sizes, so that neighbours
 * still touch and no region ends outside the picture.
 *
 * @template {Box} Region
 * @param {Region} region
 * @param {Edges} edges
 * @returns {Region}
 */
export function withEdges(region, { left, top, right, bottom }) {
  const [x, y] = [rounded(clamped(left, 0, 1)), rounded(clamped(top, 0, 1))];
  const width = rounded(rounded(clamped(right, 0, 1)) - x);
  const height = rounded(rounded(clamped(bottom, 0, 1)) - y);
  return width > 0 && height > 0 ? { ...region, x, y, width, height } : region;
}

/**
 * Return the nearest line of the grid, or the picture's border.
 *
 * @param {number} share
 * @param {number} pixels length of the picture's side
 * @param {number} grid in pixels; 0 snaps to nothing
 */
function snapped(share, pixels, grid) {
  if (!grid) return share;
  const line = (Math.round((share * pixels) / grid) * grid) / pixels;
  return Math.abs(1 - share) < Math.abs(line - share) ? 1 : clamped(line, 0, 1);
}

/**
 * Return the region moved by shares of the picture; its size is kept.
 *
 * @template {Box} Region
 * @param {Region} region
 * @param {number} across
 * @param {number} down
 * @param {Size} [size] of the picture
 * @param {number} [grid] in pixels; 0 snaps to nothing
 * @returns {Region}
 */
export function moved(region, across, down, size, grid = 0) {
  /**
   * @param {number} low
   * @param {number} length
   * @param {number} by
   * @param {number} [pixels]
   */
  const place = (low, length, by, pixels) => {
    const start = clamped(low + by, 0, Math.max(0, 1 - length));
    const snaps = pixels === undefined ? start : snapped(start, pixels, grid);
    // At the far border the region's end is snapped instead of its start.
    return start + length > 1 - 1 / DIGITS ? 1 - length : clamped(snaps, 0, 1 - length);
  };
  const left = across === 0 ? region.x : place(region.x, region.width, across, size?.width);
  const top = down === 0 ? region.y : place(region.y, region.height, down, size?.height);
  return withEdges(region, { left, top, right: left + region.width, bottom: top + region.height });
}

/**
 * Return the region with some of its edges moved; an edge never passes the opposite one.
 *
 * @template {Box} Region
 * @param {Region} region
 * @param {(keyof Edges)[]} names
 * @param {number} across
 * @param {number} down
 * @param {Size} size of the picture
 * @param {number} [grid] in pixels; 0 snaps to nothing
 * @returns {Region}
 */
export function resized(region, names, across, down, size, grid = 0) {
  const edges = edgesOf(region);
  for (const name of names) {
    const pixels = size[EDGES[name]];
    const by = EDGES[name] === "width" ? across : down;
    const other = edges[OPPOSITE[name]];
    const least = Math.min(1 / pixels, 0.5);
    const aim = by === 0 ? edges[name] : snapped(clamped(edges[name] + by, 0, 1), pixels, grid);
    const first = name === "left" || name === "top";
    edges[name] = first ? Math.min(aim, other - least) : Math.max(aim, other + least);
  }
  return withEdges(region, edges);
}

/**
 * Return the edges of the box between two points, snapped; null if it would be empty.
 *
 * @param {Point} one
 * @param {Point} other
 * @param {Size} size of the picture
 * @param {number} grid in pixels; 0 snaps to nothing
 * @returns {Edges | null}
 */
export function boxBetween(one, other, size, grid) {
  const [xs, ys] = [[one.x, other.x], [one.y, other.y]].map((pair) => pair.sort((a, b) => a - b));
  const [left, right] = xs.map((x) => snapped(clamped(x, 0, 1), size.width, grid));
  const [top, bottom] = ys.map((y) => snapped(clamped(y, 0, 1), size.height, grid));
  return right > left && bottom > top ? { left, top, right, bottom } : null;
}
