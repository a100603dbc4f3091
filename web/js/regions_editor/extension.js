// @ts-check
// Add an editor to every Regions node of Pastiche. It shows and writes the text of the node's widget
// "regions", so the regions are also there without the editor.
import { api } from "../../../../scripts/api.js";
import { app } from "../../../../scripts/app.js";
import { Editor } from "./editor.js";

const NODE = "PasticheRegions";
const WIDGET_NAME = "pastiche_regions_editor";
const WATCHED = ["regions", "width", "height", "layout"]; // changes of these widgets are shown

// Editors of nodes in a graph; the page also creates nodes just to copy them.
/** @type {Set<Editor>} */
const editors = new Set();

/**
 * Call a function after a method of an object, which may lack it.
 *
 * @template {string} Name
 * @param {{[name in Name]?: (...args: any[]) => unknown}} object
 * @param {Name} name
 * @param {() => void} after
 */
function chain(object, name, after) {
  const before = object[name];
  object[name] = function (...args) {
    const answer = before?.apply(this, args);
    after();
    return answer;
  };
}

/** @param {ComfyUI.Node} node */
function addEditor(node) {
  const editor = new Editor(node);
  editor.hideTexts();
  for (const name of WATCHED) {
    const widget = editor.widget(name);
    if (widget) chain(widget, "callback", () => editor.refresh());
  }
  const widget = node.addDOMWidget(WIDGET_NAME, "pastiche-regions", editor.element, {
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

// Nodes inside subgraphs are not notified when another graph is opened, so they are removed here.
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
    // The change may concern the node's texts or the picture that is connected to it.
    api.addEventListener("graphChanged", refresh);
  },
  nodeCreated(node) {
    if (node.comfyClass === NODE) addEditor(node);
  },
});
