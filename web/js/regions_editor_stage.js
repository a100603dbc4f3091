// The picture's area with its regions: boxes that are named, focusable and have handles.
import { edgesOf } from "./regions_editor_boxes.js";
import { colourOf } from "./regions_editor_model.js";

const HANDLES = [
  "left top",
  "top",
  "right top",
  "right",
  "right bottom",
  "bottom",
  "left bottom",
  "left",
];

const KEYS =
  "Tab goes through the regions; arrow keys move one, with Shift they resize it, with Alt by a " +
  "pixel; Delete deletes it, Enter names it, Page Up and Page Down change the order.";
const MOST_LINES = 64; // a denser grid is not drawn

export function made(tag, className = "", text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

function madeBox() {
  const box = made("div", "pastiche-region");
  box.tabIndex = 0;
  box.setAttribute("role", "button");
  box.setAttribute("aria-roledescription", "region");
  box.append(made("span", "pastiche-region-name"));
  for (const edges of HANDLES) {
    const handle = made("span", "pastiche-handle");
    handle.dataset.edges = edges;
    handle.setAttribute("aria-hidden", "true");
    box.append(handle);
  }
  return box;
}

export class Stage {
  constructor() {
    this.element = made("div", "pastiche-stage-frame");
    this.area = made("div", "pastiche-stage");
    this.area.tabIndex = -1;
    this.area.setAttribute("role", "group");
    this.area.setAttribute("aria-label", "Regions of the picture");
    this.area.setAttribute("aria-description", KEYS);
    this.picture = made("img", "pastiche-stage-picture");
    this.picture.alt = "";
    this.picture.draggable = false;
    this.hint = made("div", "pastiche-stage-hint");
    this.drawn = made("div", "pastiche-drawn");
    this.drawn.hidden = true;
    this.area.append(this.picture, this.hint, this.drawn);
    this.element.append(this.area);
    this.boxes = [];
  }

  // Where a pointer is, in shares of the picture; the graph may be zoomed.
  place({ clientX, clientY }) {
    const { left, top, width, height } = this.area.getBoundingClientRect();
    return { x: (clientX - left) / width, y: (clientY - top) / height };
  }

  indexOf(element) {
    return this.boxes.indexOf(element?.closest?.(".pastiche-region"));
  }

  focus(index) {
    (this.boxes[index] ?? this.area).focus({ preventScroll: true });
  }

  showPicture(address) {
    this.picture.hidden = !address;
    if (address && this.picture.getAttribute("src") !== address) this.picture.src = address;
  }

  // The outline of a box that is being drawn, or none.
  showDrawn(box) {
    this.drawn.hidden = !box;
    if (box) this.lay(this.drawn, box);
  }

  lay(element, { left, top, right, bottom }) {
    element.style.left = `${left * 100}%`;
    element.style.top = `${top * 100}%`;
    element.style.width = `${(right - left) * 100}%`;
    element.style.height = `${(bottom - top) * 100}%`;
  }

  draw(model, size, grid, fixed) {
    const { regions, selected } = model;
    const { area } = this;
    area.style.aspectRatio = `${size.width} / ${size.height}`;
    area.style.setProperty("--aspect", size.width / size.height);
    area.classList.toggle("pastiche-fixed", fixed);
    area.style.setProperty("--across", `${(grid / size.width) * 100}%`);
    area.style.setProperty("--down", `${(grid / size.height) * 100}%`);
    const wide = grid * MOST_LINES >= Math.max(size.width, size.height);
    area.classList.toggle("pastiche-grid", grid > 0 && wide && !fixed);
    this.hint.textContent = regions.length || fixed ? "" : "Drag here to draw a region";
    const focused = this.boxes.indexOf(document.activeElement);
    while (this.boxes.length > regions.length) this.boxes.pop().remove();
    while (this.boxes.length < regions.length) {
      this.boxes.push(madeBox());
      area.insertBefore(this.boxes.at(-1), this.drawn);
    }
    regions.forEach((region, index) => {
      this.drawBox(this.boxes[index], region, index);
      this.boxes[index].setAttribute("aria-pressed", String(index === selected));
      const place = `${index + 1} of ${regions.length}, ${spoken(region, size)}`;
      this.boxes[index].setAttribute("aria-label", `${region.name}, ${place}`);
    });
    // A region that changed its place in the order, or went away, hands the focus on.
    if (focused >= 0 && focused !== selected) this.focus(selected);
  }

  drawBox(box, region, index) {
    this.lay(box, edgesOf(region));
    box.style.setProperty("--colour", colourOf(region, index));
    box.style.setProperty("--ink", inkOn(colourOf(region, index)));
    box.firstChild.textContent = region.name;
    // Half of the soft edge lies outside, half inside; cqmin is of the area's shorter side.
    box.classList.toggle("pastiche-feathered", region.feather > 0);
    box.style.setProperty("--reach", `${region.feather * 50}cqmin`);
  }
}

// Black or white, whichever is read better on a colour.
function inkOn(colour) {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return 0.3 * red + 0.6 * green + 0.1 * blue > 100 ? "#111" : "#fff";
}

function spoken({ x, y, width, height }, size) {
  const across = (share) => Math.round(share * size.width);
  const down = (share) => Math.round(share * size.height);
  return `left ${across(x)}, top ${down(y)}, ${across(width)} wide, ${down(height)} high`;
}
