// @ts-check
// Add a panel to every Pastiche trainer node that has a run. It is added when the first message of
// a run arrives and is never saved with a workflow.
import { api } from "../../../../scripts/api.js";
import { app } from "../../../../scripts/app.js";
import { View } from "./view.js";

/** @typedef {import("./view.js").Run} Run */

const MESSAGE = "pastiche.training";
const TRAINERS = /^PasticheTrain(?!ing)/; // not PasticheTrainingSettings
const WIDGET_NAME = "pastiche_run";
const MAX_POINTS = 3000;

/** @type {Map<string, Run>} */
const runs = new Map(); // latest state of each run, by run id
/** @type {WeakMap<ComfyUI.Node, View>} */
const views = new WeakMap(); // by node

const rootGraph = () => app.rootGraph ?? app.graph;

/**
 * Return the trainer node of an id. Inside a subgraph the server's id is a path: "5:3" is node 3
 * in the subgraph of node 5.
 *
 * @param {string} id
 * @returns {ComfyUI.Node | null}
 */
function nodeAt(id) {
  /** @type {ComfyUI.Graph | undefined} */
  let graph = rootGraph();
  /** @type {ComfyUI.Node | null | undefined} */
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number(part)) ?? graph?.getNodeById(part);
    graph = node?.subgraph;
  }
  return node && TRAINERS.test(node.comfyClass ?? node.type) ? node : null;
}

/**
 * Return whether a run belongs to a node: another workflow may have a trainer of the same id. If
 * the run names no workflow, because it was never saved or was queued without a page, the run name
 * on the node decides.
 *
 * @param {Run} run
 * @param {ComfyUI.Node} node
 */
function belongsTo(run, node) {
  if (run.workflow != null) return run.workflow === rootGraph()?.id;
  if (views.get(node)?.run?.run === run.run) return true;
  const linked = node.inputs?.some((input) => input.name === "run_name" && input.link != null);
  const name = node.widgets?.find((widget) => widget.name === "run_name");
  return !name || linked || String(name.value).trim() === run.name;
}

/**
 * Return the node's view, created where it has none.
 *
 * @param {ComfyUI.Node} node
 */
function viewOf(node) {
  const known = views.get(node);
  if (known) return known;
  const view = new View();
  views.set(node, view);
  const widget = node.addDOMWidget(WIDGET_NAME, "pastiche-run", view.element, {
    serialize: false, // not with the prompt
    hideOnZoom: false,
    getMinHeight: () => 280,
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false; // nor with the workflow
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width, 340), Math.max(node.size[1], height)]);
  node.setDirtyCanvas?.(true, true);
  return view;
}

/**
 * Return whether a run is shown instead of another one. A node may have had several runs, or may
 * belong to several subgraph nodes: the running one is shown, else the one that started last.
 *
 * @param {Run} run
 * @param {Run} other
 */
function takesPrecedence(run, other) {
  const running = (/** @type {Run} */ one) => one.state === "running";
  return running(run) === running(other) ? run.started >= other.started : running(run);
}

/** @param {Run} run */
function show(run) {
  const node = nodeAt(run.node_id);
  if (!node || !belongsTo(run, node)) return;
  // If the node is in another graph than the open one, the page would draw its widget over it.
  if (!views.has(node) && node.graph !== app.canvas.graph) return;
  const shown = runs.get(views.get(node)?.run?.run ?? "");
  if (!shown || takesPrecedence(run, shown)) viewOf(node).show(run);
}

function showAll() {
  for (const run of [...runs.values()].sort((a, b) => a.started - b.started)) show(run);
}

/** @param {Run["points"]} points */
function thinPoints(points) {
  if (points.length <= MAX_POINTS) return points;
  return points.filter((_, index) => index % 2 === 0 || index === points.length - 1);
}

/**
 * Update a run with a message. Return false if an earlier message is missing, because the page slept
 * or was loaded after the run's start.
 *
 * @param {Run} message
 */
function applyMessage(message) {
  const known = runs.get(message.run);
  const same = known?.started === message.started ? known : undefined;
  if (same && message.message <= same.message) return true;
  if (message.message !== (same ? same.message : 0) + 1) return false;
  const points = thinPoints([...(same ? same.points : []), ...message.points]);
  const run = { ...message, points };
  runs.set(message.run, run);
  show(run);
  return true;
}

/** @type {Run[] | null} */
let pending = null; // messages that arrive while the runs are fetched; null while they are not

async function fetchRuns() {
  if (pending) return;
  pending = [];
  try {
    const answer = await api.fetchApi("/pastiche/runs");
    for (const run of (await answer.json()).runs) runs.set(run.run, run);
    showAll();
  } catch (error) {
    // The next message starts another attempt.
    console.warn("Pastiche: the training runs could not be fetched", error);
  }
  const missed = pending;
  pending = null;
  missed.forEach(applyMessage);
}

/** @param {CustomEvent<Run>} event */
function onMessage({ detail: message }) {
  if (pending) pending.push(message);
  else if (!applyMessage(message)) fetchRuns();
}

app.registerExtension({
  name: "Pastiche.TrainingPanel",
  setup() {
    api.addEventListener(MESSAGE, onMessage);
    api.addEventListener("reconnected", fetchRuns);
    app.canvas.canvas.addEventListener("litegraph:set-graph", () => setTimeout(showAll));
    fetchRuns();
  },
  // An opened graph has new nodes, which need the panels of their runs.
  afterConfigureGraph: showAll,
});
