// @ts-check
// The picture with its regions: boxes with names and handles, which can be focused.
import { createElement } from "../dom.js";
import { edgesOf } from "./boxes.js";
import { colourOf } from "./model.js";

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
const MAX_LINES = 64; // a denser grid is not drawn

function createBox() {
  const box = createElement("div", "pastiche-region");
  box.tabIndex = 0;
  box.setAttribute("role", "button");
  box.setAttribute("aria-roledescription", "region");
  box.append(createElement("span", "pastiche-region-name"));
  for (const edges of HANDLES) {
    const handle = createElement("span", "pastiche-handle");
    handle.dataset.edges = edges;
    handle.setAttribute("aria-hidden", "true");
    box.append(handle);
  }
  return box;
}

export class Stage {
  constructor() {
    this.element = createElement("div", "pastiche-stage-frame");
    this.area = createElement("div", "pastiche-stage");
    this.area.tabIndex = -1;
    this.area.setAttribute("role", "group");
    this.area.setAttribute("aria-label", "Regions of the picture");
    this.area.setAttribute("aria-description", KEYS);
    this.picture = createElement("img", "pastiche-stage-picture");
    this.picture.alt = "";
    this.picture.draggable = false;
    this.hint = createElement("div", "pastiche-stage-hint");
    this.outline = createElement("div", "pastiche-drawn");
    this.outline.hidden = true;
    this.area.append(this.picture, this.hint, this.outline);
    this.element.append(this.area);
    /** @type {HTMLElement[]} */
    this.boxes = [];
  }

  /**
   * Return the position of a pointer in fractions of the picture, at any zoom of the graph.
   *
   * @param {MouseEvent} event
   */
  place({ clientX, clientY }) {
    const { left, top, width, height } = this.area.getBoundingClientRect();
    return { x: (clientX - left) / width, y: (clientY - top) / height };
  }

  /**
   * Return the index of the region that an element belongs to, -1 if it belongs to none.
   *
   * @param {EventTarget | null} target
   */
  indexOf(target) {
    const box = target instanceof Element ? target.closest(".pastiche-region") : null;
    return this.boxes.findIndex((one) => one === box);
  }

  /** @param {number} index */
  focus(index) {
    (this.boxes[index] ?? this.area).focus({ preventScroll: true });
  }

  /** @param {string} address */
  showPicture(address) {
    this.picture.hidden = !address;
    if (address && this.picture.getAttribute("src") !== address) this.picture.src = address;
  }

  /**
   * Show the outline of a box that is being drawn.
   *
   * @param {import("./boxes.js").Edges | null} box
   */
  showOutline(box) {
    this.outline.hidden = !box;
    if (box) this.setEdges(this.outline, box);
  }

  /**
   * Place an element in the area.
   *
   * @param {HTMLElement} element
   * @param {import("./boxes.js").Edges} edges
   */
  setEdges(element, { left, top, right, bottom }) {
    element.style.left = `${left * 100}%`;
    element.style.top = `${top * 100}%`;
    element.style.width = `${(right - left) * 100}%`;
    element.style.height = `${(bottom - top) * 100}%`;
  }

  /**
   * @param {import("./model.js").Model} model
   * @param {import("./boxes.js").Size} size
   * @param {number} grid in pixels; 0 for none
   * @param {boolean} fixed whether the regions can't be edited here
   */
  draw(model, size, grid, fixed) {
    const { regions, selected } = model;
    const { area } = this;
    area.style.aspectRatio = `${size.width} / ${size.height}`;
    area.style.setProperty("--aspect", String(size.width / size.height));
    area.classList.toggle("pastiche-fixed", fixed);
    area.style.setProperty("--across", `${(grid / size.width) * 100}%`);
    area.style.setProperty("--down", `${(grid / size.height) * 100}%`);
    const wide = grid * MAX_LINES >= Math.max(size.width, size.height);
    area.classList.toggle("pastiche-grid", grid > 0 && wide && !fixed);
    this.hint.textContent = regions.length || fixed ? "" : "Drag here to draw a region";
    const focused = this.boxes.findIndex((box) => box === document.activeElement);
    while (this.boxes.length > regions.length) this.boxes.pop()?.remove();
    while (this.boxes.length < regions.length) {
      const box = createBox();
      this.boxes.push(box);
      area.insertBefore(box, this.outline);
    }
    this.boxes.forEach((box, index) => {
      const region = regions[index];
      this.drawBox(box, region, index);
      box.setAttribute("aria-pressed", String(index === selected));
      const place = `${index + 1} of ${regions.length}, ${placeText(region, size)}`;
      box.setAttribute("aria-label", `${region.name}, ${place}`);
    });
    // If the focused region was moved in the order or deleted, the selected one gets the focus.
    if (focused >= 0 && focused !== selected) this.focus(selected);
  }

  /**
   * @param {HTMLElement} box
   * @param {import("./text.js").Region} region
   * @param {number} index
   */
  drawBox(box, region, index) {
    this.setEdges(box, edgesOf(region));
    box.style.setProperty("--colour", colourOf(region, index));
    box.style.setProperty("--ink", inkOn(colourOf(region, index)));
    const name = box.querySelector(".pastiche-region-name");
    if (name) name.textContent = region.name;
    // Half of the soft edge is outside, half inside; cqmin is a percentage of the shorter side.
    box.classList.toggle("pastiche-feathered", region.feather > 0);
    box.style.setProperty("--reach", `${region.feather * 50}cqmin`);
  }
}

/**
 * Return black or white, whichever is more readable on a colour.
 *
 * @param {string} colour
 */
function inkOn(colour) {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return 0.3 * red + 0.6 * green + 0.1 * blue > 100 ? "#111" : "#fff";
}

/**
 * Return a region's place and size in pixels, as a text for screen readers.
 *
 * @param {import("./boxes.js").Box} region
 * @param {import("./boxes.js").Size} size
 */
function placeText({ x, y, width, height }, size) {
  const across = (/** @type {number} */ share) => Math.round(share * size.width);
  const down = (/** @type {number} */ share) => Math.round(share * size.height);
  return `left ${across(x)}, top ${down(y)}, ${across(width)} wide, ${down(height)} high`;
}
