// A panel on every trainer node of Pastiche while it has a run; the server's side is
// nodes/trainer/panel.py. It is added when the first message comes and never saved with a workflow.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { View } from "./training_panel_view.js";

const MESSAGE = "pastiche.training";
const TRAINERS = /^PasticheTrain(?!ing)/; // not PasticheTrainingSettings
const NAME = "pastiche_run";
const MOST_POINTS = 3000;

const runs = new Map(); // by run id, as the server describes them
const views = new WeakMap(); // by node

const rootGraph = () => app.rootGraph ?? app.graph;

// Inside a subgraph the server's id is a path: "5:3" is node 3 in the subgraph of node 5.
function nodeAt(id) {
  let graph = rootGraph();
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number(part)) ?? graph?.getNodeById(part);
    graph = node?.subgraph;
  }
  return node && TRAINERS.test(node.comfyClass ?? node.type) ? node : null;
}

// Another workflow may have a trainer of the same id. Where a run knows of no workflow, as one that
// was never saved or was queued without a page, the name that the user gave decides.
function isOf(run, node) {
  if (run.workflow != null) return run.workflow === rootGraph()?.id;
  if (views.get(node)?.run.run === run.run) return true;
  const linked = node.inputs?.some((input) => input.name === "run_name" && input.link != null);
  const name = node.widgets?.find((widget) => widget.name === "run_name");
  return !name || linked || String(name.value).trim() === run.name;
}

function viewOf(node) {
  let view = views.get(node);
  if (view) return view;
  view = new View();
  views.set(node, view);
  const widget = node.addDOMWidget(NAME, "pastiche-run", view.element, {
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

// One node may have had several runs, or be drawn by several subgraph nodes: the running one wins.
function goesBefore(run, other) {
  const running = (one) => one.state === "running";
  return running(run) === running(other) ? run.started >= other.started : running(run);
}

function show(run) {
  const node = nodeAt(run.node_id);
  if (!node || !isOf(run, node)) return;
  // The page would draw a widget that is added out of sight over the graph that is open.
  if (!views.has(node) && node.graph !== app.canvas.graph) return;
  const shown = runs.get(views.get(node)?.run.run);
  if (!shown || goesBefore(run, shown)) viewOf(node).show(run);
}

function showAll() {
  for (const run of [...runs.values()].sort((a, b) => a.started - b.started)) show(run);
}

function thinned(points) {
  if (points.length <= MOST_POINTS) return points;
  return points.filter((_, index) => index % 2 === 0 || index === points.length - 1);
}

// False where a message was missed: the page slept, or was loaded after the run's start.
function takeUp(told) {
  const known = runs.get(told.run);
  const same = known?.started === told.started;
  if (same && told.message <= known.message) return true;
  if (told.message !== (same ? known.message : 0) + 1) return false;
  runs.set(told.run, { ...told, points: thinned([...(same ? known.points : []), ...told.points]) });
  show(runs.get(told.run));
  return true;
}

let waiting = null; // messages that came while the server is asked for the runs

async function askServer() {
  if (waiting) return;
  waiting = [];
  try {
    const answer = await api.fetchApi("/pastiche/runs");
    for (const run of (await answer.json()).runs) runs.set(run.run, run);
    showAll();
  } catch (error) {
    // The next message asks again.
    console.warn("Pastiche: the training runs could not be asked for", error);
  }
  const missed = waiting;
  waiting = null;
  missed.forEach(takeUp);
}

function onMessage({ detail: told }) {
  if (waiting) waiting.push(told);
  else if (!takeUp(told)) askServer();
}

app.registerExtension({
  name: "Pastiche.TrainingPanel",
  setup() {
    api.addEventListener(MESSAGE, onMessage);
    api.addEventListener("reconnected", askServer);
    app.canvas.canvas.addEventListener("litegraph:set-graph", () => setTimeout(showAll));
    askServer();
  },
  // Every graph that is opened has new nodes: they get the panels of the runs that are theirs.
  afterConfigureGraph: showAll,
});
