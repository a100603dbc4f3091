// Where the picture that is wired to a node can be seen, before anything has run.
import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";

const FARTHEST = 20; // reroutes and subgraphs on the way

const slotOf = (node, name) => node.inputs?.findIndex((input) => input.name === name) ?? -1;

function* graphs(graph) {
  for (const node of graph?.nodes ?? []) {
    if (!node.subgraph) continue;
    yield node;
    yield* graphs(node.subgraph);
  }
}

// The node at the other end of a wire: through reroutes, and out of subgraphs.
function originOf(node, slot) {
  for (let i = 0; i < FARTHEST; i += 1) {
    const link = node?.graph?.getLink?.(node.inputs?.[slot]?.link);
    if (!link) return null;
    const origin = node.graph.getNodeById(link.origin_id);
    if (!origin) {
      const inside = node.graph;
      const hosts = [...graphs(app.rootGraph ?? app.graph)];
      node = hosts.find((host) => host.subgraph === inside);
      slot = link.origin_slot;
    } else if (origin.type === "Reroute") {
      [node, slot] = [origin, 0];
    } else return origin;
  }
  return null;
}

// "folder/name.png [output]", as core's loaders write it.
function addressOf(value) {
  const [, path, type = "input"] = /^(.*?)(?: \[(\w+)\])?$/s.exec(value);
  const cut = path.lastIndexOf("/") + 1;
  const query = { filename: path.slice(cut), subfolder: path.slice(0, Math.max(cut - 1, 0)), type };
  return api.apiURL(`/view?${new URLSearchParams(query)}`);
}

// The address of the picture that goes into an input, or "" where it can't be seen yet.
export function pictureOf(node, name) {
  const slot = slotOf(node, name);
  const origin = slot < 0 ? null : originOf(node, slot);
  if (!origin) return "";
  const file = origin.widgets?.find((widget) => widget.name === "image")?.value;
  if (typeof file === "string" && file) return addressOf(file);
  return origin.imgs?.[0]?.src ?? "";
}
