// @ts-check
// The regions as text, the field for rows and columns, and the line that shows problems or where the
// regions come from.
import { createElement } from "../dom.js";

const EXAMPLE = `{
  "regions": [
    {"name": "cat", "x": 0, "y": 0.25, "width": 0.5, "height": 0.75}
  ]
}`;

const LAYOUT = "Rows and columns that replace the drawn regions; leave empty to use those";

export class Note {
  /** @param {import("./editor.js").Editor} editor */
  constructor(editor) {
    this.editor = editor;
    this.text = createElement("textarea");
    this.text.placeholder = EXAMPLE;
    this.text.spellcheck = false;
    this.text.dataset.captureWheel = "true"; // the wheel scrolls the text
    this.text.setAttribute("aria-label", "The regions as text, in JSON");
    this.typing = false; // undo reverts text that is typed without a pause in one step
    this.text.addEventListener("input", () => {
      this.editor.model.putText({ regions: this.text.value }, !this.typing);
      this.typing = true;
    });
    this.text.addEventListener("blur", () => (this.typing = false));
    this.text.addEventListener("keydown", (event) => {
      if (!event.ctrlKey && !event.metaKey) event.stopPropagation();
    });
    this.layout = createElement("input");
    this.layout.type = "text";
    this.layout.placeholder = "1,2,1 / 1";
    this.layout.title = LAYOUT;
    this.layout.setAttribute("aria-label", LAYOUT);
    this.layout.addEventListener("change", () => {
      this.editor.model.putText({ layout: this.layout.value });
    });
    this.layout.addEventListener("keydown", (event) => {
      if (!event.ctrlKey && !event.metaKey) event.stopPropagation();
    });
    this.rows = createElement("label", "pastiche-field", "Rows and columns");
    this.rows.append(this.layout);
    this.element = createElement("div", "pastiche-note");
    this.sentence = createElement("span");
    this.sentence.setAttribute("role", "status");
    this.button = createElement("button");
    this.button.type = "button";
    this.button.addEventListener("click", () => this.press());
    this.element.append(this.sentence, this.button);
  }

  press() {
    const { model } = this.editor;
    if (model.problem) this.editor.setAsText(true);
    else model.rowsToBoxes();
    this.editor.redraw();
  }

  /**
   * Return the sentence to show, the button's label, and whether the sentence is a problem.
   *
   * @returns {[sentence: string, button: string, problem: boolean]}
   */
  content() {
    const { model, refusal, asText } = this.editor;
    if (this.editor.isLinked("regions")) {
      return ["The regions come from another node and are changed there.", "", false];
    }
    if (model.problem) {
      const canShow = !asText && !model.usesLayout;
      return [model.problem, canShow ? "Show the text" : "", true];
    }
    if (refusal) return [refusal, "", true];
    if (this.editor.isLinked("layout")) {
      return ["Rows and columns come from another node; else the boxes are used.", "", false];
    }
    if (!model.usesLayout) return ["", "", false];
    // A text that can't be read is never overwritten.
    const button = model.unreadable ? "" : "Make boxes of them";
    return ["The rows and columns are used; the drawn regions are kept.", button, false];
  }

  draw() {
    const { model, asText } = this.editor;
    this.text.hidden = !asText;
    this.text.readOnly = this.editor.isLinked("regions");
    this.rows.hidden = asText;
    this.layout.disabled = this.editor.isLinked("layout");
    // A field of one line shows the lines of a text as rows. Typed text stays until the widget's text
    // changes.
    const rows = model.seen.layout.trim().replace(/\s*\n\s*/g, " / ");
    if (rows !== this.layout.dataset.shown) this.layout.value = this.layout.dataset.shown = rows;
    if (this.text.value !== model.seen.regions) this.text.value = model.seen.regions;
    const [sentence, button, wrong] = this.content();
    this.sentence.textContent = sentence;
    this.button.textContent = button;
    this.button.hidden = !button;
    this.element.hidden = !sentence;
    this.element.classList.toggle("pastiche-problem", wrong);
  }
}
