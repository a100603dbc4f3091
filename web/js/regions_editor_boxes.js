// Moving, resizing and snapping of boxes, all in shares of the picture.

const DIGITS = 1e6; // of a share; a pixel of any picture is larger
const EDGES = { left: "width", right: "width", top: "height", bottom: "height" };

const rounded = (share) => Math.round(share * DIGITS) / DIGITS;
const clamped = (share, low, high) => Math.min(Math.max(share, low), high);

export const edgesOf = (region) => ({
  left: region.x,
  top: region.y,
  right: region.x + region.width,
  bottom: region.y + region.height,
});

// Edges are rounded, not sizes: so neighbours still meet, and nothing ends beyond the picture.
export function withEdges(region, { left, top, right, bottom }) {
  const [x, y] = [rounded(clamped(left, 0, 1)), rounded(clamped(top, 0, 1))];
  const width = rounded(rounded(clamped(right, 0, 1)) - x);
  const height = rounded(rounded(clamped(bottom, 0, 1)) - y);
  return width > 0 && height > 0 ? { ...region, x, y, width, height } : region;
}

// The nearest line of the grid, or the picture's border. size: { width, height } in pixels.
function snapped(share, pixels, grid) {
  if (!grid) return share;
  const line = (Math.round((share * pixels) / grid) * grid) / pixels;
  return Math.abs(1 - share) < Math.abs(line - share) ? 1 : clamped(line, 0, 1);
}

// The region moved by shares of the picture, its size kept; grid 0 snaps to nothing.
export function moved(region, across, down, size, grid = 0) {
  const place = (low, length, by, pixels) => {
    const start = clamped(low + by, 0, Math.max(0, 1 - length));
    const snaps = snapped(start, pixels, grid);
    // At the far border the end lies on the line, not the start.
    return start + length > 1 - 1 / DIGITS ? 1 - length : clamped(snaps, 0, 1 - length);
  };
  const left = across === 0 ? region.x : place(region.x, region.width, across, size?.width);
  const top = down === 0 ? region.y : place(region.y, region.height, down, size?.height);
  return withEdges(region, { left, top, right: left + region.width, bottom: top + region.height });
}

// The region with some edges, such as ["left", "top"], moved; an edge never passes the other.
export function resized(region, names, across, down, size, grid = 0) {
  const edges = edgesOf(region);
  const opposite = { left: "right", right: "left", top: "bottom", bottom: "top" };
  for (const name of names) {
    const pixels = size[EDGES[name]];
    const by = EDGES[name] === "width" ? across : down;
    const other = edges[opposite[name]];
    const least = Math.min(1 / pixels, 0.5);
    const aim = by === 0 ? edges[name] : snapped(clamped(edges[name] + by, 0, 1), pixels, grid);
    const first = name === "left" || name === "top";
    edges[name] = first ? Math.min(aim, other - least) : Math.max(aim, other + least);
  }
  return withEdges(region, edges);
}

// The box between two points, its edges snapped; null where it would be empty.
export function between(one, other, size, grid) {
  const [xs, ys] = [[one.x, other.x], [one.y, other.y]].map((pair) => pair.sort((a, b) => a - b));
  const [left, right] = xs.map((x) => snapped(clamped(x, 0, 1), size.width, grid));
  const [top, bottom] = ys.map((y) => snapped(clamped(y, 0, 1), size.height, grid));
  return right > left && bottom > top ? { left, top, right, bottom } : null;
}
