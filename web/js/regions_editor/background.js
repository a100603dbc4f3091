// @ts-check
// Find the address of the picture that is connected to a node, even before the graph has run.
import { api } from "../../../../scripts/api.js";
import { app } from "../../../../scripts/app.js";

const MAX_HOPS = 20; // reroutes and subgraphs on the way

/**
 * @param {ComfyUI.Node} node
 * @param {string} name
 */
const slotOf = (node, name) => node.inputs?.findIndex((input) => input.name === name) ?? -1;

/**
 * Yield every subgraph node of a graph with its subgraph.
 *
 * @param {ComfyUI.Graph} graph
 * @returns {Generator<[ComfyUI.Node, ComfyUI.Graph]>}
 */
function* subgraphs(graph) {
  for (const node of graph.nodes ?? []) {
    if (!node.subgraph) continue;
    yield [node, node.subgraph];
    yield* subgraphs(node.subgraph);
  }
}

/**
 * Return the node that an input is connected to, through reroutes and out of subgraphs.
 *
 * @param {ComfyUI.Node} start
 * @param {number} slot
 */
function originOf(start, slot) {
  let node = start;
  for (let i = 0; i < MAX_HOPS; i += 1) {
    const { graph } = node;
    const link = graph?.getLink?.(node.inputs?.[slot]?.link);
    if (!graph || !link) return null;
    const origin = graph.getNodeById(link.origin_id);
    if (!origin) {
      const host = [...subgraphs(app.rootGraph ?? app.graph)].find(([, inner]) => inner === graph);
      if (!host) return null;
      [[node], slot] = [host, link.origin_slot];
    } else if (origin.type === "Reroute") {
      [node, slot] = [origin, 0];
    } else return origin;
  }
  return null;
}

/**
 * Return the address of a file in the notation of core's loaders: "folder/name.png [output]".
 *
 * @param {string} value
 */
function addressOf(value) {
  const [, path = value, type = "input"] = /^(.*?)(?: \[(\w+)\])?$/s.exec(value) ?? [];
  const cut = path.lastIndexOf("/") + 1;
  const query = { filename: path.slice(cut), subfolder: path.slice(0, Math.max(cut - 1, 0)), type };
  return api.apiURL(`/view?${new URLSearchParams(query)}`);
}

/**
 * Return the address of the picture that is connected to an input, "" if there is none yet.
 *
 * @param {ComfyUI.Node} node
 * @param {string} name
 */
export function pictureOf(node, name) {
  const slot = slotOf(node, name);
  const origin = slot < 0 ? null : originOf(node, slot);
  if (!origin) return "";
  const file = origin.widgets?.find((widget) => widget.name === "image")?.value;
  if (typeof file === "string" && file) return addressOf(file);
  return origin.imgs?.[0]?.src ?? "";
}
