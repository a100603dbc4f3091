// @ts-check
// A canvas to draw regions on, on every Regions node of Pastiche. It shows and writes the text of
// the node's own widget "regions", so a graph that never saw the editor has the regions too.
import { api } from "../../../../scripts/api.js";
import { app } from "../../../../scripts/app.js";
import { Editor } from "./editor.js";

const NODE = "PasticheRegions";
const NAME = "pastiche_regions_editor";
const FOLLOWED = ["regions", "width", "height", "layout"]; // the node's widgets

/** @type {Set<Editor>} */
const editors = new Set(); // of nodes in a graph: the page also makes nodes only to copy them

/**
 * Call a function after a method of an object, which may lack it.
 *
 * @template {string} Name
 * @param {{[name in Name]?: (...given: any[]) => unknown}} object
 * @param {Name} name
 * @param {() => void} after
 */
function chain(object, name, after) {
  const before = object[name];
  object[name] = function (...given) {
    const answer = before?.apply(this, given);
    after();
    return answer;
  };
}

/** @param {ComfyUI.Node} node */
function addEditor(node) {
  const editor = new Editor(node);
  editor.hideTexts();
  for (const name of FOLLOWED) {
    const widget = editor.widget(name);
    if (widget) chain(widget, "callback", () => editor.refresh());
  }
  const widget = node.addDOMWidget(NAME, "pastiche-regions", editor.element, {
    serialize: false, // not with the prompt
    hideOnZoom: false,
    getMinHeight: () => 430,
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false; // nor with the workflow
  chain(node, "onConfigure", () => {
    editor.model.reset();
    editor.refresh();
  });
  chain(node, "onConnectionsChange", () => setTimeout(() => editor.refresh()));
  chain(node, "onAdded", () => editors.add(editor));
  chain(node, "onRemoved", () => editors.delete(editor));
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width, 460), Math.max(node.size[1], height, 720)]);
  editor.redraw();
}

// A graph that makes room for another tells only its own nodes, not those inside its subgraphs.
function refresh() {
  const { rootGraph } = app;
  const open = new Set([rootGraph, ...rootGraph.subgraphs.values()]);
  for (const editor of editors) {
    if (editor.node.graph && open.has(editor.node.graph)) editor.refresh();
    else editors.delete(editor);
  }
}

app.registerExtension({
  name: "Pastiche.RegionsEditor",
  setup() {
    // Anything may have changed the node's texts, or the picture that is wired to it.
    api.addEventListener("graphChanged", refresh);
  },
  nodeCreated(node) {
    if (node.comfyClass === NODE) addEditor(node);
  },
});
